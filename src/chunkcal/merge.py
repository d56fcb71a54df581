"""Merges the h5parms of chunks along time, and proves that they cover the solution grid exactly once.

The merged `val`, `weight` and `time` are, bit for bit, those of one DDECal run over the whole observation.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from chunkcal.errors import UserError
from chunkcal.h5parm import (
    FREQUENCY_TOLERANCE_HZ,
    axes_of,
    check,
    interval_range,
    one_line,
    opened,
    solution_times,
    text_of,
)

SPARE_BYTES = 64 << 10  # what HDF5 may need besides: the chunks' files hold all tables and axes already


@dataclass(frozen=True)
class Tile:
    """The place of one chunk's solutions on the solution grid of the observation."""

    name: str  # of the chunk, for messages
    first: int  # index of its first solution
    n_solutions: int


@dataclass(frozen=True)
class Grid:
    """The solution grid that the merged chunks must cover exactly once.

    Attributes
    ----------
    tiles : tuple of Tile
        One for each file, in the order in which the files are given.
    start_s, interval_s : float, optional
        Start of the first interval (MJD s) and length of an interval (s). DP3 puts solution k at
        ``start + (k + 0.5) * interval`` with start = TIME - INTERVAL / 2 of the first time slot and interval =
        INTERVAL x solint, in double precision. Chunks start that sum afresh, so their times are off by one
        unit in the last place (1 us) now and then; given these two, the merged time axis is exactly that of
        one solve over everything.
    gaps : tuple of (first, n_solutions)
        Solutions that no chunk holds because there are no data: they are written as NaN with weight 0,
        as DDECal writes them. Needs `start_s` and `interval_s`.
    """

    tiles: tuple[Tile, ...]
    start_s: float | None = None
    interval_s: float | None = None
    gaps: tuple[tuple[int, int], ...] = ()
    n_solutions: int = field(init=False)

    def __post_init__(self) -> None:
        pieces = sorted([(t.first, t.n_solutions) for t in self.tiles] + list(self.gaps))
        end = 0
        for first, n in pieces:
            if first != end or n < 1:
                raise ValueError(f"the grid's tiles and gaps do not follow each other at solution {end}")
            end += n
        if self.gaps and (self.start_s is None or self.interval_s is None):
            raise ValueError("a grid with gaps needs start_s and interval_s")
        object.__setattr__(self, "n_solutions", end)

    @classmethod
    def of(cls, names: Sequence[str], counts: Sequence[int], **times: float | None) -> Grid:
        """Grid of chunks that follow each other without gaps: their names and numbers of solutions."""
        firsts = np.cumsum([0, *counts])
        return cls(tuple(Tile(*tile) for tile in zip(names, firsts[:-1].tolist(), counts, strict=True)), **times)


