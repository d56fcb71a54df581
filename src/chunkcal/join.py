"""Joins the MeasurementSets of chunks into one that does not depend on them.

The copy is physical. Virtual concatenation would leave DP3 unable to read it, or writing into the chunks. Chunks are
copied one after the other, because casacore keeps about eight files of every table of a concatenation open: a thousand
chunks would need more than most machines allow.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import casacore.tables as ct
import numpy as np

from chunkcal.products import ProductError, Slots, opened, read_slots

# Where TIME differs from DP3's own grid by less, it is rounding: one unit in the last place of MJD s is 1 us.
ROUNDING_S = 5e-6
_BLOCK_BYTES = 512 << 10  # of a column in memory at a time, see products._BLOCK_BYTES


def dp3_times(first_time: float, interval_s: float, n_slots: int, averaging: int = 1) -> np.ndarray:
    """TIME of the slots that one DP3 run over a whole MeasurementSet writes.

    In double precision these are not what runs over chunks write: each run counts from its own first slot, so a slot's
    time may be off by one unit in the last place (1 us) unless the interval has few binary digits.

    Parameters
    ----------
    first_time, interval_s : float
        TIME (MJD s) and INTERVAL (s) of the first slot of the input.
    n_slots : int
        Number of slots of the output.
    averaging : int
        Slots that an averager makes into one.

    Returns
    -------
    (n_slots,) float64
        MJD s; steps/MsReader.cc (``process``) and steps/Averager.cc of DP3 6.6.
    """
    times = first_time + (np.arange(n_slots) * averaging) * interval_s
    return times + 0.5 * (interval_s * averaging - interval_s)


def join(
    chunks: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    expects: Sequence[Mapping[str, float]] | None = None,
    times: np.ndarray | None = None,
) -> dict:
    """Join chunks along time into a new MeasurementSet.

    Everything but the rows comes from the earliest chunk; OBSERVATION::TIME_RANGE becomes that of the whole, and
    HISTORY gets a row that says what happened. TIME (and TIME_CENTROID, where it equals TIME, as in all that DP3
    writes) is put where one DP3 run over everything would have put it, if it differs from that by rounding only.

    Parameters
    ----------
    chunks : sequence of path
        In any order. They are only read.
    out : path
        Must not exist. Written under a temporary name beside it and renamed when verified.
    expects : sequence of mapping, optional
        For each chunk, what `products.verify_ms` expects of its times. Without it, missing chunks are not noticed.
    times : (n_slots,) float64, optional
        TIME of all slots of the joined set; default ``first TIME + k * INTERVAL``. Chunks that were averaged from a
        MeasurementSet need ``dp3_times`` of that.

    Returns
    -------
    dict
        n_chunks, n_rows, n_slots, n_baselines; first_time, last_time (TIME, MJD s).

    Raises
    ------
    ProductError
        Naming the chunk: it does not have what is expected of it, overlaps another, or has other columns, baselines,
        stations or frequencies; or the joined set is not what the chunks are.
    """
    if not chunks:
        raise ProductError(f"there are no chunks to join into {out}")
    if Path(out).exists():
        raise ProductError(f"{out} exists already; a joined MeasurementSet never replaces another")
    expects = expects if expects is not None else [{}] * len(chunks)
    parts = [_part(path, expect) for path, expect in zip(chunks, expects, strict=True)]
    parts.sort(key=lambda part: part.slots.times[0])
    _refuse_misfits(parts)
    old = np.concatenate([part.slots.times for part in parts])
    new = _grid(old, parts[0].slots.interval_s, times, out)
    temporary = Path(f"{out}.tmp-{uuid.uuid4().hex}")
    try:
        _copy(parts, temporary)
        _set_times(temporary, old, new, parts[0].slots.n_baselines)
        _set_time_range(temporary)
        _add_history(temporary, parts)
        _verify(parts, temporary, new)
        os.rename(temporary, out)
    except (RuntimeError, OSError) as error:
        # Of all the files that could not be copied, the first one tells.
        first = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise ProductError(f"{out} cannot be written: {' '.join(str(first).split())}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {
        "n_chunks": len(parts),
        "n_rows": len(new) * parts[0].slots.n_baselines,
        "n_slots": len(new),
        "n_baselines": parts[0].slots.n_baselines,
        "first_time": float(new[0]),
        "last_time": float(new[-1]),
    }


@dataclass(frozen=True)
class _Part:
    path: str
    slots: Slots
    layout: dict[str, object]  # what all chunks must share, by what to call it

    @property
    def n_rows(self) -> int:
        return len(self.slots.times) * self.slots.n_baselines


def _part(path: str | os.PathLike, expect: Mapping[str, float]) -> _Part:
    path = os.fspath(path)
    layout: dict[str, object] = {}
    with opened(path) as table:
        slots = read_slots(table, path, expect)
        names = sorted(table.colnames())
        layout["columns"] = names
        for name in names:
            if not table.isscalarcol(name) and table.iscelldefined(name, 0):
                layout[f"the shape of {name}"] = np.shape(table.getcell(name, 0))
    for subtable, column in (("ANTENNA", "NAME"), ("SPECTRAL_WINDOW", "CHAN_FREQ"), ("POLARIZATION", "CORR_TYPE")):
        with opened(f"{path}/{subtable}") as table:
            cells = [np.asarray(table.getcell(column, row)).tolist() for row in range(table.nrows())]
            layout[f"{subtable}::{column}"] = cells
    layout["ANTENNA1"], layout["ANTENNA2"] = slots.antenna1.tolist(), slots.antenna2.tolist()
    return _Part(path, slots, layout)


def _refuse_misfits(parts: Sequence[_Part]) -> None:
    first = parts[0]
    for before, part in zip(parts, parts[1:], strict=False):
        for what in {**first.layout, **part.layout}:
            if part.layout.get(what) != first.layout.get(what):
                raise ProductError(f"{part.path} cannot be joined to {first.path}: {what} differ")
        # Half an interval: neither a slot that two chunks hold nor one that lies between two slots.
        if part.slots.times[0] - before.slots.times[-1] < 0.5 * first.slots.interval_s:
            raise ProductError(
                f"{part.path} overlaps {before.path}: it begins at {part.slots.times[0]:.3f} (MJD s), where the other"
                f" goes on until {before.slots.times[-1]:.3f}"
            )


def _grid(old: np.ndarray, interval: float, times: np.ndarray | None, out: str | os.PathLike) -> np.ndarray:
    """TIME of the joined slots; see `join`."""
    if times is not None:
        times = np.asarray(times, np.float64)
        if times.shape != old.shape or not (np.abs(times - old) < ROUNDING_S).all():
            raise ProductError(f"{out}: the chunks' {len(old)} times are not the {times.size} that were expected")
        return times
    exact = old[0] + np.rint((old - old[0]) / interval) * interval
    return exact if (np.abs(exact - old) < ROUNDING_S).all() else old


def _copy(parts: Sequence[_Part], out: Path) -> None:
    # Not table.copy: casacore hands the paths to a shell (`cp -r`), where a quote in a folder's name does harm.
    out.mkdir()
    shutil.copytree(parts[0].path, out, dirs_exist_ok=True)
    with ct.table(str(out), readonly=False, ack=False) as joined:
        for part in parts[1:]:
            with opened(part.path) as table, _copying(part, out):
                start = joined.nrows()
                joined.addrows(part.n_rows)
                _copy_rows(table, joined, start)


def _copy_rows(table: ct.table, joined: ct.table, start: int) -> None:
    """Copy all rows to those from `start` on, column by column: half the CPU time of casacore's row by row.

    Columns whose cells may have different shapes, or none, are left to casacore.
    """
    uneven = []
    for name in table.colnames():
        if not table.isscalarcol(name) and table.isvarcol(name):
            if _has_cells(table, name):
                uneven.append(name)
            continue
        step = max(1, _BLOCK_BYTES // max(1, np.asarray(table.getcell(name, 0)).nbytes))
        for row in range(0, table.nrows(), step):
            n = min(step, table.nrows() - row)
            joined.putcol(name, table.getcol(name, row, n), start + row, n)
    if uneven:
        with table.query(columns=",".join(uneven)) as rest:
            rest.copyrows(joined, startrowout=start)


def _has_cells(table: ct.table, name: str) -> bool:
    """Tell whether a column of arrays holds any: FLAG_CATEGORY of what DP3 writes does not."""
    with table.query(f"isdefined({name})", limit=1) as found:
        return found.nrows() > 0


@contextmanager
def _copying(part: _Part, out: Path) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # a damaged chunk, or no room for the copy: casacore's words tell
        raise ProductError(f"{part.path} cannot be copied to {out}: {' '.join(str(error).split())}") from error


def _set_times(out: Path, old: np.ndarray, new: np.ndarray, n_baselines: int) -> None:
    changed = np.flatnonzero(old != new)
    with ct.table(str(out), readonly=False, ack=False) as table:
        for slot in changed.tolist():
            rows = (slot * n_baselines, n_baselines)
            value = np.full(n_baselines, new[slot])
            if (table.getcol("TIME_CENTROID", *rows) == old[slot]).all():
                table.putcol("TIME_CENTROID", value, *rows)
            table.putcol("TIME", value, *rows)


def _set_time_range(out: Path) -> None:
    """Set OBSERVATION::TIME_RANGE to the ends of the first and last interval, in all rows, as DP3 does."""
    with ct.table(str(out), ack=False) as table:
        ends = [
            table.getcell("TIME", row) + sign * 0.5 * table.getcell("INTERVAL", row)
            for row, sign in ((0, -1), (table.nrows() - 1, 1))
        ]
    with ct.table(f"{out}/OBSERVATION", readonly=False, ack=False) as table:
        for row in range(table.nrows()):
            table.putcell("TIME_RANGE", row, np.array(ends))


def _add_history(out: Path, parts: Sequence[_Part]) -> None:
    """Say that the rows before this one are the first chunk's. Without a clock: equal chunks give equal tables."""
    with ct.table(f"{out}/HISTORY", readonly=False, ack=False) as table:
        row = table.nrows()
        last = table.getcell("TIME", row - 1) if row else parts[0].slots.times[0]
        table.addrows(1)
        values = {
            "TIME": last,
            "OBSERVATION_ID": 0,
            "MESSAGE": f"joined {len(parts)} chunks along time; earlier entries are those of the first chunk",
            "PRIORITY": "NORMAL",
            "ORIGIN": "chunkcal",
            "APPLICATION": "chunkcal",
            "OBJECT_ID": 0,
        }
        for name, value in values.items():
            if name in table.colnames():
                table.putcell(name, row, value)


