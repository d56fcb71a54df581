"""What the plan must know of a MeasurementSet: its time grid above all, read without changing or locking anything."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import casacore.tables as ct
import numpy as np

from chunkcal.errors import UserError
from chunkcal.planning.chunkrules import grid_is_exact

# DP3's msin.timetolerance. A chunk counts its slots from its own first one, so no two slots may differ by more.
TIME_TOLERANCE_S = 1e-2
_BLOCK_ROWS = 1 << 22  # of a scalar column in memory at a time


@dataclass(frozen=True)
class Observation:
    """A MeasurementSet as the plan sees it.

    Attributes
    ----------
    name, ms : str
        Name of the observation; absolute path.
    telescope : str
        OBSERVATION::TELESCOPE_NAME.
    first_time, interval_s : float
        TIME of the first slot (MJD s) and INTERVAL of the first row: DP3's grid is ``first_time + k * interval_s``.
    n_slots : int
        Slots of the grid, from the first to the last with data.
    missing : tuple of (begin, end)
        Ranges of slots without data, end exclusive.
    n_rows, n_baselines, n_channels, n_correlations, n_spectral_windows, size_bytes : int
        Rows are those of the selected spectral window; the size is that of all files.
    stations : tuple of str
        ANTENNA::NAME.
    channel_width_hz, first_frequency_hz, last_frequency_hz : float
        Width and centre frequencies of channels.
    fields : tuple of str
        FIELD::NAME.
    phase_centre_deg : (float, float)
        Right ascension and declination of FIELD::PHASE_DIR.
    columns : tuple of str
        Columns of the main table.
    """

    name: str
    ms: str
    telescope: str
    first_time: float
    interval_s: float
    n_slots: int
    missing: tuple[tuple[int, int], ...]
    n_rows: int
    n_baselines: int
    stations: tuple[str, ...]
    n_channels: int
    channel_width_hz: float
    first_frequency_hz: float
    last_frequency_hz: float
    n_correlations: int
    n_spectral_windows: int
    fields: tuple[str, ...]
    phase_centre_deg: tuple[float, float]
    columns: tuple[str, ...]
    size_bytes: int

    @property
    def n_stations(self) -> int:
        """Number of stations in the ANTENNA table."""
        return len(self.stations)

    @property
    def grid_is_exact(self) -> bool:
        """Whether slot times are exact in double precision, see `chunkrules.grid_is_exact`."""
        return grid_is_exact(self.first_time, self.interval_s, self.n_slots)

    def present(self, start: int, end: int) -> int:
        """Count the slots with data in the range [start, end)."""
        lost = sum(max(0, min(end, stop) - max(start, begin)) for begin, stop in self.missing)
        return max(0, end - start) - lost

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as JSON can hold them, and the derived ones."""
        return asdict(self) | {"n_stations": self.n_stations, "grid_is_exact": self.grid_is_exact}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Observation:
        """Take back what `to_dict` gave, also from JSON."""
        own = {key: values[key] for key in cls.__dataclass_fields__}
        for key in ("stations", "fields", "phase_centre_deg", "columns"):
            own[key] = tuple(own[key])
        own["missing"] = tuple((int(begin), int(end)) for begin, end in own["missing"])
        return cls(**own)


