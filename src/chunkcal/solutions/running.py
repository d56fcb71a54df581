"""Running medians and Gaussian means along the first axis: of real values, or of phases as complex unit vectors.

They know of NaN, uneven spacing, edges, gaps and wraps. Scipy's filters know of none of these.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

_LEAST_HALF_WINDOW = 3  # solutions on each side that a median takes in even beside an edge or a gap
_LOPSIDED = 1e-3  # window widths between its mean and its middle: more than rounding, less than one missing solution
_LEAST_FOR_DRIFT = 5  # solutions: the drift of fewer is mostly noise


def running_median(values: np.ndarray, coordinates: np.ndarray, width: float, others: bool = False) -> np.ndarray:
    """Running median along the first axis; that of unit vectors is a unit vector.

    The window is symmetric in the number of rows that hold something, three on one side at least: beside an edge or a
    gap, the median of what lies on one side would be off by a quarter of the window's drift. Where it still is
    lopsided, the drift is taken out first.

    Parameters
    ----------
    others : bool
        Leave out the row itself. Where a drift is faster than the noise, it would often be its own median.
    """
    result = np.full_like(values, np.nan)
    rows = np.flatnonzero(np.isfinite(values).any(axis=tuple(range(1, values.ndim))))
    values, coordinates = values[rows], coordinates[rows]
    lows, highs = _window(coordinates, width)
    median = _circular_median if np.iscomplexobj(values) else nanmedian
    for k, row in enumerate(rows):
        half = max(min(k - lows[k], highs[k] - 1 - k), _LEAST_HALF_WINDOW)
        window = np.arange(max(lows[k], k - half), min(highs[k], k + half + 1))
        block = values[window]
        away = coordinates[window] - coordinates[k]
        if abs(away.mean()) > _LOPSIDED * width and highs[k] - lows[k] >= _LEAST_FOR_DRIFT:
            drift = _drift(values[lows[k] : highs[k]], coordinates[lows[k] : highs[k]])
            block = _without(block, drift, away)
        result[row] = median(block[window != k] if others and len(window) > 1 else block)
    return result


def convolved(values: np.ndarray, coordinates: np.ndarray, fwhm: float) -> np.ndarray:
    """Convolve along the first axis with a Gaussian, cut off at 4 standard deviations; any spacing of coordinates."""
    deviation = fwhm / np.sqrt(8 * np.log(2))
    low, high = _window(coordinates, 8 * deviation)
    rows = np.repeat(np.arange(len(coordinates)), high - low)
    columns = np.concatenate([np.arange(a, b) for a, b in zip(low, high, strict=True)])
    weights = np.exp(-0.5 * ((coordinates[rows] - coordinates[columns]) / deviation) ** 2)
    kernel = sparse.csr_array((weights, (rows, columns)), shape=(len(coordinates),) * 2)
    return (kernel @ values.reshape(len(coordinates), -1)).reshape(values.shape)


def nanmedian(values: np.ndarray) -> np.ndarray:
    """Median along the first axis of what is not NaN: as `nanmedian`, but several times as fast for short axes."""
    ordered = np.sort(values, axis=0)  # puts NaN last
    n = np.count_nonzero(np.isfinite(ordered), axis=0)
    low, high = (np.take_along_axis(ordered, np.maximum(k, 0)[None], axis=0)[0] for k in ((n - 1) // 2, n // 2))
    return np.where(n > 0, 0.5 * (low + high), np.nan)


def _circular_median(vectors: np.ndarray) -> np.ndarray:
    """Median direction along the first axis: the median of the angles to the mean direction, which do not wrap.

    Medians of cosine and sine, each by itself, are off where one of them has its extreme inside the window.
    """
    mean = np.nansum(vectors, axis=0)
    return np.exp(1j * (np.angle(mean) + nanmedian(np.angle(vectors * mean.conj()))))


def _drift(values: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Median change along the first axis per unit of the coordinate; 0 where it cannot be known.

    From differences over longer and longer distances: those of neighbours are mostly noise, and those over half the
    window may be wraps of a phase, unless the drift is nearly known.
    """
    drift = np.zeros(values.shape[1:])
    lag = 1
    while lag <= len(coordinates) // 2:
        distance = coordinates[lag:] - coordinates[:-lag]
        change = _without(values[lag:], drift, distance)
        before = values[:-lag]
        change = np.angle(change * before.conj()) if np.iscomplexobj(values) else change - before
        drift += np.nan_to_num(nanmedian(change / _column(distance, change)))
        lag *= 2
    return drift


def _without(values: np.ndarray, drift: np.ndarray, away: np.ndarray) -> np.ndarray:
    """Take out what the drift has added along the first axis at these distances."""
    shift = drift * _column(away, values)
    return values * np.exp(-1j * shift) if np.iscomplexobj(values) else values - shift


def _column(vector: np.ndarray, values: np.ndarray) -> np.ndarray:
    return vector.reshape(-1, *[1] * (values.ndim - 1))


def _window(coordinates: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """First index of each coordinate's window, and the one after its last; half the width on each side."""
    half = 0.5 * width * (1 + 1e-6)  # rounding of the coordinates decides nothing
    return np.searchsorted(coordinates, coordinates - half), np.searchsorted(coordinates, coordinates + half, "right")
