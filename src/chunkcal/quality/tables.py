"""Reads the solutions of a merged h5parm for judgement, and knows its chunks."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import h5py
import numpy as np

from chunkcal.errors import UserError
from chunkcal.quality.statistics import KINDS, Kind
from chunkcal.solutions import h5parm

_READ_BYTES = 16 << 20  # what is read at once
_HELD_BYTES = 256 << 20  # what is held of one table; of more, some directions at a time
TEC_PHASE = -8.44797245e9  # rad Hz / TECU, as DP3 has it
_DIAGONAL = (0, 3)  # XX and YY of four polarizations


@dataclass(frozen=True)
class Chunks:
    """Chunks along the solution grid.

    Attributes
    ----------
    names : tuple of str
    firsts : tuple of int
        First solution of each chunk.
    is_judged : (n_solutions,) bool
        False in chunks that failed: that these have no solutions is said once, not by every figure.
    """

    names: tuple[str, ...]
    firsts: tuple[int, ...]
    is_judged: np.ndarray

    @classmethod
    def of(cls, n_solutions: int, seams: Sequence[int], failed: Sequence[tuple[str, int, int]]) -> Chunks:
        """Chunks from the first solution of each but the first; the plan names them t0000, t0001, …

        Raises
        ------
        ValueError
            The seams do not increase or lie outside.
        """
        firsts = [0, *(int(k) for k in seams)]
        if any(b <= a for a, b in zip(firsts, [*firsts[1:], max(1, n_solutions)], strict=True)):
            raise ValueError(f"seams {list(seams)} do not increase between 0 and {n_solutions}")
        names = {first: name for name, first, _ in failed}
        is_judged = np.ones(n_solutions, bool)
        for _, first, n in failed:
            is_judged[first : first + n] = False
        return cls(tuple(names.get(f, f"t{i:04d}") for i, f in enumerate(firsts)), tuple(firsts), is_judged)


@dataclass
class Block:
    """Solutions of one table and direction.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    direction : str
        "" if the table has one direction only.
    values : (n_time, n_ant, n_sample) float32
        Samples are frequencies and polarizations; NaN is flagged. Logarithms for amplitudes, where 0 counts as
        flagged. Of four polarizations only the diagonal: phases of what is near zero are random.
    beside_rotation : bool
        The solve has a rotation too.
    """

    kind: str
    table: str
    direction: str
    stations: tuple[str, ...]
    values: np.ndarray
    beside_rotation: bool = False

    @property
    def comparison(self) -> Kind:
        """How the solutions are compared. With a rotation, a phase of pi is no other than a rotation of pi."""
        kind = KINDS[self.kind]
        return replace(kind, period=math.pi) if self.kind == "phase" and self.beside_rotation else kind


def read_blocks(path: str | os.PathLike) -> Iterator[Block]:
    """Read the solutions of an h5parm, one direction of one table after the other, amplitudes first.

    TEC and phase of one fit undo each other's errors, in narrow bands completely, so it is the phase they add up to in
    the middle of the band, -8.448e9 rad Hz / TECU x tec / frequency + phase, that is given as phase: the law that
    DDECal fits (ddecal/constraints/TecConstraint.cc of DP3 6.6). With a delay besides there is no phase.

    At most 256 MB of a table are in memory, but one direction in any case. Tables of other kinds, such as the misfits
    `error000`, are left out.

    Raises
    ------
    UserError
        As `chunkcal.solutions.h5parm.describe`; it holds nothing that can be judged.
    """
    with h5parm.opened(path) as file:
        is_empty = True
        for solset, some in h5parm.describe(path).solsets.items():
            tables = {table.kind: table for table in some if table.kind in KINDS}
            for kind in sorted(tables, key=lambda kind: kind != "amplitude"):
                is_empty = False
                if kind != "phase" or "tec" not in tables:
                    for block in _blocks(file[solset], tables[kind]):
                        block.beside_rotation = "rotation" in tables
                        yield block
            if "tec" in tables and "delay" not in tables:
                yield from _phases_of_tec(file[solset], tables["tec"], tables.get("phase"))
    if is_empty:
        raise UserError(f"h5parm {path} holds no solutions of the kinds {', '.join(KINDS)}; give one that DP3 wrote")


def _phases_of_tec(solset: h5py.Group, tec: h5parm.Soltab, phase: h5parm.Soltab | None) -> Iterator[Block]:
    """Phase in the middle of the band that a fit of TEC, and a constant phase if there is one, amounts to."""
    frequency_hz = float(np.mean(tec.frequency_range)) if tec.frequency_range else math.nan
    others = _blocks(solset, phase) if phase else itertools.repeat(None)
    for block, other in zip(_blocks(solset, tec), others, strict=phase is not None):
        name = block.table + (f"+{phase.name}" if phase else "")
        values = block.values * np.float32(TEC_PHASE / frequency_hz)
        yield Block("phase", name, block.direction, block.stations, values + (other.values if other else 0))


def _blocks(solset: h5py.Group, table: h5parm.Soltab) -> Iterator[Block]:
    """Directions of a table, as many at a time as may be held."""
    n_dir = table.length("dir")
    each = 4 * int(np.prod(table.shape)) // max(1, n_dir)
    n_held = max(1, min(n_dir, _HELD_BYTES // max(1, each)))
    where = f"{solset.name.strip('/')}/{table.name}"
    for first in range(0, n_dir, n_held):
        held = _read(solset[table.name], table, slice(first, first + n_held))
        for values, direction in zip(held, (table.directions or ("",))[first : first + n_held], strict=True):
            name = direction.strip("[]") if n_dir > 1 else ""
            yield Block(table.kind, where, name, table.antennas or ("all",), values)


def _read(group: h5py.Group, table: h5parm.Soltab, directions: slice) -> np.ndarray:
    """Read some directions of a table: float32 [dir, time, ant, sample], as `Block.values`."""
    front = [axis for axis in ("dir", "time", "ant") if axis in table.axes]
    order = [table.axes.index(a) for a in (*front, *(a for a in table.axes if a not in front))]
    n_time, n_ant, n_pol = table.length("time"), table.length("ant"), table.length("pol")
    held = None
    step = max(1, _READ_BYTES * n_time // max(1, 8 * int(np.prod(table.shape))))
    for start in range(0, n_time, step):
        place = h5parm.interval_range(table.axes, start, step)
        values = group["val"][place]
        values[group["weight"][place] == 0] = np.nan
        if n_pol == 4:
            values = values.take(_DIAGONAL, axis=table.axes.index("pol"))
        values = values.transpose(order)
        n = values.shape[front.index("time")]
        values = values.reshape(table.length("dir"), n, n_ant, -1)[directions]
        values[~np.isfinite(values)] = np.nan
        if table.kind == "amplitude":
            values = np.log(np.where(values > 0, values, np.nan))
        if held is None:
            held = np.empty((len(values), n_time, *values.shape[2:]), np.float32)
        held[:, start : start + n] = values
    return held
