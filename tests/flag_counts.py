"""Flag counts as a chunk's record holds them, with wanted fractions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flag_counts(total: float, stations: Mapping[str, float], start: float = 1000.0, n_slots: int = 4) -> dict[str, Any]:
    """Counts of 1600 correlations per slot in 8 channels, `total` of them flagged; each station has 800 of them."""
    n = 200 * n_slots
    flagged = round(total * 8 * n)
    return {
        "total": total,
        "stations": dict(stations),
        "counts": {
            "n_flagged": flagged,
            "n_total": 8 * n,
            "stations": {name: [round(fraction * 4 * n), 4 * n] for name, fraction in stations.items()},
            "lengths_m": {"100": [flagged // 2, 4 * n], "5000": [flagged - flagged // 2, 4 * n]},
            "frequencies_hz": [120e6, 120.7e6],
            "channels": [flagged // 8] * 8,
            "channel_total": n,
            "times": {
                "start": start,
                "width_s": 10.0,
                "per_group": 1,
                "flagged": [[flagged // (8 * n_slots)] * 8] * n_slots,
                "total": [n // n_slots] * n_slots,
            },
        },
    }