def _verify(parts: Sequence[_Part], out: Path, times: np.ndarray) -> None:
    """Compare the joined set with each chunk: all times and baselines, and the data of its first and last row."""
    n_baselines = parts[0].slots.n_baselines
    with opened(out) as joined:
        n_rows = sum(part.n_rows for part in parts)
        if joined.nrows() != n_rows:
            raise ProductError(f"{out} has {joined.nrows()} rows, its chunks have {n_rows}")
        slot = 0
        for part in parts:
            n, start = len(part.slots.times), slot * n_baselines
            if not np.array_equal(
                joined.getcol("TIME", start, part.n_rows), times[slot : slot + n].repeat(n_baselines)
            ):
                raise ProductError(f"{out}: the times of {part.path} did not arrive from row {start} on")
            with opened(part.path) as table:
                for row in {0, part.n_rows - 1}:
                    for name in set(part.layout["columns"]) - {"TIME", "TIME_CENTROID"}:
                        if table.iscelldefined(name, row) and not _same(table, row, joined, start + row, name):
                            raise ProductError(f"{out}: {name} of row {row} of {part.path} did not arrive")
            slot += n


def _same(table: ct.table, row: int, joined: ct.table, joined_row: int, name: str) -> bool:
    one, other = (np.asarray(t.getcell(name, r)) for t, r in ((table, row), (joined, joined_row)))
    if one.dtype == object:  # arrays of strings
        return one.tolist() == other.tolist()
    return one.shape == other.shape and one.tobytes() == other.tobytes()
