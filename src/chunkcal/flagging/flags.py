"""Flag statistics: counts of a chunk as JSON holds them, and their sum over chunks.

Counts are whole numbers of flagged and of all correlations of cross-correlation visibilities, so that sums over chunks
are exact. What single flagging steps of DP3 do is told by DP3 itself, see `chunkcal.flagging.flagsteps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_TIME_BINS = 16  # of a chunk: the waterfall of a record stays at some kilobytes
MAX_CHANNEL_GROUPS = 64  # of a waterfall
MAX_MERGED_BINS = 512  # in time, of an observation: more than a picture can show
# Baseline lengths, m: equal for all observations, so that counts of any two can be added.
LENGTH_EDGES_M = (0, 10, 20, 50, *(n * 10**k for k in range(2, 6) for n in (1, 2, 5)), 1_000_000, 10_000_000)


# ---- counting -------------------------------------------------------------------------------------------


class FlagCounter:
    """Counts the flags of one chunk, block of rows by block of rows.

    Parameters
    ----------
    stations : sequence of str
        Names, in the order of ANTENNA.
    positions : (n_stations, 3) float64
        Of the stations, m.
    frequencies : (n_channels,) float64
        Hz.
    n_correlations : int
        Correlations of a visibility.
    first_time, last_time, interval_s : float
        TIME of the first and the last row (MJD s) and length of a slot.
    """

    def __init__(
        self,
        stations: Sequence[str],
        positions: np.ndarray,
        frequencies: np.ndarray,
        n_correlations: int,
        first_time: float,
        last_time: float,
        interval_s: float,
    ) -> None:
        self._stations = list(stations)
        positions = np.asarray(positions, np.float64).reshape(-1, 3)
        lengths = np.linalg.norm(positions[:, None] - positions, axis=-1)
        bins = np.searchsorted(LENGTH_EDGES_M, lengths, "right") - 1
        self._length_bin = np.clip(bins, 0, len(LENGTH_EDGES_M) - 2)  # of a baseline, by its two stations
        self._frequencies, self._n_correlations = frequencies, n_correlations
        n_slots = round((last_time - first_time) / interval_s) + 1
        self._slots_per_bin = -(-n_slots // MAX_TIME_BINS)
        self._start, self._interval = first_time - 0.5 * interval_s, interval_s
        self._by_station = np.zeros((2, len(stations)), np.int64)
        self._by_length = np.zeros((2, len(LENGTH_EDGES_M) - 1), np.int64)
        self._flagged = np.zeros((-(-n_slots // self._slots_per_bin), len(frequencies)), np.int64)
        self._rows = np.zeros(len(self._flagged), np.int64)

    def add(self, first: np.ndarray, second: np.ndarray, times: np.ndarray, flags: np.ndarray) -> None:
        """Count some rows.

        Parameters
        ----------
        first, second : (n_rows,) int
            Stations of the baselines; rows of autocorrelations are left out.
        times : (n_rows,) float64
            MJD s.
        flags : (n_rows, n_channels, n_correlations) bool
        """
        cross = first != second
        by_channel = _count_correlations(flags)
        by_channel[~cross] = 0
        # In half the time of by_channel.sum(axis=1); no row has more flags than 32 bits hold.
        flagged = np.einsum("rc->r", by_channel, dtype=np.uint32, casting="unsafe").astype(np.int64)
        n_all = np.where(cross, flags.shape[1] * flags.shape[2], 0)
        for sums, counts in zip(self._by_station, (flagged, n_all), strict=True):
            for station in (first, second):
                np.add.at(sums, station, counts)
        for sums, counts in zip(self._by_length, (flagged, n_all), strict=True):
            np.add.at(sums, self._length_bin[first, second], counts)
        slots = np.rint((times - self._start) / self._interval - 0.5).astype(int)
        bins = np.clip(slots // self._slots_per_bin, 0, len(self._rows) - 1)
        starts = np.flatnonzero(np.diff(bins, prepend=-1))  # rows are in the order of time: a bin's lie together
        np.add.at(self._flagged, bins[starts], np.add.reduceat(by_channel, starts, axis=0, dtype=np.int64))
        self._rows += np.bincount(bins[cross], minlength=len(self._rows))

    def result(self) -> dict[str, Any]:
        """Give the counts.

        Returns
        -------
        dict
            ``n_flagged``, ``n_total``; ``stations``: [flagged, all] by name, without those that have no row;
            ``lengths_m``: [flagged, all] by the lower edge of a bin; ``frequencies_hz``: of the first and the last
            channel; ``channels``: flagged of each; ``channel_total``: all, the same for each channel; ``times``: of
            the waterfall, ``start`` (MJD s), ``width_s``, ``groups`` (channels of each group but perhaps the last),
            ``flagged`` (time, group) and ``total`` (time), of one channel.
        """
        n_channels = len(self._frequencies)
        per_group = max(1, -(-n_channels // MAX_CHANNEL_GROUPS))
        groups = np.add.reduceat(self._flagged, np.arange(0, n_channels, per_group), axis=1)
        rows = int(self._rows.sum())
        return {
            "n_flagged": int(self._flagged.sum()),
            "n_total": rows * n_channels * self._n_correlations,
            "stations": {
                name: pair for name, pair in zip(self._stations, self._by_station.T.tolist(), strict=True) if pair[1]
            },
            "lengths_m": {
                str(edge): pair
                for edge, pair in zip(LENGTH_EDGES_M, self._by_length.T.tolist(), strict=False)
                if pair[1]
            },
            "frequencies_hz": [float(self._frequencies[0]), float(self._frequencies[-1])],
            "channels": self._flagged.sum(axis=0).tolist(),
            "channel_total": rows * self._n_correlations,
            "times": {
                "start": self._start,
                "width_s": self._slots_per_bin * self._interval,
                "per_group": per_group,
                "flagged": groups.tolist(),
                "total": (self._rows * self._n_correlations).tolist(),
            },
        }


def _count_correlations(flags: np.ndarray) -> np.ndarray:
    """Count the flagged correlations of each row and channel, (n_rows, n_channels) uint8."""
    size = flags.shape[2]
    if size in (1, 2, 4, 8):  # all correlations in one word: forty times faster than count_nonzero
        words = np.ascontiguousarray(flags).view(f"u{size}")
        return np.bitwise_count(words)[..., 0]
    return np.count_nonzero(flags, axis=2).astype(np.uint8)


# ---- adding ---------------------------------------------------------------------------------------------


@dataclass
class Waterfall:
    """Counts by time and channel group; bins in time do not overlap, and may leave gaps.

    Attributes
    ----------
    start, end : (n_bins,) float64
        MJD s.
    flagged, total : (n_bins, n_groups) int64
    """

    start: np.ndarray
    end: np.ndarray
    flagged: np.ndarray
    total: np.ndarray

    def joined(self, other: Waterfall) -> Waterfall:
        """Put two waterfalls one after the other, sorted by time."""
        parts = [np.concatenate(pair) for pair in zip(self.parts, other.parts, strict=True)]
        order = np.argsort(parts[0], kind="stable")
        return Waterfall(*(part[order] for part in parts))

    @property
    def parts(self) -> tuple[np.ndarray, ...]:
        """Its arrays."""
        return self.start, self.end, self.flagged, self.total

    def coarser(self, n_bins: int) -> Waterfall:
        """Unite neighbours in time until there are at most `n_bins`; across a gap only if nothing else helps."""
        result, width = self, (self.end.max() - self.start.min()) / n_bins if len(self.start) else 0.0
        while len(result.start) > n_bins:
            result, width = self._united(width, width * 1e-3 if len(result.start) < 4 * n_bins else width), 2 * width
        return result

    def _united(self, width: float, gap: float) -> Waterfall:
        first, edge = [0], self.start[0]
        for i in range(1, len(self.start)):
            if self.end[i] - edge > 1.001 * width or self.start[i] - self.end[i - 1] > gap + 1e-3:
                first.append(i)
                edge = self.start[i]
        last = [*(i - 1 for i in first[1:]), len(self.start) - 1]
        sums = (np.add.reduceat(counts, first, axis=0) for counts in (self.flagged, self.total))
        return Waterfall(self.start[first], self.end[last], *sums)


@dataclass
class Flags:
    """Counts of an observation at one stage: the sum over its chunks."""

    n_flagged: int = 0
    n_total: int = 0
    stations: dict[str, list[int]] = field(default_factory=dict)
    lengths_m: dict[int, list[int]] = field(default_factory=dict)
    frequencies_hz: tuple[float, float] = (0.0, 0.0)
    channels: np.ndarray | None = None
    channel_total: int = 0
    per_group: int = 1
    waterfall: Waterfall | None = None

    def add(self, counts: Mapping[str, Any]) -> None:
        """Add what `FlagCounter.result` found in one chunk.

        Raises
        ------
        ValueError
            It has other channels than the chunks before it.
        """
        channels = np.array(counts["channels"], np.int64)
        if self.channels is not None and len(self.channels) != len(channels):
            raise ValueError(f"{len(channels)} channels instead of {len(self.channels)}")
        self.channels = channels if self.channels is None else self.channels + channels
        self.frequencies_hz = tuple(counts["frequencies_hz"])
        self.n_flagged += counts["n_flagged"]
        self.n_total += counts["n_total"]
        self.channel_total += counts["channel_total"]
        _add_pairs(self.stations, counts["stations"].items())
        _add_pairs(self.lengths_m, ((int(edge), pair) for edge, pair in counts["lengths_m"].items()))
        self.per_group = counts["times"]["per_group"]
        part = _waterfall(counts["times"], len(channels))
        part = part if self.waterfall is None else self.waterfall.joined(part)
        self.waterfall = part.coarser(MAX_MERGED_BINS) if len(part.start) > 2 * MAX_MERGED_BINS else part

    @property
    def fraction(self) -> float | None:
        """Flagged fraction of all cross-correlations; None if nothing was counted."""
        return self.n_flagged / self.n_total if self.n_total else None

    def of(self, station: str) -> float | None:
        """Flagged fraction of a station's cross-correlations; None if it has none."""
        flagged, total = self.stations.get(station, (0, 0))
        return flagged / total if total else None

    def channel_frequencies(self) -> np.ndarray:
        """Frequencies of channels, (n_channels,) float64, Hz, taken as evenly spaced."""
        return np.linspace(*self.frequencies_hz, len(self.channels))

    def coarse_waterfall(self) -> Waterfall:
        """Give the waterfall with at most `MAX_MERGED_BINS` bins in time."""
        return self.waterfall.coarser(MAX_MERGED_BINS)


def _add_pairs(sums: dict, pairs: Iterable[tuple[Any, Sequence[int]]]) -> None:
    for key, (flagged, total) in pairs:
        known = sums.setdefault(key, [0, 0])
        known[0] += flagged
        known[1] += total


def _waterfall(times: Mapping[str, Any], n_channels: int) -> Waterfall:
    flagged = np.array(times["flagged"], np.int64)
    sizes = np.diff(np.append(np.arange(0, n_channels, times["per_group"]), n_channels))
    total = np.array(times["total"], np.int64)[:, None] * sizes
    start = times["start"] + times["width_s"] * np.arange(len(flagged))
    seen = total.any(axis=1)  # a gap in the data is no bin
    return Waterfall(start[seen], start[seen] + times["width_s"], flagged[seen], total[seen])
