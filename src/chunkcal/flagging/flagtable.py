"""The flag statistics of an observation as a table, one row for each place that was counted."""

from __future__ import annotations

import csv
import datetime
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chunkcal.flagging.flags import LENGTH_EDGES_M, Flags
from chunkcal.flagging.flagsteps import FlagSteps

COLUMNS = ("stage", "axis", "name", "value", "n_flagged", "n_total", "fraction")
_ENDS_M = dict(zip(LENGTH_EDGES_M, LENGTH_EDGES_M[1:], strict=False))
_MJD_0 = datetime.datetime(1858, 11, 17, tzinfo=datetime.UTC)


def write_table(stages: Mapping[str, Flags], steps: FlagSteps, output: str | os.PathLike) -> None:
    """Write the flag statistics of an observation, tab-separated, one row for each place that was counted.

    Parameters
    ----------
    stages
        ``raw``, ``preprocess``, ``apply``, as far as there are any.
    steps
        What single flagging steps did, called ``<stage>.<step>``.
    output
        Columns as `COLUMNS`. ``axis`` is all, station, baseline_m (name: range; value: lower edge, m), channel (value:
        Hz), time (name: UTC start; value: centre, MJD s), time_channel (name: first and last channel; value: centre,
        MJD s). Rows of a stage like ``preprocess.aoflagger2`` say what this step of DP3 has flagged in addition, of
        visibilities with autocorrelations (but not by length); those of time are chunks; those of stations, channels
        and lengths have no counts, only a fraction.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
            writer.writerow(COLUMNS)
            for stage, flags in stages.items():
                writer.writerows((stage, *row, _fraction(*row[-2:])) for row in _rows(flags))
            writer.writerows(_step_rows(steps))
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def _rows(flags: Flags) -> Iterator[tuple[Any, ...]]:
    """Give (axis, name, value, n_flagged, n_total) of all that was counted."""
    yield "all", "all", "", flags.n_flagged, flags.n_total
    for name, pair in flags.stations.items():
        yield "station", name, "", *pair
    for edge, pair in sorted(flags.lengths_m.items()):
        yield "baseline_m", f"{edge}-{_ENDS_M[edge]}", edge, *pair
    if flags.channels is None:
        return
    for i, (frequency, flagged) in enumerate(zip(flags.channel_frequencies(), flags.channels.tolist(), strict=True)):
        yield "channel", i, f"{frequency:.1f}", flagged, flags.channel_total
    waterfall, n_channels = flags.coarse_waterfall(), len(flags.channels)
    for start, end, flagged, total in zip(*waterfall.parts, strict=True):
        yield "time", _utc(start), f"{(start + end) / 2:.3f}", int(flagged.sum()), int(total.sum())
    for start, end, flagged, total in zip(*waterfall.parts, strict=True):
        for group, pair in enumerate(zip(flagged.tolist(), total.tolist(), strict=True)):
            first = group * flags.per_group
            name = f"{first}-{min(first + flags.per_group, n_channels) - 1}"
            yield "time_channel", name, f"{(start + end) / 2:.3f}", *pair


def _step_rows(steps: FlagSteps) -> Iterator[tuple[Any, ...]]:
    for step, (flagged, total) in steps.totals.items():
        yield step, "all", "all", "", flagged, total, _fraction(flagged, total)
        for station, fraction in steps.station_fractions(step):
            yield step, "station", station, "", "", "", f"{fraction:.6g}"
        for edge, (flagged, total) in sorted(steps.lengths_m[step].items()):
            yield step, "baseline_m", f"{edge}-{_ENDS_M[edge]}", edge, "", "", f"{flagged / total:.3g}"
        for channel, fraction in enumerate(steps.channel_fractions(step).tolist()):
            yield step, "channel", channel, "", "", "", f"{fraction:.6g}"
        for start, end, *pair in sorted(steps.times[step]):
            yield step, "time", _utc(start), f"{(start + end) / 2:.3f}", *pair, _fraction(*pair)


def _fraction(flagged: int, total: int) -> str:
    return f"{flagged / total:.6g}" if total else ""


def _utc(mjd_s: float) -> str:
    return f"{_MJD_0 + datetime.timedelta(seconds=float(mjd_s)):%Y-%m-%dT%H:%M:%S}"