def merge(chunks: Sequence[str | os.PathLike], out: str | os.PathLike, grid: Grid | None = None) -> dict:
    """Merge the h5parms of chunks along time into one, as if one solve had made it.

    One table of one chunk is in memory at a time. Chunks whose antennas, directions or polarizations have another
    order than the earliest chunk's are re-ordered by name; everything but `val`, `weight` and `time` is the earliest
    chunk's. The same chunks give the same bytes, in whatever order they are given: wall-clock times, and the keys
    that make one chunk's parset differ from another's, are left out of the history that DP3 wrote.

    Parameters
    ----------
    chunks : sequence of path
        In any order; with `grid`, in the order of its tiles.
    out : path
        Written under a temporary name beside it and renamed when complete.
    grid : Grid, optional
        What the chunks must be. Without it, a missing first or last chunk cannot be noticed.

    Returns
    -------
    dict
        As `check` of the merged file.

    Raises
    ------
    UserError
        Naming file and solution: the tiles overlap, leave a hole, lie off the grid, or hold other tables,
        axes, antennas, directions or frequencies than the earliest.
    """
    if not chunks:
        raise UserError(f"no chunks to merge into {out}; give at least one h5parm")
    if grid is not None and len(grid.tiles) != len(chunks):
        raise UserError(f"{len(chunks)} h5parms cannot be {len(grid.tiles)} chunks of {out}; give one for each chunk")
    parts = [_part(path) for path in chunks]
    firsts, times = _place(parts, grid)
    order = np.argsort(firsts, kind="stable")
    _refuse_full_disk(chunks, out)
    temporary = Path(f"{out}.tmp-{uuid.uuid4().hex}")
    try:
        with h5py.File(temporary, "w", locking=False) as merged, opened(parts[order[0]].path) as reference:
            _create_like(reference, merged, len(times))
            for index in order:
                with opened(parts[index].path) as chunk:
                    _write_tile(chunk, parts[index].path, reference, merged, int(firsts[index]))
            for first, n in grid.gaps if grid else ():
                _write_gap(merged, first, n)
            for solset in merged.values():
                for group in _tables(solset):
                    group["time"][:] = times
        summary = check(temporary, len(times))
        os.replace(temporary, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({one_line(error)}); check the folder and its free space") from error
    finally:
        temporary.unlink(missing_ok=True)
    return summary


def _refuse_full_disk(chunks: Sequence[str | os.PathLike], out: str | os.PathLike) -> None:
    """Make sure of the room beforehand: HDF5 1.14 crashes (SIGSEGV) when it closes a file on a full disk."""
    need = sum(os.path.getsize(path) for path in chunks) + SPARE_BYTES
    folder = Path(out).absolute().parent
    free = shutil.disk_usage(folder).free if folder.is_dir() else need
    if free < need:
        raise UserError(
            f"{out} cannot be written: it may take {need / 1e6:.1f} MB, and {free / 1e6:.1f} MB are free in {folder};"
            " make room"
        )


@dataclass(frozen=True)
class _Part:
    path: str | os.PathLike
    times: np.ndarray  # (n_solutions,) MJD s


def _part(path: str | os.PathLike) -> _Part:
    return _Part(path, solution_times(path))


def _place(parts: Sequence[_Part], grid: Grid | None) -> tuple[np.ndarray, np.ndarray]:
    """Find the place of every part on the solution grid, and prove that they cover it exactly once.

    Returns
    -------
    firsts : (n_parts,) int
        Index of each part's first solution.
    times : (n_solutions,) float64
        Time axis of the whole, MJD s.
    """
    interval = grid.interval_s if grid and grid.interval_s else _interval(parts)
    exact = grid is not None and grid.start_s is not None and grid.interval_s is not None
    origin = grid.start_s + 0.5 * interval if exact else min(part.times[0] for part in parts)
    # 1e-2 s is how far off its place DP3 lets a time slot be. Without an exact grid, the interval's rounding adds up.
    step_tolerance = min(max(1e-2, 0.01 * interval), 0.25 * interval)
    tolerance = step_tolerance if exact else 0.25 * interval
    order = np.argsort([part.times[0] for part in parts], kind="stable")
    places: dict[int, np.ndarray] = {}
    before: tuple[_Part, int] | None = None
    for i in order:
        part = parts[i]
        index = places[i] = np.rint((part.times - origin) / interval).astype(int)
        bad = np.abs(part.times - origin - index * interval) > tolerance
        bad[1:] |= np.abs(np.diff(part.times) - interval) > step_tolerance
        _refuse_off_grid(part, bad, interval)
        if before is not None:
            last, end = before
            _refuse_overlap_or_hole(last, part, end + 1, index[0], origin, interval, grid)
            bad[0] = abs(part.times[0] - last.times[-1] - (index[0] - end) * interval) > step_tolerance
            _refuse_off_grid(part, bad, interval)
        before = part, int(index[-1])
    if grid is not None:
        for i, tile in enumerate(grid.tiles):
            if (places[i][0], len(places[i])) != (tile.first, tile.n_solutions):
                raise UserError(
                    f"h5parm {parts[i].path} holds solutions {places[i][0]} to {places[i][-1]}, but chunk {tile.name}"
                    f" has {tile.first} to {tile.first + tile.n_solutions - 1}; solve that chunk again"
                )
    firsts = np.array([places[i][0] for i in range(len(parts))])
    if exact:
        return firsts, grid.start_s + (np.arange(grid.n_solutions) + 0.5) * grid.interval_s
    return firsts, np.concatenate([parts[i].times for i in order])


def _interval(parts: Sequence[_Part]) -> float:
    """Solution interval, s, from the times within the parts, else from those between them."""
    within = np.concatenate([np.diff(part.times) for part in parts])
    if len(within):
        return float(np.median(within))
    between = np.diff(np.unique([part.times[0] for part in parts]))
    return float(between.min()) if len(between) else 1.0  # a single solution lies on any grid


def _refuse_off_grid(part: _Part, bad: np.ndarray, interval: float) -> None:
    if bad.any():
        k = int(np.argmax(bad))
        raise UserError(
            f"h5parm {part.path}: solution {k} of it, at {part.times[k]:.3f} (MJD s), is not on the grid of"
            f" {interval:.6g} s that the solutions before it make; solve that chunk again"
        )


def _refuse_overlap_or_hole(
    last: _Part, part: _Part, end: int, start: int, origin: float, interval: float, grid: Grid | None
) -> None:
    """Refuse that solution `start`, the first of `part`, is not `end`, the one after those of `last`."""
    if start < end:
        raise UserError(
            f"h5parms {last.path} and {part.path} both hold solution {start} at {origin + start * interval:.3f}"
            " (MJD s); leave out one of them or solve that chunk again"
        )
    gaps = {i for first, n in (grid.gaps if grid else ()) for i in range(first, first + n)}
    missing = [i for i in range(end, start) if i not in gaps]
    if missing:
        raise UserError(
            f"no h5parm holds solution {missing[0]} at {origin + missing[0] * interval:.3f} (MJD s), between"
            f" {last.path} and {part.path}; solve the missing chunk"
        )


def _tables(solset: h5py.Group) -> list[h5py.Group]:
    return [item for item in solset.values() if isinstance(item, h5py.Group)]


def _create_like(source: h5py.Group, target: h5py.Group, n_time: int) -> None:
    """Create everything that `source` has, with `n_time` solutions; `val`, `weight` and `time` stay empty."""
    _copy_attributes(source, target)
    axes = axes_of(source) if "val" in source else []
    for name, item in source.items():
        if isinstance(item, h5py.Group):
            _create_like(item, target.create_group(name), n_time)
            continue
        along_time = {"time": ["time"], "val": axes, "weight": axes}.get(name, []) if axes else []
        shape = tuple(n_time if axis == "time" else n for axis, n in zip(along_time, item.shape, strict=False))
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_obj_track_times(False)  # the same chunks shall give the same bytes
        # DP3 reads strings as null-terminated. In h5py's own type, padded, each would lose its last character.
        kind = item.id.get_type()
        if item.dtype.kind == "O":
            raise UserError(f"{item.file.filename}: {item.name} is of variable length; give an h5parm that DP3 wrote")
        space = h5py.h5s.create_simple(shape or item.shape)
        created = h5py.h5d.create(target.id, name.encode(), kind, space, properties)
        if not along_time:
            raw = np.empty(item.shape, f"V{kind.get_size()}")
            item.id.read(h5py.h5s.ALL, h5py.h5s.ALL, raw, kind)
            created.write(h5py.h5s.ALL, h5py.h5s.ALL, raw, kind)
        _copy_attributes(item, h5py.Dataset(created))


# What DP3 writes in front of its history, and the keys that are one chunk's own.
_WALL_CLOCK = re.compile(r"^\d\d-\d\d-\d{4} \d\d:\d\d:\d\d: ")
_OF_ONE_CHUNK = re.compile(r"^(numthreads|msin\.(starttime|starttimeslot|endtime|ntimes))=.*\n?", re.MULTILINE)


def _copy_attributes(source: h5py.HLObject, target: h5py.HLObject) -> None:
    for name, value in source.attrs.items():
        if name.startswith("HISTORY"):
            text = _OF_ONE_CHUNK.sub("", _WALL_CLOCK.sub("", text_of(value)))
            value = np.bytes_(text.rstrip("\n").encode() + b"\nmerged along time by chunkcal\n")
        target.attrs[name] = value


def _write_tile(chunk: h5py.File, path: str | os.PathLike, reference: h5py.File, merged: h5py.File, first: int) -> None:
    """Write the solutions of one chunk from solution `first` on."""
    _refuse_other_members(chunk, reference, path)
    for solset in reference.values():
        own_solset = chunk[solset.name]
        _refuse_other_members(own_solset, solset, path)
        for name in {"antenna", "source"} & set(solset):
            _refuse_other_rows(own_solset[name], solset[name], path)
        for group in _tables(solset):
            own = chunk[group.name]
            axes, own_axes = axes_of(group), axes_of(own)
            if sorted(axes) != sorted(own_axes) or own.attrs["TITLE"] != group.attrs["TITLE"]:
                raise _other(path, f"{group.name} has another kind or other axes ({','.join(own_axes)})")
            picks = [_pick(own, group, axis, path) for axis in axes]
            for name in ("val", "weight"):
                values = _read(own[name], path).transpose([own_axes.index(axis) for axis in axes])
                for i, pick in enumerate(picks):
                    values = values if pick is None else values.take(pick, axis=i)
                n = values.shape[axes.index("time")]
                merged[group.name][name][interval_range(axes, first, n)] = values


def _read(dataset: h5py.Dataset, path: str | os.PathLike) -> np.ndarray:
    try:
        return dataset[()]
    except OSError as error:
        raise _other(path, f"{dataset.name} cannot be read ({one_line(error)})") from error


def _pick(own: h5py.Group, reference: h5py.Group, axis: str, path: str | os.PathLike) -> np.ndarray | None:
    """Indices that put an axis of a chunk into the order of the first chunk; None if it is so already."""
    if axis == "time" or axis not in reference:  # TEC screens have axes without values of their own
        return None
    wanted, has = reference[axis][:], own[axis][:]
    if axis == "freq":
        if wanted.shape != has.shape or (np.abs(wanted - has) > FREQUENCY_TOLERANCE_HZ).any():
            raise _other(path, f"{own.name} has other frequencies")
        return None
    if np.array_equal(wanted, has):
        return None
    place = {value: i for i, value in enumerate(has.tolist())}
    odd = sorted(text_of(value) for value in place.keys() ^ set(wanted.tolist()))
    if odd or len(place) != len(has):
        raise _other(path, f"{own.name} has another axis {axis} ({', '.join(odd) or 'a name occurs twice'})")
    return np.array([place[value] for value in wanted.tolist()])


def _refuse_other_rows(own: h5py.Dataset, reference: h5py.Dataset, path: str | os.PathLike) -> None:
    """Refuse a table of antennas or directions whose names or places differ; the order of rows is free."""
    (value,) = set(reference.dtype.names) - {"name"}
    tolerance = 0.1 if value == "position" else 1e-6  # m, rad
    wanted, has = ({row["name"]: row[value].astype(float) for row in table[:]} for table in (reference, own))
    odd = wanted.keys() ^ has.keys()
    odd |= {name for name in wanted.keys() & has.keys() if np.abs(wanted[name] - has[name]).max() > tolerance}
    if odd:
        raise _other(path, f"{own.name} differs in {', '.join(sorted(map(text_of, odd)))}")


def _refuse_other_members(own: h5py.Group, reference: h5py.Group, path: str | os.PathLike) -> None:
    if set(own) != set(reference):
        raise _other(path, f"{own.name} has {', '.join(own)}, not {', '.join(reference)}")


def _other(path: str | os.PathLike, reason: str) -> UserError:
    return UserError(f"h5parm {path} does not fit the other chunks: {reason}; solve that chunk again")


def _write_gap(merged: h5py.File, first: int, n: int) -> None:
    for solset in merged.values():
        for group in _tables(solset):
            place = interval_range(axes_of(group), first, n)
            group["val"][place] = np.nan
            group["weight"][place] = 0.0
