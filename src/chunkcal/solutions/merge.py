"""Merges the h5parms of chunks along time, and proves that they cover the solution grid exactly once.

The merged `val`, `weight` and `time` are, bit for bit, those of one DDECal run over the whole observation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import h5py
import numpy as np

from chunkcal.errors import UserError
from chunkcal.solutions.h5layout import (
    TIME_TOLERANCE_S,
    Layout,
    Member,
    copy_solutions,
    create_like,
    tables_of,
    written,
)
from chunkcal.solutions.h5parm import axes_of, check, interval_range, opened, solution_times


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


def merge(chunks: Sequence[str | os.PathLike | None], out: str | os.PathLike, grid: Grid | None = None) -> dict:
    """Merge the h5parms of chunks along time into one, as if one solve had made it.

    One table of one chunk is in memory at a time. Chunks whose antennas, directions or polarizations have another
    order than the earliest chunk's are re-ordered by name; everything but `val`, `weight` and `time` is the earliest
    chunk's. The same chunks give the same bytes, in whatever order they are given: wall-clock times, and the keys
    that make one chunk's parset differ from another's, are left out of the history that DP3 wrote.

    Parameters
    ----------
    chunks : sequence of path or None
        In any order; with `grid`, in the order of its tiles. None stands for a chunk that failed: its solutions are
        written as NaN with weight 0, because applycal would silently fill a hole with the nearest solutions. The
        history names such chunks. They need a `grid` with `start_s` and `interval_s`.
    out : path
        Written under a temporary name beside it and renamed when complete.
    grid : Grid, optional
        What the chunks must be. Without it, a missing first or last chunk cannot be noticed.

    Returns
    -------
    dict
        As `check` of the merged file, and `failed_chunks`: the names of those that are None.

    Raises
    ------
    UserError
        Naming file and solution: the tiles overlap, leave a hole, lie off the grid, or hold other tables,
        axes, antennas, directions or frequencies than the earliest. Or all chunks failed.
    """
    if not chunks:
        raise UserError(f"no chunks to merge into {out}; give at least one h5parm")
    if grid is not None and len(grid.tiles) != len(chunks):
        raise UserError(f"{len(chunks)} h5parms cannot be {len(grid.tiles)} chunks of {out}; give one for each chunk")
    good, grid, failed = _without_failed(chunks, out, grid)
    parts = [_Part(path, solution_times(path)) for path in good]
    firsts, times = _place(parts, grid)
    order = np.argsort(firsts, kind="stable")
    note = "merged along time by chunkcal"
    if failed:
        note += f"; NaN with weight 0, because it failed: {', '.join(failed)}"
    n_bytes = sum(os.path.getsize(path) for path in good) * len(times) // sum(len(part.times) for part in parts)
    with written(out, n_bytes) as temporary:
        with h5py.File(temporary, "w", locking=False) as merged, opened(parts[order[0]].path) as reference:
            create_like(reference, merged, "time", len(times), note)
            layout = Layout.of(reference)
            for index in order:
                member = Member(parts[index].path, "chunks", "solve that chunk again")
                with opened(member.path) as chunk:
                    copy_solutions(chunk, member, layout, merged, "time", int(firsts[index]))
            for first, n in grid.gaps if grid else ():
                _write_gap(merged, first, n)
            for solset in merged.values():
                for group in tables_of(solset):
                    group["time"][:] = times
        summary = check(temporary, len(times))
    return summary | {"failed_chunks": failed}


def _without_failed(
    chunks: Sequence[str | os.PathLike | None], out: str | os.PathLike, grid: Grid | None
) -> tuple[list[str | os.PathLike], Grid | None, list[str]]:
    """Turn the tiles of failed chunks into gaps; gives the good chunks, their grid and the names of the failed ones."""
    good = [path for path in chunks if path is not None]
    if len(good) == len(chunks):
        return good, grid, []
    if grid is None:
        raise ValueError("only a grid tells the place of a chunk that failed")
    if not good:
        raise UserError(f"all {len(chunks)} chunks of {out} failed, so there are no solutions; look at their logs")
    tiles = [(tile, path is not None) for tile, path in zip(grid.tiles, chunks, strict=True)]
    failed = [tile for tile, is_good in tiles if not is_good]
    gaps = (*grid.gaps, *((tile.first, tile.n_solutions) for tile in failed))
    grid = replace(grid, tiles=tuple(tile for tile, is_good in tiles if is_good), gaps=gaps)
    return good, grid, [tile.name for tile in failed]


@dataclass(frozen=True)
class _Part:
    path: str | os.PathLike
    times: np.ndarray  # (n_solutions,) MJD s


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
    # Without an exact grid, the interval's rounding adds up.
    step_tolerance = min(max(TIME_TOLERANCE_S, 0.01 * interval), 0.25 * interval)
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


def _write_gap(merged: h5py.File, first: int, n: int) -> None:
    for solset in merged.values():
        for group in tables_of(solset):
            place = interval_range(axes_of(group), first, n)
            group["val"][place] = np.nan
            group["weight"][place] = 0.0
