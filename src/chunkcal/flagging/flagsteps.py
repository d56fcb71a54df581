"""What each flagging step of DP3 has flagged in a chunk, as DP3 itself says.

DP3 6.6 (base/FlagCounter.cc) prints how many visibilities a step has flagged that were not flagged before: exact whole
numbers. By station and by channel it prints whole percents only, but saves float32 fractions in small tables if
``count.save`` asks for them. All are visibilities, not correlations, and include autocorrelations. By time and by
baseline length DP3 tells nothing; these are counted before and after the stage (`chunkcal.flagging.flags`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import casacore.tables as ct
import numpy as np

# Prefix of the tables' names, `MakeSaveFilename`: the input is called in.ms in every work folder.
_INPUT = "in"
_STEP_TOTAL = re.compile(
    r"^Flags set by \w+ (?P<step>\S+)\n=+\n(?:(?!Flags set by ).*\n)*?"
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
        ``n_total``; ``stations``, fractions by name, and ``channels``, fractions of each.
    """
    steps = []
    for found in _STEP_TOTAL.finditer(log):
        name = found["step"].rstrip(".")
        stations = _saved(work / f"{_INPUT}_{name}.flagstat", ("Name", "Percentage"))
        channels = _saved(work / f"{_INPUT}_{name}.flagfreq", ("Percentage",))
        steps.append(
            {
                "step": name,
                "n_flagged": int(found["flagged"]),
                "n_total": int(found["total"]),
                "stations": {station: round(float(percent) / 100, 8) for station, percent in stations},
                "channels": [round(float(percent) / 100, 8) for (percent,) in channels],
            }
        )
    return steps


def _saved(path: Path, columns: tuple[str, ...]) -> list[tuple[Any, ...]]:
    if not (path / "table.dat").is_file():
        return []
    with ct.table(str(path), ack=False) as table:
        return list(zip(*(table.getcol(name) for name in columns), strict=True)) if table.nrows() else []


@dataclass
class FlagSteps:
    """What the flagging steps have flagged in an observation: the sum over its chunks.

    Attributes
    ----------
    totals : dict
        By step, [flagged, all] visibilities.
    stations, channels : dict
        By step, the sums behind `station_fractions` and `channel_fractions`.
    """

    totals: dict[str, list[int]] = field(default_factory=dict)
    stations: dict[str, dict[str, float]] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, steps: Iterable[Mapping[str, Any]]) -> None:
        """Add what `read_steps` found in one chunk; chunks weigh by their visibilities."""
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

    def station_fractions(self, step: str) -> Iterator[tuple[str, float]]:
        """Give the flagged fraction of each station's visibilities."""
        for station, weighted in self.stations[step].items():
            yield station, weighted / self.totals[step][1]

    def channel_fractions(self, step: str) -> np.ndarray:
        """Give the flagged fraction of each channel of the step's input, (n_channels,)."""
        return self.channels[step] / max(1, self.totals[step][1])
