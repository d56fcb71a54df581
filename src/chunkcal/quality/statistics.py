"""Robust statistics of solutions along time: noise, jumps at chunk seams, noisy chunks, drift.

Everything rests on the steps between neighbouring solutions. A median absolute deviation (MAD) is turned into the
standard deviation of a Gaussian with 1 / 0.6745 = 1.4826 (Hampel 1974, J. Am. Stat. Assoc. 69, 383). NaN is flagged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAD_TO_SIGMA = 1.4826
NORMAL_Q75, NORMAL_Q90 = 1.1503, 1.6449  # 75 and 90 % of a Gaussian are within so many sigma
MIN_STEPS = 8  # with fewer, their scatter is a matter of luck
# A chunk's noise is known to about 0.4 / sqrt(steps) in its logarithm, as the stations share part of the luck; and the
# noise of real chunks differs by a quarter anyway.
CHUNK_LUCK, CHUNK_SCATTER = 0.4, 0.25
DRIFT_SIGNIFICANCE = (5.0, 3.5)  # times its own error, and times the scatter of the stations' drifts
_BLOCK_VALUES = 1 << 21


@dataclass(frozen=True)
class Kind:
    """How solutions of a kind are compared.

    Attributes
    ----------
    unit : str
        "" for relative ones.
    period : float or None
        Values that differ by this are the same.
    is_relative : bool
        Only differences between stations mean something, so that what all stations share is taken out.
    smallest_step : float
        Ordinary steps count as at least so large: a jump of a few of them does no harm to an image.
    """

    unit: str
    period: float | None
    is_relative: bool
    smallest_step: float


# 0.02 rad and 1 % scatter the flux of a point source by less than thermal noise does; the others make about 0.02 rad
# at 150 MHz.
KINDS = {
    "phase": Kind("rad", 2 * math.pi, True, 0.02),
    "amplitude": Kind("", None, False, 0.01),
    "tec": Kind("TECU", None, True, 0.0004),
    "rotation": Kind("rad", math.pi, True, 0.02),
    "rotationmeasure": Kind("rad/m2", None, True, 0.005),
    "delay": Kind("s", None, True, 2e-11),
}


def median(values: np.ndarray, axis: int) -> np.ndarray:
    """Median of what is not NaN along an axis; NaN where there is nothing.

    As `numpy.nanmedian`, which takes ten times as long on many short rows.
    """
    values = np.sort(np.moveaxis(values, axis, -1), axis=-1)  # NaN goes to the end
    if not values.shape[-1]:
        return np.full(values.shape[:-1], np.nan)
    n = np.count_nonzero(~np.isnan(values), axis=-1)[..., None]
    low = np.take_along_axis(values, np.maximum(n - 1, 0) // 2, -1)
    high = np.take_along_axis(values, np.minimum(n // 2, values.shape[-1] - 1), -1)
    return (0.5 * (low + np.where(n % 2 == 0, high, low)))[..., 0]


def _quantile(sizes: np.ndarray, fraction: float) -> np.ndarray:
    """Quantile along the first axis of what is not NaN: the value that the given fraction does not exceed."""
    n = np.count_nonzero(~np.isnan(sizes), axis=0)
    place = np.maximum(np.ceil(fraction * n).astype(int) - 1, 0)
    return np.take_along_axis(np.sort(sizes, axis=0), place[None], 0)[0]


def steps_between(values: np.ndarray, kind: Kind, is_next: np.ndarray) -> np.ndarray:
    """Steps from each solution to the next one.

    The absolute phase is arbitrary in every solution, so phases are compared with the median station: the direction of
    the sum of exp(i step) over the stations, corrected by the median of what remains of the other stations. One bad
    station cannot move it, as it could if it were the reference.

    Parameters
    ----------
    values : (n_time, n_ant, n_sample) float32
        Logarithms for amplitudes; samples are frequencies and polarizations.
    is_next : (n_time - 1,) bool
        Whether the solution after this one follows without a gap.

    Returns
    -------
    (n_time - 1, n_ant, n_sample) float32
        In the kind's unit, within half a period of 0; NaN where one of the two is missing.
    """
    steps = np.full((max(0, len(values) - 1), *values.shape[1:]), np.nan, np.float32)
    block = max(1, _BLOCK_VALUES // max(1, values[0].size)) if len(values) else 1
    for start in range(0, len(steps), block):
        part = np.diff(values[start : start + block + 1], axis=0)
        part[~is_next[start : start + block]] = np.nan
        if kind.is_relative:
            part = _wrap(part - _direction(part, kind.period), kind.period)
            part = _wrap(part - _median_of_others(part), kind.period)
        steps[start : start + block] = part
    return steps


def _direction(steps: np.ndarray, period: float | None) -> np.ndarray | float:
    """Where most stations go, (n_step, 1, n_sample): the direction of the summed phasors."""
    if period is None:
        return 0.0
    phasors = np.exp(np.complex64(2j * np.pi / period) * steps)
    total = np.nansum(phasors, axis=1, keepdims=True)
    return (np.angle(total) * (period / (2 * np.pi))).astype(np.float32)


def _median_of_others(steps: np.ndarray) -> np.ndarray:
    """Median over all stations but the one itself, (n_step, n_ant, n_sample); NaN if there is no other.

    Of sorted values, leaving out one moves the median to its neighbour on the other side.
    """
    order = np.sort(steps, axis=1)
    n = np.count_nonzero(~np.isnan(steps), axis=1, keepdims=True)
    at = [np.take_along_axis(order, np.clip(n // 2 + k, 0, steps.shape[1] - 1), 1) for k in (-1, 0, 1)]
    low, middle, high = at
    odd = np.where(steps < middle, middle + high, np.where(steps > middle, low + middle, low + high)) / 2
    found = np.where(n % 2 == 1, odd, np.where(steps <= low, middle, low))
    return np.where(n > 1, found, np.nan).astype(np.float32)


def _wrap(steps: np.ndarray, period: float | None) -> np.ndarray:
    if period is None:
        return steps
    return steps - np.float32(period) * np.round(steps / np.float32(period))


def _by_station(steps: np.ndarray) -> np.ndarray:
    """All steps of each station in a row, (n_ant, n_step * n_sample)."""
    return steps.swapaxes(0, 1).reshape(steps.shape[1], math.prod(steps.shape[::2]))


def noise(steps: np.ndarray) -> np.ndarray:
    """Noise of single solutions by station, from the steps between neighbours.

    ``sigma = 1.4826 median(|step - median(step)|) / sqrt(2)``: a step has the noise of two solutions, and anything
    slow cancels (von Neumann et al. 1941, Ann. Math. Stat. 12, 153; with the MAD in place of the mean square).
    Changes from one solution to the next, such as the ionosphere's, count as noise. So does the noise of the median
    of the other N - 1 stations: together sqrt(1 + pi / 2 / (N - 1)) times the station's own.

    Parameters
    ----------
    steps : (n_step, n_ant, n_sample)
        From `steps_between`.

    Returns
    -------
    (n_ant,)
        NaN with fewer than `MIN_STEPS` steps.
    """
    rows = _by_station(steps)
    found = MAD_TO_SIGMA * median(np.abs(rows - median(rows, 1)[:, None]), 1) / math.sqrt(2)
    return np.where(np.count_nonzero(~np.isnan(rows), axis=1) >= MIN_STEPS, found, np.nan)


@dataclass(frozen=True)
class Seams:
    """Jumps at chunk seams.

    Attributes
    ----------
    jump : (n_seam, n_ant)
        Median over the samples, in the kind's unit; NaN where it cannot be told.
    in_steps : (n_seam, n_ant)
        Its size in units of the scatter of the station's ordinary steps.
    ratio : float
        Median size over seams and stations divided by the median size of ordinary steps; NaN with fewer than
        three seams or stations.
    """

    jump: np.ndarray
    in_steps: np.ndarray
    ratio: float


def seam_jumps(series: np.ndarray, seams: Sequence[int], kind: Kind) -> Seams:
    """Compare the jumps at chunk seams with the steps between ordinary neighbours, station by station.

    The scatter of a station's ordinary steps is the larger one of 1.4826 MAD and the 90 % quantile / 1.645, so that
    long tails count; it is at least half of what the median station has and at least `smallest_step`, and (1 + 4 / n)
    times larger because n steps tell it with an error.

    Parameters
    ----------
    series : (n_time - 1, n_ant)
        Medians over the samples of `steps_between`.
    seams : sequence of int
        First solutions of the chunks behind the seams to look at; step ``k - 1`` leads to solution k.
    """
    at = np.asarray(seams, int) - 1
    ordinary = np.delete(series, at, axis=0)
    n = np.count_nonzero(~np.isnan(ordinary), axis=0)
    if not len(at) or not len(ordinary):
        return Seams(*np.full((2, len(at), series.shape[1]), np.nan), math.nan)
    centre = median(ordinary, 0)
    sizes = np.abs(ordinary - centre)
    middle = median(sizes, 0)
    tail = _quantile(sizes, 0.9) / NORMAL_Q90
    scatter = np.where(n >= MIN_STEPS, np.fmax(MAD_TO_SIGMA * middle, tail), np.nan)
    scatter = np.maximum(scatter, max(kind.smallest_step, 0.5 * float(np.nan_to_num(median(scatter, 0)))))
    jump = series[at] - centre
    in_steps = np.abs(jump) / (scatter * (1 + 4 / np.maximum(n, 1)))
    relative = np.abs(jump) / np.maximum(middle, kind.smallest_step / MAD_TO_SIGMA)
    relative = np.where(n >= MIN_STEPS, relative, np.nan)
    enough = [np.count_nonzero((~np.isnan(relative)).any(axis=axis)) >= 3 for axis in (0, 1)]
    return Seams(jump, in_steps, float(median(relative.ravel(), 0)) if all(enough) else math.nan)


def chunk_noise(steps: np.ndarray, firsts: Sequence[int], kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Compare the noise of each chunk with that of the others.

    A chunk's level is the median over the stations of its median absolute step, relative to that of the whole station.
    Steps below a fifth of `smallest_step` are as good as none: nobody minds them, however they compare. Logarithms of
    levels are compared with the median and MAD of the *other* chunks, so that two chunks are enough to tell which is
    the noisy one.

    Parameters
    ----------
    steps : (n_time - 1, n_ant, n_sample)
        From `steps_between`.
    firsts : sequence of int
        First solution of each chunk.

    Returns
    -------
    z : (n_chunk,)
        Robust z; NaN for a chunk without steps, or if it is the only one.
    factor : (n_chunk,)
        How many times as noisy as the others.
    """
    sizes = np.abs(steps)
    floor = kind.smallest_step / 5
    whole = np.maximum(median(_by_station(sizes), 1), floor)
    level, luck = np.full((2, len(firsts)), np.nan)
    for c, (first, last) in enumerate(zip(firsts, [*firsts[1:], len(steps) + 1], strict=True)):
        inside = sizes[first : last - 1]
        n = np.count_nonzero(~np.isnan(inside).all(axis=(1, 2)))
        if n:
            level[c] = median(np.maximum(median(_by_station(inside), 1), floor) / whole, 0)
            luck[c] = CHUNK_LUCK / math.sqrt(n)
    log = np.log(level)
    z, factor = np.full((2, len(firsts)), np.nan)
    for c in np.flatnonzero(~np.isnan(log)):
        others = np.delete(log, c)
        centre = median(others, 0)
        scatter = np.nanmax([MAD_TO_SIGMA * median(np.abs(others - centre), 0), luck[c], CHUNK_SCATTER])
        z[c], factor[c] = (log[c] - centre) / scatter, np.exp(log[c] - centre)
    return z, factor


