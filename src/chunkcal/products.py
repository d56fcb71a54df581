"""Verification of what DP3 leaves behind, before a chunk's product gets its final name.

DP3 returns 0 for a chunk past the end of the data, for data that are all flagged and for NaN weights, and a product
that a full disk or a kill cut short is a readable MeasurementSet with fewer rows. So nothing is believed: rows, time
grid, every column and every file of the product are looked at.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import casacore.tables as ct
import numpy as np

from chunkcal.errors import UserError
from chunkcal.flagging.flags import FlagCounter
from chunkcal.solutions import h5parm

TIME_TOLERANCE_S = 1e-2  # DP3's msin.timetolerance: how far a time slot may be off the grid
# The MeasurementSet's subtables that DP3 and WSClean read.
_SUBTABLES = ("ANTENNA", "DATA_DESCRIPTION", "FEED", "FIELD", "OBSERVATION", "POLARIZATION", "SPECTRAL_WINDOW")
# Of a column in memory at a time: blocks that stay in the processor's cache, and below what malloc gives back to the
# system each time, take half the CPU time of 32 MB.
_BLOCK_BYTES = 512 << 10
_BUCKETS_BYTES = 32 << 20  # of the station columns, see `_keep_buckets`
_BUCKETS_OF_CASACORE = 2  # that it keeps by itself
_BLOCK_ROWS = 1 << 17  # of a scalar column in memory at a time


class ProductError(Exception):
    """A product that must not be used: says what is wrong and where, in one line."""


@dataclass(frozen=True)
class Slots:
    """The time slots of a MeasurementSet.

    Attributes
    ----------
    times : (n_slots,) float64
        TIME of each slot, MJD s.
    interval_s : float
        INTERVAL of the first row.
    antenna1, antenna2 : (n_baselines,) int
        The baselines, in the order of the rows of every slot.
    """

    times: np.ndarray
    interval_s: float
    antenna1: np.ndarray
    antenna2: np.ndarray

    @property
    def n_baselines(self) -> int:
        """Rows of a slot."""
        return len(self.antenna1)


def verify_ms(path: str | os.PathLike, expect: Mapping[str, float]) -> dict:
    """Verify a MeasurementSet that DP3 wrote.

    Parameters
    ----------
    path : path
        The MeasurementSet.
    expect : mapping
        Any of `first_time` (TIME of the first slot, MJD s), `interval_s` and `n_slots`. Without the first two, the
        grid is that of the MeasurementSet's own first slot and INTERVAL.

    Returns
    -------
    dict
        n_rows, n_slots, n_baselines, n_channels (int); flagged: as `flag_fractions`.

    Raises
    ------
    ProductError
        Rows are missing or too many, a time slot is off the grid, the baselines of the slots differ, or a file
        is cut short.
    """
    with opened(path) as table:
        _refuse_short_array_files(path)
        slots = read_slots(table, path, expect)
        _read_ends(table, path)
        shape = np.shape(_column(table, path, "FLAG", 0, 1))[1:]
        if len(shape) != 2:
            raise ProductError(f"{path}: FLAG has cells of shape {shape} instead of (channels, correlations)")
        for name in _SUBTABLES:
            with opened(Path(path) / name) as subtable:
                _read_ends(subtable, Path(path) / name)
        return {
            "n_rows": int(table.nrows()),
            "n_slots": len(slots.times),
            "n_baselines": slots.n_baselines,
            "n_channels": int(shape[0]),
            "flagged": _flag_fractions(table, path, 0, int(table.nrows())),
        }


def settle_nan_weights(path: str | os.PathLike, policy: str) -> int:
    """Flag visibilities whose WEIGHT_SPECTRUM is not finite, and give them the weight 0.

    DDECal would make all solutions of their stations NaN (tried with DP3 6.6).

    Parameters
    ----------
    path : path
        A product that nobody else uses yet.
    policy : {"flag", "refuse"}
        The configuration's ``calibrate.nan_weights``.

    Returns
    -------
    int
        Number of visibilities.

    Raises
    ------
    ProductError
        There are some, and the policy is refuse.
    """
    count = 0
    with opened(path) as table:
        n_rows = int(table.nrows())
        cell = int(np.prod(np.shape(_column(table, path, "FLAG", 0, 1)))) if n_rows else 1
        step = max(1, _BLOCK_BYTES // (4 * cell))
        blocks = [(start, min(step, n_rows - start)) for start in range(0, n_rows, step)]
        bad = {start: ~np.isfinite(_column(table, path, "WEIGHT_SPECTRUM", start, n)) for start, n in blocks}
        bad = {start: where for start, where in bad.items() if where.any()}
        count = sum(int(where.sum()) for where in bad.values())
    if count and policy == "refuse":
        raise ProductError(
            f"{path}: {count} weights are NaN, which would make the solutions of their stations NaN; set"
            " calibrate.nan_weights: flag, or repair WEIGHT_SPECTRUM of the input"
        )
    if count:
        with ct.table(str(path), readonly=False, ack=False) as table:
            for start, where in bad.items():
                for name, value in (("FLAG", True), ("WEIGHT_SPECTRUM", 0.0)):
                    column = table.getcol(name, start, len(where))
                    column[where] = value
                    table.putcol(name, column, start, len(where))
    return count


def flag_fractions(path: str | os.PathLike, row_start: int = 0, n_rows: int | None = None) -> dict:
    """Count the flags of a MeasurementSet or of a range of its rows, block by block.

    Returns
    -------
    dict
        total: flagged / all cross-correlations of these rows; stations: by name, the same over those with that
        station (stations that have none are left out); counts: as `FlagCounter.result`, None without rows.

    Raises
    ------
    ProductError
        The MeasurementSet cannot be read or does not have these rows.
    """
    with opened(path) as table:
        available = int(table.nrows())
        n_rows = available - row_start if n_rows is None else n_rows
        if not (0 <= row_start <= row_start + n_rows <= available):
            raise ProductError(f"{path} has {available} rows, not rows {row_start} to {row_start + n_rows - 1}")
        return _flag_fractions(table, path, row_start, n_rows)


def verify_h5parm(path: str | os.PathLike, expect: Mapping[str, float], has_data: bool = True) -> dict:
    """Verify an h5parm that DDECal wrote.

    Parameters
    ----------
    path : path
        The h5parm.
    expect : mapping
        Any of `n_solutions`, `first_time` (centre of the first solution interval, MJD s) and `interval_s` (length of
        a solution interval).
    has_data : bool
        Whether unflagged visibilities went in. If so, solutions that are all NaN are refused; if not, they are what
        must come out.

    Returns
    -------
    dict
        As `h5parm.check`.

    Raises
    ------
    ProductError
        The file cannot be read, its solutions are not those expected, or none is usable though there were data.
    """
    try:
        found = h5parm.check(path, expect.get("n_solutions"))
    except UserError as error:
        raise ProductError(str(error)) from error
    for name in ("first_time", "interval_s"):
        wanted, has = expect.get(name), found[name]
        if wanted is not None and has is not None and abs(has - wanted) > TIME_TOLERANCE_S:
            raise ProductError(f"{path}: {name} of the solutions is {has:.3f} instead of {wanted:.3f} s")
    if has_data and found["finite_fraction"] == 0:
        raise ProductError(
            f"{path}: all {found['n_solutions']} solution intervals are NaN though there are unflagged data; usual"
            " causes are NaN in WEIGHT_SPECTRUM of the input and a model without flux"
        )
    return found


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[ct.table]:
    """Open a table for reading; what casacore cannot read in it is an error of the product."""
    if not (Path(path) / "table.dat").is_file():
        raise ProductError(f"{path} is not a table: there is no table.dat in it")
    with _readable(path, "table.dat"):
        table = ct.table(str(path), ack=False, lockoptions="usernoread")  # else a lock on it is waited for
    try:
        with _readable(path, "a part"):
            _keep_buckets(table)
            yield table
    finally:
        table.close()


def _keep_buckets(table: ct.table) -> None:
    """Let casacore keep what it reads of ANTENNA1 and ANTENNA2, if all of it fits.

    DP3 has both in buckets of 256 bytes, 32 rows, of which casacore keeps two: each column that is read would read all
    of them again, with two calls of the system for each. But a cache that is full is searched through for each new one.
    """
    if "ANTENNA1" not in table.colnames():
        return
    as_it_was = table.getdmprop("ANTENNA1")
    if as_it_was.get("MaxCacheSize") != _BUCKETS_OF_CASACORE:  # of another kind, or open already
        return
    bucket = table.getdminfo("ANTENNA1")["SPEC"].get("BUCKETSIZE")
    if bucket:
        most = _BUCKETS_BYTES // bucket
        table.setdmprop("ANTENNA1", {"MaxCacheSize": most})  # becomes the number of all buckets if there are fewer
        if table.getdmprop("ANTENNA1")["MaxCacheSize"] >= most:
            table.setdmprop("ANTENNA1", as_it_was)


@contextmanager
def _readable(path: str | os.PathLike, what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise ProductError(f"{path}: {what} cannot be read ({reason}); the product is damaged") from error


def _column(table: ct.table, path: str | os.PathLike, name: str, start: int, n: int) -> np.ndarray:
    with _readable(path, f"{name} of rows {start} to {start + n - 1}"):
        return table.getcol(name, start, n)


def read_slots(table: ct.table, path: str | os.PathLike, expect: Mapping[str, float]) -> Slots:
    """Read the time slots of a MeasurementSet and verify them as `verify_ms` says.

    Raises
    ------
    ProductError
        As `verify_ms`, of rows, times and baselines.
    """
    n_rows = int(table.nrows())
    if n_rows == 0:
        raise ProductError(f"{path} has no rows: the chunk lies outside the data, or DP3 stopped at its start")
    time = _column(table, path, "TIME", 0, n_rows)
    starts = np.flatnonzero(np.diff(time, prepend=time[0] - 1.0))
    times, n_baselines = time[starts], int(starts[1]) if len(starts) > 1 else n_rows
    if n_rows != len(starts) * n_baselines or (starts != np.arange(len(starts)) * n_baselines).any():
        raise ProductError(
            f"{path} has {n_rows} rows in {len(starts)} time slots, which is not {n_baselines} baselines in each slot"
        )
    antennas = []
    for name in ("ANTENNA1", "ANTENNA2"):
        by_slot = _column(table, path, name, 0, n_rows).reshape(len(starts), n_baselines)
        if (by_slot != by_slot[0]).any():
            slot = int(np.argmax((by_slot != by_slot[0]).any(axis=1)))
            raise ProductError(f"{path}: time slot {slot} has other baselines ({name}) than the first one")
        antennas.append(by_slot[0])
    interval = float(_column(table, path, "INTERVAL", 0, 1)[0])
    _refuse_off_grid(times, interval, path, expect)
    return Slots(times, interval, *antennas)


def _refuse_off_grid(times: np.ndarray, interval: float, path: str | os.PathLike, expect: Mapping[str, float]) -> None:
    wanted = expect.get("n_slots")
    if wanted is not None and len(times) != wanted:
        raise ProductError(f"{path} has {len(times)} time slots instead of {wanted}")
    step = expect.get("interval_s", interval)
    grid = expect.get("first_time", times[0]) + step * np.arange(len(times))
    off = np.abs(times - grid)
    if not (off < TIME_TOLERANCE_S).all():  # also when TIME is NaN
        slot = int(np.argmax(~(off < TIME_TOLERANCE_S)))
        raise ProductError(
            f"{path}: time slot {slot} is at {times[slot]:.3f} (MJD s), {off[slot]:.3f} s off the grid of {step:.6g} s"
        )


def _read_ends(table: ct.table, path: str | os.PathLike) -> None:
    """Read scalar columns wholly, and the first and the last cell of arrays.

    A tiled file must hold whole tiles up to the one of the last row: casacore counts tiles by the length of the file
    and throws for the others, so the last cell tells about the whole column.
    """
    n_rows = int(table.nrows())
    for name in table.colnames():
        if table.isscalarcol(name):
            for start in range(0, n_rows, _BLOCK_ROWS):
                _column(table, path, name, start, min(_BLOCK_ROWS, n_rows - start))
            continue
        for row in {0, n_rows - 1} if n_rows else ():
            with _readable(path, f"{name} of row {row}"):
                if table.iscelldefined(name, row):
                    table.getcell(name, row)


def _refuse_short_array_files(path: str | os.PathLike) -> None:
    """Compare the files of arrays of varying shape (table.f*i) with the length they record of themselves.

    casacore reads them only where an array is; the rest may be missing unnoticed. Bytes 4 to 11 are the length, in
    the byte order of the table (casacore, StManArrayFile).
    """
    for file in sorted(Path(path).rglob("table.f*i")):
        with file.open("rb") as stream:
            head = stream.read(12)
        lengths = [struct.unpack_from(order, head, 4)[0] for order in ("<q", ">q")] if len(head) == 12 else []
        # In the wrong order of bytes a length is negative or astronomically large.
        recorded = min((length for length in lengths if length > 0), default=None)
        size = file.stat().st_size
        if recorded is None or size < recorded:
            raise ProductError(
                f"{file} has {size} bytes instead of {recorded or 'at least 16'}; the product is damaged"
            )


def _flag_fractions(table: ct.table, path: str | os.PathLike, row_start: int, n_rows: int) -> dict:
    if not n_rows:
        return {"total": 0.0, "stations": {}, "counts": None}
    counter = _flag_counter(table, path, row_start, n_rows)
    cell = int(np.prod(np.shape(_column(table, path, "FLAG", row_start, 1))[1:]))
    step = max(1, _BLOCK_BYTES // max(1, cell))
    for start in range(row_start, row_start + n_rows, step):
        n = min(step, row_start + n_rows - start)
        counter.add(*(_column(table, path, name, start, n) for name in ("ANTENNA1", "ANTENNA2", "TIME", "FLAG")))
    counts = counter.result()
    return {
        "total": counts["n_flagged"] / max(1, counts["n_total"]),
        "stations": {name: flagged / total for name, (flagged, total) in counts["stations"].items()},
        "counts": counts,
    }


def _flag_counter(table: ct.table, path: str | os.PathLike, row_start: int, n_rows: int) -> FlagCounter:
    with opened(Path(path) / "ANTENNA") as antennas:
        names, positions = (antennas.getcol(name) if antennas.nrows() else [] for name in ("NAME", "POSITION"))
    with opened(Path(path) / "SPECTRAL_WINDOW") as windows, opened(Path(path) / "DATA_DESCRIPTION") as descriptions:
        window = descriptions.getcell("SPECTRAL_WINDOW_ID", int(_column(table, path, "DATA_DESC_ID", row_start, 1)[0]))
        frequencies = windows.getcell("CHAN_FREQ", window)
    n_correlations = np.shape(_column(table, path, "FLAG", row_start, 1))[2]
    first, last = (float(_column(table, path, "TIME", row, 1)[0]) for row in (row_start, row_start + n_rows - 1))
    interval = float(_column(table, path, "INTERVAL", row_start, 1)[0])
    return FlagCounter(names, positions, frequencies, n_correlations, first, last, interval)
