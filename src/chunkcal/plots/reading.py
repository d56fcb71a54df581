"""Read the solutions of an h5parm as pictures need them: flagged ones NaN, phases relative to one station."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from chunkcal.solutions.h5parm import Soltab

_BLOCK_VALUES = 1 << 22  # of a solution table in memory at a time
MAX_WATERFALL = (180, 64)  # times and frequencies of a panel: about its pixels
_ANGLES = {"phase", "scalarphase", "commonscalarphase", "rotation", "rotationangle", "commonrotationangle"}
_UNITS = {"tec": "TECU", "clock": "s", "delay": "s", "rotationmeasure": "rad/m²"}


@dataclass(frozen=True)
class Solutions:
    """Solutions of one table and direction, ready to be drawn.

    Attributes
    ----------
    times : (n_times,) float64
        Centres of solution intervals, MJD s.
    values : (n_times, n_stations, n_polarizations) float64
        NaN where there is no solution or it is flagged. Angles in degrees.
    note : str
        Which frequency, and what angles are relative to.
    """

    kind: str
    unit: str
    times: np.ndarray
    values: np.ndarray
    stations: tuple[str, ...]
    polarizations: tuple[str, ...]
    note: str

    @property
    def is_angle(self) -> bool:
        """Whether values wrap at 360 degrees."""
        return self.kind in _ANGLES

    @property
    def without(self) -> tuple[str, ...]:
        """Stations that have no solution at all."""
        return _without(self.values[:, None], self.stations)


@dataclass(frozen=True)
class Waterfalls:
    """Solutions of one table and direction by time and frequency.

    Attributes
    ----------
    times : (n_times,) float64
        Centres of solution intervals, MJD s; every `stride`-th of the table.
    interval_s : float
        Between neighbours among `times`.
    frequencies : (n_frequencies,) float64
        Hz, increasing.
    values : (n_times, n_frequencies, n_stations, n_polarizations) float64
        NaN where there is no solution or it is flagged. Angles in degrees.
    note : str
        What is shown, and what angles are relative to.
    """

    kind: str
    unit: str
    times: np.ndarray
    interval_s: float
    frequencies: np.ndarray
    values: np.ndarray
    stations: tuple[str, ...]
    polarizations: tuple[str, ...]
    note: str

    @property
    def is_angle(self) -> bool:
        """Whether values wrap at 360 degrees."""
        return self.kind in _ANGLES

    @property
    def without(self) -> tuple[str, ...]:
        """Stations that have no solution at all."""
        return _without(self.values, self.stations)


@dataclass(frozen=True)
class Span:
    """What the time axis shows, MJD s: start and end of the observation, chunk seams, gaps (start, end)."""

    start: float
    end: float
    seams: tuple[float, ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()


def _without(values: np.ndarray, stations: Sequence[str]) -> tuple[str, ...]:
    finite = np.isfinite(values).any(axis=(0, 1, 3))
    return tuple(name for name, found in zip(stations, finite, strict=True) if not found)


def read_solutions(path: str | os.PathLike, solset: str, soltab: Soltab, direction: int = 0) -> Solutions:
    """Read the solutions of one direction.

    Angles are those of one frequency, because they cannot be averaged over a band; other kinds are the median over
    frequencies. Phases are relative to the first station that has solutions; those off the diagonal of a Jones matrix
    relative to the diagonal element of the same column, so that J stays J times a diagonal matrix.
    """
    with h5py.File(path, "r", locking=False) as file:
        group = file[solset][soltab.name]
        frequencies = group["freq"][:] if "freq" in soltab.axes else np.array([np.nan])
        times = group["time"][:] if "time" in soltab.axes else np.zeros(1)
        angle, pick, note = soltab.kind in _ANGLES, None, ""
        if angle and len(frequencies) > 1:
            pick = _best_frequency(group, soltab, direction)
            note = f"at {frequencies[pick] / 1e6:.3f} MHz, one of {len(frequencies)} frequencies"
        elif len(frequencies) > 1:
            note = f"median over {len(frequencies)} frequencies"
        elif np.isfinite(frequencies[0]) and frequencies[0] > 0 and soltab.kind not in _UNITS:
            note = f"at {frequencies[0] / 1e6:.3f} MHz"
        step = _times_of_block(soltab, len(times))
        blocks = [
            _median(_block(group, soltab, direction, slice(start, start + step), pick))
            for start in range(0, len(times), step)
        ]
    values = np.concatenate(blocks) if blocks else np.empty((0, soltab.length("ant"), soltab.length("pol")))
    values, relative = _degrees(values[:, None], soltab)
    note = ", ".join(filter(None, (note, relative)))
    return Solutions(soltab.kind, _unit(soltab), times, values[:, 0], *_names(soltab), note)


def read_waterfalls(path: str | os.PathLike, solset: str, soltab: Soltab, direction: int = 0) -> Waterfalls:
    """Read the solutions of one direction by time and frequency, as many as a panel has pixels.

    Phases are relative to the same station as in `read_solutions`, at each frequency.
    """
    steps = [max(1, -(-soltab.length(axis) // n)) for axis, n in zip(("time", "freq"), MAX_WATERFALL, strict=True)]
    with h5py.File(path, "r", locking=False) as file:
        group = file[solset][soltab.name]
        times, frequencies = group["time"][:], group["freq"][:: steps[1]]
        # Where not all are shown, reading each interval by itself is faster than HDF5's reading with strides.
        n = _times_of_block(soltab, len(times)) if steps[0] == 1 else 1
        blocks = [
            _block(group, soltab, direction, slice(i, i + n))[:, :: steps[1]]
            for i in range(0, len(times), n * steps[0])
        ]
    values, relative = _degrees(np.concatenate(blocks), soltab)
    interval = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    shown = [f"one of {step} {what}" for step, what in zip(steps, ("times", "frequencies"), strict=True) if step > 1]
    note = ", ".join(filter(None, (*shown, relative)))
    order = np.argsort(frequencies)
    return Waterfalls(
        soltab.kind,
        _unit(soltab),
        times[:: steps[0]],
        interval * steps[0],
        frequencies[order],
        values[:, order],
        *_names(soltab),
        note,
    )


def _times_of_block(soltab: Soltab, n_times: int) -> int:
    """Count the times whose solutions are in memory at a time."""
    rest = max(1, int(np.prod(soltab.shape)) // max(1, n_times))
    return max(1, _BLOCK_VALUES // rest)


def _names(soltab: Soltab) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of stations and polarizations."""
    return soltab.antennas or ("all stations",), soltab.polarizations or ("",)


