"""Judges the merged solutions of an observation, solve by solve."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chunkcal.quality import statistics
from chunkcal.quality.limits import VERDICTS, Limit, limits_from
from chunkcal.quality.statistics import median
from chunkcal.quality.tables import Block, Chunks, read_blocks
from chunkcal.quality.words import percent, times, utc
from chunkcal.solutions import h5parm

# Stations of one array differ by a factor of a few; one that is weaker than this has no signal, only noise.
DEAD_AMPLITUDE = 0.05
# Solves of these mostly go on to `maxiter`, good or not (tried: TEC, rotation and diagonal): not worth counting.
NEVER_CONVERGE = {"tec", "delay", "rotation", "rotationmeasure"}
# The seams of a chunk with this robust z of its noise are not judged: a noisy chunk is named once, as such. Clean
# synthetic gains stay below it.
NOISY_CHUNK = 2.25
MAX_OTHERS = 10  # further places that a figure names
_NOISE = {
    "phase": "phase_noise_rad",
    "amplitude": "amplitude_noise",
    "tec": "tec_noise_tecu",
    "rotation": "rotation_noise_rad",
    "rotationmeasure": "rotationmeasure_noise_rad_m2",
    "delay": "delay_noise_s",
}


def judge(
    obs: str,
    solves: Mapping[str, str | os.PathLike],
    seams: Mapping[str, Sequence[int]],
    limits: Mapping[str, Any],
    failed_chunks: Mapping[str, Sequence[tuple[str, int, int]]],
    convergence: Mapping[str, Mapping[str, int]],
) -> dict[str, Any]:
    """Judge the solutions of an observation.

    Parameters
    ----------
    obs
        Name of the observation.
    solves
        Merged h5parm of each solve, by its name.
    seams
        By solve, the first solution of each chunk but the first.
    limits
        As `limits_from` takes them: section ``quality.limits`` of the configuration.
    failed_chunks
        By solve, name, first solution and number of solutions of each chunk that failed.
    convergence
        By solve, as `chunkcal.dp3log.convergence`, summed over chunks.

    Returns
    -------
    dict
        ``{"obs", "verdict", "solves": {solve: {"verdict", "figures", "stations"}}}``, fit for JSON. A figure is
        ``{"value", "warn", "fail", "verdict", "unit", "what", "where", "others"}``: the worst place, what is wrong
        there in a sentence, and further places beyond the limit. A figure that means nothing for a solve is
        absent: phase noise without phases, seams with one chunk, noise with one solution, convergence of TEC and
        rotation, which DDECal iterates to the end. Stations have
        ``flagged_fraction``, ``is_dead`` and, if they can be told, their noises and ``amplitude_drift`` (change
        of the logarithm).

    Raises
    ------
    UserError
        `limits` is wrong, or an h5parm is missing or damaged.
    """
    usable = limits_from(limits)
    found = {
        name: _judge_solve(path, seams.get(name, ()), failed_chunks.get(name, ()), convergence.get(name, {}), usable)
        for name, path in solves.items()
    }
    return {"obs": obs, "verdict": _worst(one["verdict"] for one in found.values()), "solves": found}


def _worst(verdicts: Any) -> str:
    return max(verdicts, key=VERDICTS.index, default="pass")


@dataclass(frozen=True)
class _Finding:
    value: float
    what: str
    where: dict[str, Any]

    @property
    def label(self) -> str:
        return str(self.where.get("station") or self.where.get("chunk") or "")


@dataclass
class _Findings:
    """What was found so far about a solve: by figure, and by station."""

    limits: Mapping[str, Limit]
    chunks: Chunks
    times: np.ndarray  # (n_solutions,) MJD s
    figures: dict[str, list[_Finding]] = field(default_factory=dict)
    stations: dict[str, dict[str, Any]] = field(default_factory=dict)
    flagged: dict[str, np.ndarray] = field(default_factory=dict)  # by station and chunk: flagged, all
    silent: dict[tuple[str, str], float] = field(default_factory=dict)  # (station, direction) without signal: amplitude

    def add(self, figure: str, value: float, what: str, **where: Any) -> None:
        """Note a value of a figure; one that is NaN is none."""
        if math.isfinite(value):
            self.figures.setdefault(figure, []).append(
                _Finding(float(value), what, {key: one for key, one in where.items() if one != ""})
            )

    def add_station(self, station: str, key: str, value: float) -> None:
        """Note a value of a station; the largest of its directions stays."""
        if math.isfinite(value) and abs(value) >= abs(self.stations[station].get(key, 0.0)):
            self.stations[station][key] = _round(value)

    def figure(self, name: str) -> dict[str, Any]:
        """Judge a figure by its worst finding."""
        limit = self.limits[name]
        ranked = sorted(self.figures[name], key=lambda one: one.value, reverse=not limit.is_minimum)
        worst = ranked[0]
        others = [one.label for one in ranked if one.label and limit.verdict(one.value) != "pass"]
        others = [label for label in dict.fromkeys(others) if label != worst.label]
        also = ", ".join(others[:MAX_OTHERS]) + (f" and {len(others) - MAX_OTHERS} more" if others[MAX_OTHERS:] else "")
        return {
            "value": _round(worst.value),
            "warn": limit.warn,
            "fail": limit.fail,
            "verdict": limit.verdict(worst.value),
            "unit": limit.unit,
            "what": f"{worst.what}; also {also}" if others else worst.what,
            "where": worst.where,
            "others": others[:MAX_OTHERS],
        }


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _judge_solve(
    path: str | os.PathLike,
    seams: Sequence[int],
    failed: Sequence[tuple[str, int, int]],
    convergence: Mapping[str, int],
    limits: Mapping[str, Limit],
) -> dict[str, Any]:
    grid = h5parm.solution_times(path)
    found = _Findings(limits, Chunks.of(len(grid), seams, failed), grid)
    _note_failed(found, failed)
    kinds = set()
    for block in read_blocks(path):
        kinds.add(block.kind)
        for station in block.stations:
            found.stations.setdefault(station, {})
        _count_flagged(found, block)
        _mute(found, block)
        _note_steps(found, block)
        if block.kind == "amplitude":
            _note_drift(found, block)
    _note_flagged(found)
    if not kinds & NEVER_CONVERGE:
        _note_convergence(found, convergence)
    figures = {name: found.figure(name) for name in limits if name in found.figures}
    return {
        "verdict": _worst(figure["verdict"] for figure in figures.values()),
        "figures": figures,
        "stations": found.stations,
    }


# ---- what is missing ------------------------------------------------------------------------------------


def _note_convergence(found: _Findings, convergence: Mapping[str, int]) -> None:
    n = convergence.get("n", 0)
    if n:
        what = f"{convergence['converged']} of {n} solution intervals converged"
        found.add("converged_fraction", convergence["converged"] / n, what)


def _note_failed(found: _Findings, failed: Sequence[tuple[str, int, int]]) -> None:
    if not failed:
        found.add("failed_fraction", 0.0, "no chunk failed")
        return
    n_failed = sum(n for _, _, n in failed)
    value = n_failed / len(found.times)
    for name, first, n in sorted(failed, key=lambda chunk: -chunk[2]):
        what = f"chunk {name} failed: it has none of its {n} solutions ({percent(value)} of all are lost)"
        found.add("failed_fraction", value, what, chunk=name, time=utc(found.times[first]))


def _count_flagged(found: _Findings, block: Block) -> None:
    """Add up the flagged solutions of each station and chunk."""
    is_flagged = np.isnan(block.values) & found.chunks.is_judged[:, None, None]
    flagged = np.add.reduceat(is_flagged.sum(axis=2), found.chunks.firsts, axis=0)
    total = np.add.reduceat(found.chunks.is_judged * block.values.shape[2], found.chunks.firsts)
    for i, station in enumerate(block.stations):
        counts = np.stack([flagged[:, i], total])
        found.flagged[station] = found.flagged.get(station, 0) + counts


def _mute(found: _Findings, block: Block) -> None:
    """Take stations without signal out of further figures: their amplitudes tell, in all tables of the direction."""
    if block.kind == "amplitude" and len(block.stations) >= 3:
        level = median(block.values.swapaxes(0, 1).reshape(len(block.stations), -1), 1)
        level = np.exp(level - median(level, 0))
        for i in np.flatnonzero(level < DEAD_AMPLITUDE):
            found.silent[block.stations[i], block.direction] = float(level[i])
    is_silent = [(station, block.direction) in found.silent for station in block.stations]
    block.values[:, is_silent] = np.nan


def _note_flagged(found: _Findings) -> None:
    """Judge flagged fractions of stations and chunks, and name the dead stations."""
    silent = {station: (direction, level) for (station, direction), level in found.silent.items()}
    living, flagged, total = [], 0, 0
    dead: dict[str, tuple[str, str]] = {}
    for station, by_chunk in found.flagged.items():
        n_flagged, n = by_chunk.sum(axis=1)
        flagged, total = flagged + n_flagged, total + n
        fraction = n_flagged / n if n else math.nan
        found.add_station(station, "flagged_fraction", fraction)
        if fraction == 1:
            dead[station] = ("", "all its solutions are flagged")
        elif station in silent:
            direction, level = silent[station]
            dead[station] = (direction, f"its amplitude is {percent(level)} of the median station's")
        else:
            living.append(by_chunk)
            what = f"of the stations alive, {station} has most flagged: {percent(fraction)} of its solutions"
            found.add("flagged_fraction", fraction, what, station=station)
        found.stations[station]["is_dead"] = station in dead
    for station, (direction, why) in dead.items():
        what = f"station {station} is dead{_in(direction)}: {why}"
        found.add("dead_station_fraction", len(dead) / len(found.flagged), what, station=station, direction=direction)
    if not dead:
        found.add("dead_station_fraction", 0.0, "no station is dead")
    if total:
        what = f"{percent(flagged / total)} of the solutions of all stations are flagged"
        found.add("array_flagged_fraction", flagged / total, what)
    if living and len(found.chunks.names) > 1:
        _note_flagged_chunks(found, *np.sum(living, axis=0))


def _note_flagged_chunks(found: _Findings, flagged: np.ndarray, total: np.ndarray) -> None:
    fraction = np.divide(flagged, total, where=total > 0, out=np.full(len(total), np.nan))
    for c, name in enumerate(found.chunks.names):
        usual = float(median(np.delete(fraction, c), 0))
        what = f"chunk {name}: {percent(fraction[c])} of its solutions are flagged, {percent(usual)} in other chunks"
        at = utc(found.times[found.chunks.firsts[c]])
        found.add("chunk_flagged", np.maximum(0.0, fraction[c] - usual), what, chunk=name, time=at)


# ---- what is there --------------------------------------------------------------------------------------


def _note_steps(found: _Findings, block: Block) -> None:
    """Judge what the steps between neighbouring solutions tell: noise, noisy chunks, seams."""
    intervals = np.diff(found.times)
    kind = block.comparison
    is_next = intervals < 1.5 * np.median(intervals) if len(intervals) else np.zeros(0, bool)
    steps = statistics.steps_between(block.values, kind, is_next)
    if not len(steps):
        return
    place = {"table": block.table, "direction": block.direction}
    figure, unit = _NOISE[block.kind], f" {kind.unit}" if kind.unit else ""
    sigma = statistics.noise(steps)
    for station, value in zip(block.stations, sigma.tolist(), strict=True):
        found.add_station(station, figure, value)
        what = (
            f"the noisiest station is {station}: its {block.kind}{_in(block.direction)} scatters by {value:.3g}{unit}"
        )
        found.add(figure, value, what, station=station, **place)
    value = float(median(sigma, 0))
    what = f"the {block.kind} of the median station{_in(block.direction)} scatters by {value:.3g}{unit}"
    found.add(f"array_{figure}", value, what, **place)
    if len(found.chunks.names) > 1:
        noisy = _note_noisy_chunks(found, block, steps, place)
        _note_seams(found, block, steps, noisy, place)


def _note_noisy_chunks(found: _Findings, block: Block, steps: np.ndarray, place: Mapping[str, str]) -> set[int]:
    """Judge the noise of each chunk against the others; give those whose seams cannot be judged."""
    chunks = found.chunks
    z, factor = statistics.chunk_noise(steps, chunks.firsts, block.comparison)
    for c, name in enumerate(chunks.names):
        what = f"chunk {name}: {block.kind}{_in(block.direction)} is {times(factor[c])} as noisy as in the other chunks"
        found.add(
            "chunk_noise", np.maximum(0.0, z[c]), what, chunk=name, time=utc(found.times[chunks.firsts[c]]), **place
        )
    return set(np.flatnonzero(z > NOISY_CHUNK).tolist())


def _note_seams(found: _Findings, block: Block, steps: np.ndarray, noisy: set[int], place: Mapping[str, str]) -> None:
    """Judge the jumps at chunk seams, but not those of noisy chunks: one fault is named once."""
    chunks, kind = found.chunks, block.comparison
    behind = [c for c in range(1, len(chunks.names)) if not noisy & {c - 1, c}]
    seams = statistics.seam_jumps(median(steps, 2), [chunks.firsts[c] for c in behind], kind)
    for c, jump, in_steps in zip(behind, seams.jump, seams.in_steps, strict=True):
        if np.isnan(in_steps).all():
            continue
        i = int(np.nanargmax(in_steps))
        size = f"{abs(jump[i]):.3g} {kind.unit}" if kind.unit else times(math.exp(abs(jump[i])))
        what = (
            f"station {block.stations[i]}: {block.kind}{_in(block.direction)} jumps by {size} between chunks"
            f" {chunks.names[c - 1]} and {chunks.names[c]}, {times(in_steps[i])} its ordinary step"
        )
        where = {"station": block.stations[i], "chunk": chunks.names[c], "time": utc(found.times[chunks.firsts[c]])}
        found.add("seam_jump", in_steps[i], what, **where, **place)
    what = f"jumps of {block.kind}{_in(block.direction)} at chunk seams are {times(seams.ratio)} as large as elsewhere"
    found.add("seam_ratio", seams.ratio, what, **place)


def _note_drift(found: _Findings, block: Block) -> None:
    """Judge the drift of amplitudes from the beginning to the end."""
    drift, is_significant = statistics.drifts(median(block.values, 2))
    if np.isnan(drift).all():
        return
    found.add("amplitude_drift", 0.0, "no amplitude drifts beyond its noise and what those of other stations do")
    for i, station in enumerate(block.stations):
        found.add_station(station, "amplitude_drift", float(drift[i]))
        if is_significant[i]:
            factor = math.exp(abs(drift[i]))
            how = "grows" if drift[i] > 0 else "shrinks"
            what = f"station {station}: amplitude{_in(block.direction)} {how} {times(factor)} from start to end"
            where = {"station": station, "table": block.table, "direction": block.direction}
            found.add("amplitude_drift", factor - 1, what, **where)


def _in(direction: str) -> str:
    return f" in direction {direction}" if direction else ""