def read_observation(
    path: str | os.PathLike,
    name: str,
    data_column: str = "DATA",
    band: int | None = None,
) -> Observation:
    """Read and verify the layout of a MeasurementSet.

    Parameters
    ----------
    path : path
        The MeasurementSet; opened read-only, without a lock, so it may lie on a read-only disk.
    name : str
        Name of the observation.
    data_column : str
        Column with the visibilities.
    band : int, optional
        Spectral window to take, as DP3's ``msin.band``.

    Raises
    ------
    UserError
        It is no MeasurementSet, or none that DP3 can read in time chunks.
    """
    path = os.path.abspath(path)
    with _opened(path) as table:
        columns = tuple(table.colnames())
        _refuse_other_tables(table, path, columns, data_column)
        window = _spectral_window(table, path, band)
        rows = table.query(f"DATA_DESC_ID == {band}") if band is not None else table
        try:
            if rows.nrows() == 0:
                raise UserError(f"{path} has no rows of spectral window {band}; correct MsIn: {{band: ...}}")
            times, n_baselines = _read_slots(rows, path)
            interval = float(rows.getcell("INTERVAL", 0))
            n_correlations = int(np.shape(rows.getcell("DATA", 0))[-1])
            n_rows = int(rows.nrows())
        finally:
            if rows is not table:
                rows.close()
    if n_correlations != 4:
        raise UserError(f"{path} has {n_correlations} correlations; DP3 reads MeasurementSets with 4")
    slots = _slots_on_grid(times, interval, path)
    fields, centre = _read_field(path)
    telescopes = _subtable(path, "OBSERVATION", "TELESCOPE_NAME")
    if not telescopes:
        raise UserError(f"{path}: the OBSERVATION table is empty; DP3 needs the telescope's name from it")
    return Observation(
        name=name,
        ms=path,
        telescope=str(telescopes[0]),
        first_time=float(times[0]),
        interval_s=interval,
        n_slots=int(slots[-1]) + 1,
        missing=_missing(slots),
        n_rows=n_rows,
        n_baselines=n_baselines,
        stations=tuple(_subtable(path, "ANTENNA", "NAME")),
        n_correlations=n_correlations,
        fields=fields,
        phase_centre_deg=centre,
        columns=columns,
        size_bytes=_size(path),
        **window,
    )


@contextmanager
def _opened(path: str) -> Iterator[ct.table]:
    """Open a table that is only read; what casacore cannot read in it is the user's to put right."""
    try:
        files = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(f"{path} does not exist, or is not a folder; give the path of a MeasurementSet") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}; see to it that you may read it") from None
    if "table.dat" not in files:
        raise UserError(f"{path} is not a MeasurementSet: there is no table.dat in it")
    try:
        table = ct.table(path, ack=False, lockoptions="usernoread")
    except RuntimeError as error:
        raise UserError(f"{path} cannot be opened: {_line(error)}") from None
    try:
        yield table
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read: {_line(error)}; if it is damaged, copy it again") from None
    finally:
        table.close()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _refuse_other_tables(table: ct.table, path: str, columns: tuple[str, ...], data_column: str) -> None:
    missing = {"TIME", "INTERVAL", "ANTENNA1", "ANTENNA2", "DATA_DESC_ID", "FLAG", "UVW"} - set(columns)
    if missing or "SPECTRAL_WINDOW" not in table.keywordnames():
        raise UserError(
            f"{path} is a table but not a MeasurementSet: it lacks {', '.join(sorted(missing)) or 'its subtables'}"
        )
    if not os.path.exists(f"{path}/SPECTRAL_WINDOW"):
        others = [part for part in table.partnames() if os.path.realpath(part) != os.path.realpath(path)]
        raise UserError(
            f"{path} has no subtables of its own"
            + (f": it only refers to rows of {', '.join(others)}" if others else "")
            + "; copy it as a whole, with python-casacore: table(...).copy('new.ms', deep=True)"
        )
    if table.nrows() == 0:
        raise UserError(f"{path} has no rows")
    for column in ("DATA", data_column):
        if column not in columns:
            have = [name for name in columns if name.endswith("DATA")]
            raise UserError(
                f"{path} has no column {column}, which DP3 needs; it has {', '.join(have) or 'no data column'}"
                + (" (choose it with MsIn: {datacolumn: ...})" if column == data_column and have else "")
            )
    if not table.iscelldefined("DATA", 0):
        raise UserError(f"{path}: the column DATA is empty")
    if "BDA_FACTORS" in table.keywordnames() and len(_subtable(path, "BDA_FACTORS", None)):
        raise UserError(f"{path} is averaged by baseline length; chunks need every baseline in every time slot")


def _spectral_window(table: ct.table, path: str, band: int | None) -> dict[str, Any]:
    """Find which spectral window DP3 reads, and refuse a mixture of several."""
    widths = _subtable(path, "SPECTRAL_WINDOW", "CHAN_WIDTH")
    frequencies = _subtable(path, "SPECTRAL_WINDOW", "CHAN_FREQ")
    if band is not None and not 0 <= band < len(widths):
        raise UserError(
            f"{path} has {len(widths)} spectral windows, none with number {band}; correct MsIn: {{band: ...}}"
        )
    if band is None and len(widths) > 1:
        used = {int(value) for block in _blocks(table, "DATA_DESC_ID") for value in np.unique(block)}
        if used != {0}:
            raise UserError(
                f"{path} has {len(widths)} spectral windows; choose one with MsIn: {{band: N}}, or split it"
            )
    chosen = band or 0
    frequency = np.asarray(frequencies[chosen])
    return {
        "n_channels": len(frequency),
        "channel_width_hz": abs(float(np.asarray(widths[chosen])[0])),
        "first_frequency_hz": float(frequency[0]),
        "last_frequency_hz": float(frequency[-1]),
        "n_spectral_windows": len(widths),
    }


