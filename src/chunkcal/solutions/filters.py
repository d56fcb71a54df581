"""What solution processing does to one table: reference, flag outliers, smooth, interpolate, normalise.

A phase is handled as a unit vector and an amplitude by its logarithm; TEC, delay and rotation measure as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from chunkcal.solutions.running import convolved, nanmedian, running_median

AXES = ("time", "freq", "ant", "dir", "pol")
_GAUSSIAN_MAD = 1.4826  # standard deviation / median absolute deviation of Gaussian noise: 1 / Phi^-1(3/4)
_TOLERANCE = 1e-4  # ten times DDECal's default `tolerance`: what differs by less is no outlier among quiet ones
_COLUMNS = (0, 3, 0, 3)  # XX or YY: the diagonal element in the column of XX, XY, YX and YY of a Jones matrix


@dataclass
class Solutions:
    """One solution table in memory. A flagged solution has val NaN and weight 0.

    Attributes
    ----------
    role : str
        phase, amplitude, tec, delay, rotation or rotationmeasure.
    val, weight : (n_time, n_freq, n_ant, n_dir, n_pol) float64 or as stored
        Axes that the table does not have are of length 1. Phases in rad.
    times, frequencies : (n_time,), (n_freq,) float64
        MJD s and Hz; both increase.
    """

    role: str
    val: np.ndarray
    weight: np.ndarray
    times: np.ndarray
    frequencies: np.ndarray


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Bring angles (rad) into -pi..pi, which DP3 writes; those that are there already keep their bits."""
    return angle - 2 * np.pi * np.rint(angle / (2 * np.pi))


# ---- the steps ------------------------------------------------------------------------------------------


def reference(solutions: Solutions, station: int) -> int:
    """Subtract the solutions of one station from those of all; the station itself becomes exactly 0.

    A common phase, TEC or delay of all stations leaves no trace in the visibilities, so no solve can know it. Of full
    Jones matrices the unknown is a unitary matrix to the right of all of them, when the source is unpolarized (Hamaker
    2000, A&AS 143, 515): therefore the columns are turned, by the phases of the reference's XX and YY, and only these
    two become 0 (elements by themselves cannot be referenced).

    Where the reference is flagged there is nothing to refer to: the solutions of all stations are flagged there.

    Returns
    -------
    int
        Number of solutions that were flagged because of that.
    """
    before = np.count_nonzero(solutions.weight)
    # A copy: while the loop runs over the stations, the reference's own values would become 0.
    zero = solutions.val[:, :, station].copy()
    if zero.shape[-1] == 4:
        zero = zero[..., _COLUMNS]
    for _, block in _stations(solutions):
        difference = block - zero
        block[...] = wrapped(difference) if solutions.role in ("phase", "rotation") else difference
    solutions.weight[np.isnan(solutions.val)] = 0
    return before - np.count_nonzero(solutions.weight)


def flag_outliers(solutions: Solutions, sigma: float, window_s: float | None, window_hz: float | None) -> int:
    """Flag solutions that are far from the running median of their neighbours in time and frequency.

    The deviation from the median is compared with `sigma` times its own robust standard deviation, 1.4826 times the
    median absolute deviation (Rousseeuw & Croux 1993, JASA 88, 1273), taken for each station, direction and
    polarization over all times and frequencies. Phases are compared as unit vectors, so that wraps do not matter, and
    amplitudes by their logarithm. A window must be shorter than phases take to turn by 180 degrees, or the direction of
    its median means nothing and nothing is found. What many neighbours share, such as a jump between chunks, is no
    outlier.

    Returns
    -------
    int
        Number of solutions that were flagged.
    """
    n = 0
    for station, block in _stations(solutions):
        deviation = _to_work(solutions.role, block)
        middle = _median(deviation, solutions, window_s, window_hz, others=True)
        deviation = np.angle(deviation * middle.conj()) if solutions.role == "phase" else deviation - middle
        floor = _TOLERANCE * (1 if solutions.role in ("phase", "amplitude") else nanmedian(np.abs(block).ravel()))
        deviation = np.abs(deviation)
        outlier = deviation > sigma * np.maximum(
            _GAUSSIAN_MAD * nanmedian(deviation.reshape(-1, *deviation.shape[2:])), floor
        )
        n += np.count_nonzero(outlier)
        block[outlier] = np.nan
        solutions.weight[:, :, station][outlier] = 0
    return n


def smooth(solutions: Solutions, kind: str, window_s: float | None, window_hz: float | None) -> None:
    """Smooth in time and frequency; flagged solutions have no influence and stay flagged.

    Amplitudes are smoothed by their logarithm, phases as unit vectors, as in LoSoTo's operation `smooth`: the mean of
    +179 and -179 degrees is 180, and the mean of a gain of 2 and one of 1/2 is 1. All solutions count the same,
    whatever their weights, which stay as they are.

    Parameters
    ----------
    kind : {"median", "gaussian"}
        A running median, along time and then along frequency, or the convolution with a Gaussian in both, normalised
        by the convolution of what is not flagged (Knutsson & Westin 1993, CVPR, "Normalized and differential
        convolution").
    window_s, window_hz : float, optional
        Full width of the median's window, which gets narrower beside edges and gaps in order to stay symmetric; full
        width at half maximum of the Gaussian.
    """
    method = _median if kind == "median" else _gaussian
    for _, block in _stations(solutions):
        flagged = np.isnan(block)
        block[...] = _from_work(solutions.role, method(_to_work(solutions.role, block), solutions, window_s, window_hz))
        block[flagged] = np.nan


