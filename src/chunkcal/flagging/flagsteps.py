"""What each flagging step of DP3 has flagged in a chunk, as DP3 itself says.

DP3 6.6 (base/FlagCounter.cc) prints how many visibilities a step has flagged that were not flagged before: exact whole
numbers. By station and by channel it prints whole percents only, but saves float32 fractions in small tables if
``count.save`` asks for them. By baseline it prints whole percents, and saves nothing; the mean over the baselines of a
length is better than that, but a step that flags less than half a percent of each baseline shows as none. By time it
tells nothing: what a step flagged in a chunk is all that is known. All are visibilities, not correlations, and include
autocorrelations, except by length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from chunkcal.flagging.flags import LENGTH_EDGES_M, Flags, Waterfall

# Prefix of the tables' names, `MakeSaveFilename`: the input is called in.ms in every work folder.
_INPUT = "in"
_STEP_TOTAL = re.compile(
    r"^Flags set by \w+ (?P<step>\S+)\n=+\n(?P<tables>(?:(?!Flags set by ).*\n)*?)"
    r"Total flagged:.*\((?P<flagged>\d+) out of (?P<total>\d+) visibilities\)",
    re.MULTILINE,
)


def read_steps(log: str, work: Path) -> list[dict[str, Any]]:
    """Read what the flagging steps of one DP3 run have flagged.

    Parameters
    ----------
    log
        What the run has printed.
    work
        Its work folder, with the tables it saved; where there are none, only totals are given.

    Returns
    -------
    list of dict
        In the order of the steps: ``step`` (its name), ``n_flagged`` (visibilities that were not flagged before),
        ``n_total``; ``stations``, fractions by name; ``channels``, fractions of each; ``frequencies_hz`` of the first
        and the last channel; ``lengths_m``, by the lower edge of a bin of baseline lengths the sum of whole percents
        and the number of baselines.
    """
    steps = []
    for found in _STEP_TOTAL.finditer(log):
        name = found["step"].rstrip(".")
        stations = _saved(work / f"{_INPUT}_{name}.flagstat", ("Station", "Name", "Percentage"))
        channels = _saved(work / f"{_INPUT}_{name}.flagfreq", ("Frequency", "Percentage"))
        names = {int(number): station for number, station, _ in stations}
        steps.append(
            {
                "step": name,
                "n_flagged": int(found["flagged"]),
                "n_total": int(found["total"]),
                "stations": {station: round(float(percent) / 100, 8) for _, station, percent in stations},
                "channels": [round(float(percent) / 100, 8) for _, percent in channels],
                "frequencies_hz": [float(channels[i][0]) for i in (0, -1)] if channels else None,
                "lengths_m": _by_length(_percents(found["tables"]), names, work / f"{_INPUT}.ms"),
            }
        )
    return steps


def _saved(path: Path, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    if not (path / "table.dat").is_file():
        return []
    import casacore.tables as ct  # slow to import, and only who runs DP3 reads what it saved

    with ct.table(str(path), ack=False) as table:
        return list(zip(*(table.getcol(name) for name in columns), strict=True)) if table.nrows() else []


def _percents(printed: str) -> Iterator[tuple[int, int, int]]:
    """Read DP3's matrix of baselines: both stations, the second not before the first, and whole percents."""
    columns: list[int] = []
    for line in printed.splitlines():
        if line.startswith(" ant "):
            columns = [int(number) for number in line[4:].split()]
        elif not line[:4].strip().isdigit() or line[4:5] != " ":
            columns = []  # the totals, and whatever else is printed
        for place, second in enumerate(columns):
            cell = line[5 + 5 * place : 10 + 5 * place].strip()
            if cell.endswith("%") and int(line[:4]) <= second:
                yield int(line[:4]), second, int(cell[:-1])


