"""Defaults of steps that depend on the observation, never on the machine; and what the steps make of its channels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from chunkcal.errors import UserError
from chunkcal.ms import Observation
from chunkcal.planning import chunkrules
from chunkcal.planning.steps import Pipeline, Step

# AOFlagger's default window. Longer windows find weaker RFI, but chunks are multiples of the window; 64 slots are
# 10 min of LOFAR and MeerKAT data at 8 to 10 s. It depends on the observation and the configuration alone: never on a
# machine's memory, as DP3's own default, nor on the chunk length, because then the result would.
WINDOW_SLOTS = 64
WINDOW_MIN_SLOTS = 8
WINDOW_MAX_BYTES = 1 << 30
AOFLAGGER_BYTES = 14.2  # per visibility of the window; measured with DP3 6.6


def with_defaults(pipeline: Pipeline, observation: Observation, solve_unit: int = 1) -> Pipeline:
    """Fill in what DP3 would otherwise take from the machine, or would do differently in chunks.

    AOFlagger gets a window without overlap, and no quality statistics (those of one chunk would pass for the whole).
    ``timeresolution`` becomes the number of slots that DP3 makes of it, so that plan and run cannot disagree.

    Parameters
    ----------
    pipeline, observation
        The steps, and what they will run on.
    solve_unit : int
        Input slots of a solution interval; the window becomes a multiple of it where memory allows.
    """
    done: list[Step] = []
    for step in pipeline.steps:
        before = replace(pipeline, steps=tuple(done))
        values = dict(step.parameters)
        factor = before.unit(observation).time_factor
        if step.type == "averager" and chunkrules.number(values, "timeresolution", 0) > 0:
            values["timestep"] = chunkrules.averaging_steps(values, observation.interval_s * factor)
            del values["timeresolution"]
        elif step.type == "aoflagger":
            values = _flagger_defaults(values, pipeline, before, observation, solve_unit)
        done.append(replace(step, parameters=values))
    return replace(pipeline, steps=tuple(done))


def _flagger_defaults(
    values: dict[str, Any], pipeline: Pipeline, before: Pipeline, observation: Observation, solve_unit: int
) -> dict[str, Any]:
    if not any(key in values for key in ("overlapperc", "overlapmax", "overlap")):
        values["overlapperc"] = 0
    values.setdefault("keepstatistics", False)
    if chunkrules.integer(values, "timewindow", 0) == 0:
        others = replace(pipeline, steps=tuple(step for step in pipeline.steps if step.type != "aoflagger"))
        factor = before.unit(observation).time_factor
        unit = math.lcm(others.unit(observation).n_slots, solve_unit, factor) // factor
        channels = channels_after(before, observation)
        n_visibilities = observation.n_baselines * (channels.n or observation.n_channels) * observation.n_correlations
        values["timewindow"] = default_window(n_visibilities, unit, -(-observation.n_slots // factor))
    return values


def default_window(n_visibilities: int, unit: int, n_slots: int) -> int:
    """Choose AOFlagger's window.

    Parameters
    ----------
    n_visibilities : int
        Baselines x channels x correlations of a slot.
    unit : int
        What the rest of the configuration wants chunks to be multiples of, in the flagger's slots.
    n_slots : int
        Slots of the whole observation.

    Returns
    -------
    int
        `WINDOW_SLOTS` rounded up to a multiple of `unit`; less, but a multiple or a divisor of `unit`, where the window
        would take more than `WINDOW_MAX_BYTES`; no more than `n_slots`.
    """
    fits = max(WINDOW_MIN_SLOTS, int(WINDOW_MAX_BYTES / (AOFLAGGER_BYTES * n_visibilities)))
    window = -(-WINDOW_SLOTS // unit) * unit
    if window > fits:
        window = fits // unit * unit or max(n for n in range(1, fits + 1) if unit % n == 0)
    return min(window, n_slots)


@dataclass(frozen=True)
class Channels:
    """Channels after some steps: their number (None if only DP3 can tell) and how many became one."""

    n: int | None
    factor: int = 1


def channels_after(pipeline: Pipeline, observation: Observation) -> Channels:
    """Follow channel selection and averaging through the steps.

    Raises
    ------
    UserError
        An average over channels that do not divide evenly, which DP3 refuses.
    """
    channels = Channels(_selected(pipeline.ms_in, observation.n_channels))
    for step in pipeline.steps:
        if step.type == "filter":
            channels = Channels(_selected(step.parameters, channels.n), channels.factor)
        elif step.type in ("averager", "demixer"):
            n = _channel_step(step, observation.channel_width_hz * channels.factor)
            n = min(n, channels.n or n)
            if channels.n is not None and channels.n % n:
                where = f"preprocess.steps: {step.name}"
                raise UserError(f"{where}: {channels.n} channels cannot be averaged by {n}; DP3 wants a divisor")
            channels = Channels(channels.n and channels.n // n, channels.factor * n)
    return channels


def _selected(values: Mapping[str, Any], n_channels: int | None) -> int | None:
    if "startchan" not in values and "nchan" not in values:
        return n_channels
    start, n = (chunkrules.number(values, key, 0) for key in ("startchan", "nchan"))
    if n_channels is None or math.isnan(start) or math.isnan(n):
        return None  # expressions in nchan
    left = n_channels - int(start)
    return min(int(n), left) if n else left


def _channel_step(step: Step, width_hz: float) -> int:
    """Channels that become one (DP3 6.6, steps/Averager.cc): ``freqresolution`` wins over ``freqstep``."""
    text = str(step.parameters.get("freqresolution", "0")).strip() if step.type == "averager" else "0"
    match = re.fullmatch(r"([0-9.eE+-]+)\s*([kMG]?Hz)?", text)
    try:
        resolution = float(match.group(1)) * {"k": 1e3, "M": 1e6, "G": 1e9}.get((match.group(2) or "H")[0], 1.0)
    except (AttributeError, ValueError):
        raise UserError(
            f"preprocess.steps: {step.name}: freqresolution {text!r} is no frequency; write 48.8kHz or 48800"
        ) from None
    if resolution > 0:
        return max(1, int(resolution / width_hz + 0.5))
    return max(1, chunkrules.integer(step.parameters, "freqstep", 1))