def drifts(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drift of each station from the beginning to the end, relative to the median station.

    The difference of the medians of the last and the first quarter times 4/3, because the middles of these are three
    quarters of the run apart. It is significant where it is larger than 5 times its error (of a median,
    sqrt(pi / 2) sigma / sqrt(n), with sigma from neighbouring solutions) and 3.5 times the scatter of all stations: the
    larger one of 1.4826 MAD and the 75 % quantile / 1.15, because what wanders slowly has no Gaussian drifts.

    Parameters
    ----------
    series : (n_time, n_ant)
        Logarithm of the amplitude, median over the samples.

    Returns
    -------
    drift : (n_ant,)
        Change of the logarithm over the run; NaN where a quarter has fewer than two solutions.
    is_significant : (n_ant,) bool
    """
    quarter = len(series) // 4
    first, last = series[:quarter], series[len(series) - quarter :]
    n = np.minimum(*(np.count_nonzero(~np.isnan(part), axis=0) for part in (first, last)))
    if quarter < 2:
        return np.full(series.shape[1], np.nan), np.zeros(series.shape[1], bool)
    drift = np.where(n >= 2, median(last, 0) - median(first, 0), np.nan) * 4 / 3
    if np.count_nonzero(~np.isnan(drift)) >= 3:
        drift = drift - median(drift, 0)
    sigma = noise(np.diff(series, axis=0)[:, :, None])
    error = 4 / 3 * math.sqrt(2 * math.pi / 2) * np.nan_to_num(sigma) / np.sqrt(np.maximum(n, 1))
    scatter = np.fmax(MAD_TO_SIGMA * median(np.abs(drift), 0), _quantile(np.abs(drift), 0.75) / NORMAL_Q75)
    return drift, np.abs(drift) > np.fmax(DRIFT_SIGNIFICANCE[0] * error, DRIFT_SIGNIFICANCE[1] * scatter)