def _by_length(percents: Iterable[tuple[int, int, int]], names: Mapping[int, str], ms: Path) -> dict[str, list[int]]:
    """Add up the percents of baselines of similar length; baselines of stations that DP3 has made are left out."""
    if not names or not (ms / "ANTENNA").is_dir():
        return {}
    import casacore.tables as ct

    with ct.table(str(ms / "ANTENNA"), ack=False) as table:
        positions = dict(zip(table.getcol("NAME"), table.getcol("POSITION"), strict=True))
    sums: dict[int, list[int]] = {}
    for first, second, percent in percents:
        ends = [positions.get(names.get(number)) for number in (first, second)]
        if first == second or any(end is None for end in ends):
            continue
        known = sums.setdefault(
            int(np.searchsorted(LENGTH_EDGES_M, np.linalg.norm(ends[0] - ends[1]), "right")), [0, 0]
        )
        known[0] += percent
        known[1] += 1
    return {str(LENGTH_EDGES_M[max(0, place - 1)]): sums[place] for place in sorted(sums)}


@dataclass
class FlagSteps:
    """What the flagging steps have flagged in an observation: the sum over its chunks.

    Attributes
    ----------
    totals : dict
        By step, [flagged, all] visibilities.
    stations, channels : dict
        By step, the sums behind `station_fractions` and `channel_fractions`.
    lengths_m : dict
        By step and lower edge of a bin of baseline lengths, [flagged, all] in a unit of its own.
    times : dict
        By step, (start, end, flagged, all) of each chunk, MJD s and visibilities.
    frequencies_hz : dict
        By step, of the first and the last channel of its input.
    """

    totals: dict[str, list[int]] = field(default_factory=dict)
    stations: dict[str, dict[str, float]] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    lengths_m: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    times: dict[str, list[tuple[float, float, int, int]]] = field(default_factory=dict)
    frequencies_hz: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, steps: Iterable[Mapping[str, Any]], start: float, end: float) -> None:
        """Add what `read_steps` found in one chunk, from start to end (MJD s); chunks weigh by their visibilities.

        A step may be there several times, if the chunk was made in pieces.
        """
        counts: dict[str, list[int]] = {}
        for one in steps:
            step, n_total = one["step"], one["n_total"]
            known = self.totals.setdefault(step, [0, 0])
            known[0] += one["n_flagged"]
            known[1] += n_total
            stations = self.stations.setdefault(step, {})
            for station, fraction in one.get("stations", {}).items():
                stations[station] = stations.get(station, 0.0) + fraction * n_total
            channels = np.array(one.get("channels", []), float) * n_total
            self.channels[step] = self.channels.get(step, 0.0) + channels
            lengths = self.lengths_m.setdefault(step, {})
            for edge, (percents, n_baselines) in one.get("lengths_m", {}).items():
                pair = lengths.setdefault(int(edge), [0.0, 0.0])
                pair[0] += percents / 100 * n_total
                pair[1] += n_baselines * n_total
            count = counts.setdefault(step, [0, 0])
            count[0] += one["n_flagged"]
            count[1] += n_total
            if one.get("frequencies_hz"):
                self.frequencies_hz[step] = tuple(one["frequencies_hz"])
        for step, (n_flagged, n_total) in counts.items():
            self.times.setdefault(step, []).append((start, end, n_flagged, n_total))

    def as_flags(self, step: str) -> Flags | None:
        """Give what a step flagged in the form of counts, for pictures; None if DP3 has saved too little of it."""
        if step not in self.frequencies_hz or not self.stations[step] or not self.channels[step].size:
            return None
        n_flagged, n_total = self.totals[step]
        start, end, *counts = (np.array(column) for column in zip(*sorted(self.times[step]), strict=True))
        return Flags(
            n_flagged=n_flagged,
            n_total=n_total,
            stations={name: [weighted, n_total] for name, weighted in self.stations[step].items()},
            lengths_m=self.lengths_m[step],
            frequencies_hz=self.frequencies_hz[step],
            channels=self.channels[step],
            channel_total=n_total,
            waterfall=Waterfall(start, end, *(count[:, None] for count in counts)),
        )

    def station_fractions(self, step: str) -> Iterator[tuple[str, float]]:
        """Give the flagged fraction of each station's visibilities."""
        for station, weighted in self.stations[step].items():
            yield station, weighted / self.totals[step][1]

    def channel_fractions(self, step: str) -> np.ndarray:
        """Give the flagged fraction of each channel of the step's input, (n_channels,)."""
        return self.channels[step] / max(1, self.totals[step][1])