def _unit(soltab: Soltab) -> str:
    return "degrees" if soltab.kind in _ANGLES else _UNITS.get(soltab.kind, "")


def _degrees(values: np.ndarray, soltab: Soltab) -> tuple[np.ndarray, str]:
    """Turn angles, (time, freq, ant, pol), into degrees; phases relative to one station, which is named."""
    if soltab.kind not in _ANGLES:
        return values, ""
    relative = ""
    if soltab.kind.endswith("phase"):
        stations, polarizations = _names(soltab)
        values, reference = _referenced(values, polarizations)
        relative = f"relative to {stations[reference]}" if reference is not None else ""
    return np.degrees((values + np.pi) % (2 * np.pi) - np.pi), relative


def _block(group: h5py.Group, soltab: Soltab, direction: int, times: slice, pick: int | None = None) -> np.ndarray:
    """Read solutions as (time, freq, ant, pol) float64, NaN where weight is 0."""
    chosen = {"time": times, "freq": slice(None) if pick is None else slice(pick, pick + 1)}
    chosen |= {"ant": slice(None), "pol": slice(None), "dir": direction}
    key = tuple(chosen.get(axis, 0) for axis in soltab.axes)
    kept = [axis for axis in soltab.axes if axis in ("time", "freq", "ant", "pol")]
    values = group["val"][key].astype(float)
    values[(group["weight"][key] == 0) | ~np.isfinite(values)] = np.nan
    wanted = [axis for axis in ("time", "freq", "ant", "pol") if axis in kept]
    values = values.transpose([kept.index(axis) for axis in wanted])
    for i, axis in enumerate(("time", "freq", "ant", "pol")):
        if axis not in kept:
            values = np.expand_dims(values, i)
    return values


def _best_frequency(group: h5py.Group, soltab: Soltab, direction: int) -> int:
    """Find the frequency nearest to the middle among those with (nearly) the most solutions, from some of the times."""
    n_times, n = soltab.length("time"), soltab.length("freq")
    sample = _block(group, soltab, direction, slice(None, None, max(1, n_times // 30)))
    found = np.isfinite(sample).sum(axis=(0, 2, 3))
    good = np.flatnonzero(found >= 0.95 * found.max())
    return int(good[np.argmin(np.abs(good - (n - 1) / 2))])


def _median(values: np.ndarray) -> np.ndarray:
    if values.shape[1] == 1:
        return values[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: so is the median
        return np.nanmedian(values, axis=1)


def _referenced(values: np.ndarray, polarizations: Sequence[str]) -> tuple[np.ndarray, int | None]:
    finite = np.isfinite(values).mean(axis=(0, 1, 3)) if values.size else np.zeros(values.shape[2])
    if not finite.any():
        return values, None
    reference = int(np.argmax(finite >= 0.5 * finite.max()))
    columns = [0, 3, 0, 3] if len(polarizations) == 4 else list(range(values.shape[3]))  # XX XY YX YY
    return values - values[:, :, [reference]][..., columns], reference