def _subtable(path: str, name: str, column: str | None) -> list[Any]:
    """Read a column of a subtable cell by cell (arrays may differ in shape); without a column, one entry per row."""
    with _opened(f"{path}/{name}") as table:
        return [table.getcell(column, row) if column else row for row in range(table.nrows())]


def _read_field(path: str) -> tuple[tuple[str, ...], tuple[float, float]]:
    names = tuple(str(name) for name in _subtable(path, "FIELD", "NAME"))
    if len(names) != 1:
        raise UserError(
            f"{path} has {len(names)} fields ({', '.join(names[:5])}); DP3 reads only one: split it by field"
        )
    centre = np.degrees(np.asarray(_subtable(path, "FIELD", "PHASE_DIR")[0]).reshape(-1, 2)[0])
    return names, (float(centre[0]) % 360.0, float(centre[1]))


def _blocks(table: ct.table, column: str) -> Iterator[np.ndarray]:
    for start in range(0, table.nrows(), _BLOCK_ROWS):
        yield table.getcol(column, start, min(_BLOCK_ROWS, table.nrows() - start))


def _read_slots(table: ct.table, path: str) -> tuple[np.ndarray, int]:
    """Find the time of each slot, (n,) float64, and the number of rows that every slot has."""
    times, starts = [], []
    last = -math.inf
    row = 0
    for block in _blocks(table, "TIME"):
        if not np.isfinite(block).all():
            raise UserError(f"{path}: TIME is not a number in row {row + int(np.argmin(np.isfinite(block)))}")
        steps = np.diff(block, prepend=last)
        if (steps < 0).any():
            where = row + int(np.argmax(steps < 0))
            raise UserError(
                f"{path} is not sorted by TIME: row {where} is earlier than the one before; sort it first,"
                " for instance with DP3's msin.sort=true into a new MeasurementSet"
            )
        new = np.flatnonzero(steps)
        times.append(block[new])
        starts.append(new + row)
        last = block[-1]
        row += len(block)
    all_times, all_starts = np.concatenate(times), np.concatenate(starts)
    counts = np.diff(all_starts, append=row)
    if (counts != counts[0]).any():
        slot = int(np.argmax(counts != counts[0]))
        raise UserError(
            f"{path}: time slot {slot} has {counts[slot]} rows, the first one has {counts[0]}; DP3 needs the same"
            " baselines in every slot"
        )
    return all_times, int(counts[0])


def _slots_on_grid(times: np.ndarray, interval: float, path: str) -> np.ndarray:
    """Number the slots on the grid that DP3 makes of the first TIME and INTERVAL; refuse times that are off it."""
    if not interval > 0:
        raise UserError(f"{path}: INTERVAL is {interval} s in the first row; it must be positive")
    slots = np.rint((times - times[0]) / interval).astype(np.int64)
    off = times - (times[0] + slots * interval)
    if off.max() - off.min() >= TIME_TOLERANCE_S or (np.diff(slots) < 1).any():
        worst = int(np.argmax(np.abs(off)))
        raise UserError(
            f"{path}: its times do not lie on a regular grid of INTERVAL = {interval:.9g} s: time slot {worst} is"
            f" {abs(off[worst]):.3g} s off it, and DP3 allows {TIME_TOLERANCE_S} s; correct INTERVAL or split it"
        )
    return slots


def _missing(slots: np.ndarray) -> tuple[tuple[int, int], ...]:
    before = np.flatnonzero(np.diff(slots) > 1)
    return tuple((int(slots[i]) + 1, int(slots[i + 1])) for i in before)


def _size(path: str) -> int:
    return sum(os.lstat(os.path.join(folder, file)).st_size for folder, _, files in os.walk(path) for file in files)