def interpolate(solutions: Solutions, max_gap_s: float) -> int:
    """Fill flagged gaps in time between two good solutions; nothing is filled at the ends.

    Linear in time: phases along the shorter arc between the two unit vectors, amplitudes in their logarithm. A filled
    solution gets the smaller weight of the two.

    Parameters
    ----------
    max_gap_s : float
        Longest gap to fill, s: the number of its flagged solutions times the solution interval.

    Returns
    -------
    int
        Number of solutions that were filled.
    """
    n_time = len(solutions.times)
    if n_time < 3:
        return 0
    longest = max_gap_s * (1 + 1e-6) + np.median(np.diff(solutions.times))  # between the good solutions beside it
    index = np.arange(n_time).reshape(-1, 1, 1, 1)
    n = 0
    for station, block in _stations(solutions):
        good = np.isfinite(block)
        before = np.maximum.accumulate(np.where(good, index, -1))
        after = np.minimum.accumulate(np.where(good, index, n_time)[::-1])[::-1]
        gap = ~good & (before >= 0) & (after < n_time)
        left, right = before[gap], after[gap]
        near = solutions.times[right] - solutions.times[left] <= longest
        gap[gap] = near
        at, *others = np.nonzero(gap)
        left, right = left[near], right[near]
        place = (solutions.times[at] - solutions.times[left]) / (solutions.times[right] - solutions.times[left])
        first, last = block[left, *others], block[right, *others]
        if solutions.role == "phase":
            values = wrapped(first + place * wrapped(last - first))
        elif solutions.role == "amplitude":
            values = first * (last / first) ** place
        else:
            values = first + place * (last - first)
        block[gap] = values
        weight = solutions.weight[:, :, station]
        weight[gap] = np.minimum(weight[left, *others], weight[right, *others])
        n += len(at)
    return n


def normalise(solutions: Solutions, per: Sequence[str]) -> np.ndarray:
    """Divide amplitudes by their geometric mean, so that applying them keeps the flux scale.

    A visibility is divided by |g_p| |g_q|. With a geometric mean of 1 over stations and times, so is that of the
    factor over all baselines: corrected data have, on average, the flux scale of the data before, not that of the
    sky model. LoSoTo's `norm` makes the arithmetic mean 1, which leaves a bias of half the variance; rapthor
    (process_gains.py) the medians of each direction. Ratios between solutions of one group do not change. Each usable
    solution counts the same; of full-Jones matrices, only XX and YY.

    Parameters
    ----------
    per : sequence of {"freq", "dir", "pol"}
        Axes along which each value has a mean of its own; over all others, one mean is taken.

    Returns
    -------
    (n_freq or 1, 1, n_dir or 1, n_pol or 1) ndarray
        Factors by which amplitudes were divided; NaN where all are flagged.
    """
    over = tuple(i for i, axis in enumerate(AXES) if axis not in per)
    total, count = 0.0, 0
    for station, _ in _stations(solutions):
        values = solutions.val[:, :, [station]]
        values = values[..., [0, 3]] if values.shape[-1] == 4 else values
        total = total + np.nansum(np.log(values), axis=over, keepdims=True)
        count = count + np.count_nonzero(np.isfinite(values), axis=over, keepdims=True)
    factor = np.exp(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
    solutions.val /= factor
    return factor[0]


# ---- how ------------------------------------------------------------------------------------------------


def _stations(solutions: Solutions) -> Iterator[tuple[int, np.ndarray]]:
    """Give the values of each station, (n_time, n_freq, n_dir, n_pol), as a view: work space is that of one."""
    for station in range(solutions.val.shape[2]):
        yield station, solutions.val[:, :, station]


def _to_work(role: str, values: np.ndarray) -> np.ndarray:
    if role == "phase":
        return np.exp(1j * values)
    return np.log(values) if role == "amplitude" else values.copy()


def _from_work(role: str, values: np.ndarray) -> np.ndarray:
    if role == "phase":
        return np.angle(values)
    return np.exp(values) if role == "amplitude" else values


def _along(
    method: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
    values: np.ndarray,
    solutions: Solutions,
    window_s: float | None,
    window_hz: float | None,
) -> np.ndarray:
    """Call a method for windows along time and then along frequency of values (n_time, n_freq, ...)."""
    if window_s is not None:
        values = method(values, solutions.times, window_s)
    if window_hz is not None and len(solutions.frequencies) > 1:
        values = method(values.swapaxes(0, 1), solutions.frequencies, window_hz).swapaxes(0, 1)
    return values


def _median(
    values: np.ndarray, solutions: Solutions, window_s: float | None, window_hz: float | None, others: bool = False
) -> np.ndarray:
    return _along(partial(running_median, others=others), values, solutions, window_s, window_hz)


def _gaussian(values: np.ndarray, solutions: Solutions, window_s: float | None, window_hz: float | None) -> np.ndarray:
    good = np.isfinite(values)
    total = _along(convolved, np.where(good, values, 0), solutions, window_s, window_hz)
    norm = _along(convolved, good.astype(float), solutions, window_s, window_hz)
    return np.divide(total, norm, out=np.full_like(total, np.nan), where=norm > 0)
