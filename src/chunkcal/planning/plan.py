"""The plan: where each observation is cut, and the DP3 runs of every stage.

Everything that DP3 would say only chunk by chunk, or not at all, is said here. Nothing depends on the machine but the
length of chunks with ``length: auto``, which goes by the slots of the cluster, and changes no bit of any result.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from chunkcal import dp3
from chunkcal.errors import UserError
from chunkcal.inputs import for_observation
from chunkcal.ms import Observation, read_observation
from chunkcal.planning import chunkrules, requests, stepdefaults, strategy
from chunkcal.planning.chunkrules import Unit
from chunkcal.planning.cutting import boundary_unit, choose_length, cut, refuse_inexact
from chunkcal.planning.skymodel import SkyModel, read_patches
from chunkcal.planning.solves import Solve, SolveInput
from chunkcal.planning.steps import Pipeline, parse_steps, preprocess_run
from chunkcal.planning.strategy import Strategy
from chunkcal.quality.limits import limits_from
from chunkcal.solutions.solutionsteps import name_of

# Memory of a DP3 process, measured with DP3 6.6: of the program, and of each visibility of a solution interval.
DP3_BYTES = 91e6
SOLVE_BYTES = 32
DIRECTION_BYTES = 16
# Work of a DP3 process for each visibility (of one correlation), CPU s, to choose a length of chunks by: flagging and
# averaging 7.1e6 visibilities took 2.5 s, solving for one direction (diagonal, 30 stations) 8.2 s for 1.8e6. Right to
# a factor of three or so: it depends on the sky model, the stations, and how fast solutions converge.
PREPROCESS_S = 0.36e-6
SOLVE_S = 4.6e-6


@dataclass(frozen=True)
class Plan:
    """The plans of all observations by name, each as JSON can hold it; see `plan_observation`."""

    observations: dict[str, dict[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        """Give the chunk table, a row per chunk; `n_<solve>` is the number of solutions of those that it has."""
        return [
            {"obs": obs, "chunk": chunk["name"]}
            | {key: value for key, value in chunk.items() if key != "name"}
            | {f"n_{name}": requests.n_solutions(plan, name, chunk) for name in plan["solves"]}
            | {"exact": plan["exact"]}
            for obs, plan in self.observations.items()
            for chunk in plan["chunks"]
        ]

    def write(self, table: str | os.PathLike, plan: str | os.PathLike) -> None:
        """Write the chunk table (tab-separated) and the plans (JSON)."""
        for path in (table, plan):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        rows = self.rows()
        # Not with pandas, which takes longer to import than all else takes here.
        with open(table, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(
                stream, list(dict.fromkeys(key for row in rows for key in row)), delimiter="\t", lineterminator="\n"
            )
            writer.writeheader()
            for row in rows:
                writer.writerow({k: f"{v:.9f}" if isinstance(v, float) else v for k, v in row.items()})
        Path(plan).write_text(json.dumps(self.observations, indent=1) + "\n", encoding="utf-8")


def make_plan(
    observations: Sequence[Mapping[str, Any]],
    sections: Mapping[str, Any],
    dp3_version: str | None = None,
    slots_each: int | None = None,
    previous_lengths: Mapping[str, int] | None = None,
) -> Plan:
    """Plan all observations.

    Parameters
    ----------
    observations
        Of each, as `inputs.resolve_observations` gives them: ``obs`` (name), ``ms`` (path) and ``sky_model`` (path or
        None); ``chunk_s`` and ``h5parm``, if it has its own.
    sections
        Of the validated configuration: ``chunks``, ``preprocess``, ``calibrate``, ``apply``, ``quality``,
        ``extra_inputs_dir`` and ``dp3``.
    dp3_version
        Goes into each plan: products that another DP3 has made are out of date.
    slots_each
        Slots of the cluster that each observation can count on, for ``chunks: {length: auto}``.
    previous_lengths
        By name of the observation, the length of its chunks in an earlier plan, which ``auto`` stays with.

    Raises
    ------
    UserError
        With everything that DP3 would only say chunk by chunk, or not at all, about all observations.
    """
    limits_from((sections.get("quality") or {}).get("limits") or {})  # refuses what is wrong, before anything runs
    command = dp3.find_command((sections.get("dp3") or {}).get("command", "auto"))
    command_is_users = not dp3.is_wheel(command)
    plans, problems = {}, []
    for entry in observations:
        try:
            previous = (previous_lengths or {}).get(entry["obs"])
            own = _own_sections(entry, sections)
            plans[entry["obs"]] = plan_observation(entry, own, command_is_users, slots_each, previous)
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return Plan({obs: plan | {"dp3_version": dp3_version} for obs, plan in plans.items()})


def _own_sections(entry: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """Give the sections of the configuration as they are for one observation."""
    own = dict(sections)
    for key in ("preprocess", "calibrate"):
        own[key] = for_observation(sections.get(key), entry)
    if entry.get("chunk_s") is not None:
        approximate = sections["chunks"].get("allow_approximate", False)
        own["chunks"] = {"duration_s": entry["chunk_s"], "allow_approximate": approximate}
    return own


def plan_observation(
    entry: Mapping[str, Any],
    sections: Mapping[str, Any],
    command_is_users: bool = False,
    slots_each: int | None = None,
    previous_length: int | None = None,
) -> dict[str, Any]:
    """Plan one observation.

    Returns
    -------
    dict
        ``observation`` (as `Observation.to_dict`); ``unit`` (`Unit`), ``exact``, ``chunk_length``, ``notes``;
        ``time_factor``; ``data`` (the pre-processed data); ``nan_weights``; ``solves`` by name; ``runs`` by stage
        (None if not run); ``memory_mb`` by stage; ``chunks`` (list of `Chunk`).
    """
    preprocess = sections.get("preprocess") or {}
    pipeline = parse_steps(preprocess.get("steps") or [], preprocess.get("allow_unknown_step_parameters", False))
    observation, model = _read_inputs(entry, pipeline, sections)
    given = _given(pipeline, observation)
    calibration = None
    if model:
        path, base = os.path.abspath(entry["sky_model"]), sections.get("extra_inputs_dir")
        calibration = strategy.resolve_strategy(sections["calibrate"], path, model, given, base)
    solves = calibration.solves if calibration else ()
    own = math.lcm(*(solve.solint for solve in solves)) * pipeline.unit(observation).time_factor
    pipeline = stepdefaults.with_defaults(pipeline, observation, solve_unit=own)
    unit = boundary_unit(pipeline, solves, given, observation)
    work = _slot_seconds(solves, observation, _data(pipeline, observation, unit), unit.time_factor)
    length = choose_length(sections["chunks"], unit, observation, slots_each, previous_length, work)
    chunks = cut(observation, unit, length.n_slots)
    exact = refuse_inexact(unit, len(chunks), sections["chunks"].get("allow_approximate", False), observation.name)
    runs = _runs(pipeline, calibration, observation, sections, command_is_users)
    notes = [
        *runs["preprocess"].pop("notes"),
        *(note for solve in solves for note in solve.notes),
        *_notes(calibration, sections.get("apply") or {}, pipeline.unit(observation).time_factor),
        *([length.note] if length.note else ()),
    ]
    interpolation = (sections.get("apply") or {}).get("interpolation", "linear")
    if solves and interpolation == "linear" and len(chunks) > 1 and not observation.grid_is_exact:
        text = "linear interpolation follows the rounding of slot times (1 us), so the last bit of DATA may differ"
        unit = replace(unit, rounding=(*unit.rounding, f"apply: {text}; nearest does not"))
    data = _data(pipeline, observation, unit)
    return {
        "observation": observation.to_dict(),
        "unit": asdict(unit),
        "exact": exact,
        "chunk_length": length.n_slots,
        "notes": notes,
        "time_factor": unit.time_factor,
        "data": data,
        "nan_weights": sections["calibrate"].get("nan_weights", "flag") if calibration else None,
        "solves": {solve.name: _solve_grid(solve, data) for solve in solves},
        "runs": runs,
        "memory_mb": _memory(pipeline, solves, observation, data, runs),
        "chunks": [asdict(chunk) for chunk in chunks],
    }


def _read_inputs(
    entry: Mapping[str, Any], pipeline: Pipeline, sections: Mapping[str, Any]
) -> tuple[Observation, SkyModel | None]:
    """Read the MeasurementSet and, if there is something to solve for, the sky model; both are told if both are bad."""
    problems: list[str] = []
    observation = model = None
    try:
        column = str(pipeline.ms_in.get("datacolumn", "DATA"))
        observation = read_observation(entry["ms"], entry["obs"], data_column=column, band=_band(pipeline))
    except UserError as error:
        problems += error.lines
    try:
        model = _read_sky_model(entry) if sections.get("calibrate") else None
    except UserError as error:
        problems += error.lines
    if problems:
        raise UserError(*problems)
    return observation, model


def _read_sky_model(entry: Mapping[str, Any]) -> SkyModel:
    if not entry.get("sky_model"):
        raise UserError(f"{entry['obs']}: there is no sky model to calibrate against; set calibrate.sky_model")
    return read_patches(os.path.abspath(entry["sky_model"]))


def _band(pipeline: Pipeline) -> int | None:
    band = chunkrules.number(pipeline.ms_in, "band", -1.0)
    if not band.is_integer():
        raise UserError(f"MsIn: band {pipeline.ms_in['band']!r} is not the number of a spectral window")
    return int(band) if band >= 0 else None


def _given(pipeline: Pipeline, observation: Observation) -> SolveInput:
    """Describe the data that the first solve gets."""
    factor = pipeline.unit(observation).time_factor
    channels = stepdefaults.channels_after(pipeline, observation)
    keeps_stations = not any(step.type in ("filter", "stationadder") for step in pipeline.steps)
    return SolveInput(
        interval_s=observation.interval_s * factor,
        n_slots=-(-observation.n_slots // factor),
        channel_width_hz=observation.channel_width_hz * channels.factor,
        n_channels=channels.n,
        stations=observation.stations if keeps_stations else None,
        grid_is_exact=observation.grid_is_exact,
    )


def _notes(calibration: Strategy | None, apply: Mapping[str, Any], time_factor: int) -> list[str]:
    """Say what users should know of their strategy."""
    if calibration is None:
        return []
    notes = []
    if calibration.is_directional and not (apply.get("direction") or apply.get("subtract")):
        names = ", ".join(solve.name for solve in calibration.passes[-1].solves)
        notes.append(
            f"apply: the solutions of {names} differ between directions and are left to the imager; set apply.direction"
            " or apply.subtract to use them here"
        )
    for solve in calibration.solves[:-1]:
        # A common phase of all stations cancels; anything else, later solves have counted on.
        changed = [name_of(step) for step in solve.process if name_of(step) != "reference"]
        if changed:
            notes.append(
                f"solve {solve.name}: {', '.join(changed)} change what later solves have built on, so that it may be"
                " corrected for twice or not at all; process the last solve instead, or solve in two runs with preapply"
            )
    single = [solve.name for solve in calibration.solves if solve.depends_on_threads]
    if single:
        notes.append(
            f"calibrate: DP3 runs with one thread, because {', '.join(single)} would have other bits with more"
            " (solver_algorithm); take more slots instead of more threads"
        )
    intervals = sorted({solve.solint for solve in calibration.solves})
    nested = [intervals[0]]
    for interval in intervals[1:]:
        nested.append(max(1, round(interval / nested[-1])) * nested[-1])
    if math.lcm(*intervals) > max(nested):
        notes.append(
            f"calibrate: solution intervals of {_list(intervals)} slots make chunks multiples of"
            f" {math.lcm(*intervals) * time_factor} slots; with {_list(nested)} it would be {max(nested) * time_factor}"
        )
    return notes


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def _runs(
    pipeline: Pipeline,
    calibration: Strategy | None,
    observation: Observation,
    sections: Mapping[str, Any],
    command_is_users: bool,
) -> dict[str, Any]:
    base = sections.get("extra_inputs_dir")
    preprocess = preprocess_run(pipeline, observation, base, command_is_users)
    wheels = str(dp3.strategies_dir() or "\0")
    preprocess["files"] = [
        path for name, path in preprocess["links"].items() if name != "in.ms" and not path.startswith(wheels)
    ]
    runs: dict[str, Any] = {"preprocess": preprocess} | dict.fromkeys(requests.STAGES[1:])
    if calibration is not None:
        settings = sections.get("apply") or {}
        runs["calibrate"] = strategy.calibrate_run(calibration, base)
        runs["apply"] = strategy.apply_run(calibration, settings)
        runs["fit"] = strategy.fit_run(calibration, settings)
    return runs


def _data(pipeline: Pipeline, observation: Observation, unit: Unit) -> dict[str, Any]:
    """Describe the pre-processed data as DP3 will write them; None where only DP3 can tell."""
    first_time, interval = observation.first_time, observation.interval_s
    for factor in unit.time_factors:
        # Step by step as DP3 6.6 does, so that the bits are the same (steps/Averager.cc, ``process``).
        first_time, interval = first_time + 0.5 * (interval * factor - interval), interval * factor
    channels = stepdefaults.channels_after(pipeline, observation)
    selects = "baseline" in pipeline.ms_in or any(step.type in ("filter", "stationadder") for step in pipeline.steps)
    return {
        "first_time": first_time,
        "interval_s": interval,
        "n_slots": -(-observation.n_slots // unit.time_factor),
        "n_baselines": None if selects else observation.n_baselines,
        "n_channels": channels.n,
        "n_correlations": observation.n_correlations,
        "channel_width_hz": observation.channel_width_hz * channels.factor,
        # For estimates, where the above are not known.
        "max_baselines": observation.n_baselines,
        "max_channels": channels.n or max(1, observation.n_channels // channels.factor),
    }


def _solve_grid(solve: Solve, data: Mapping[str, Any]) -> dict[str, Any]:
    """Place the solutions in time (DP3 6.6, ddecal/SolutionWriter.cc)."""
    given = solve.parameters.get("solutions_per_direction", 1)
    per_interval = chunkrules.integer(
        {"solutions_per_direction": str(given).strip("[] ")}, "solutions_per_direction", 1
    )
    if per_interval < 1 or solve.solint % per_interval:
        raise UserError(
            f"solve {solve.name}: solutions_per_direction {per_interval} does not divide the solution interval of"
            f" {solve.solint} slots"
        )
    return {
        "name": solve.name,
        "mode": solve.mode,
        "solint": solve.solint,
        "n_directions": len(solve.directions),
        "solutions_per_interval": per_interval,
        "start_s": data["first_time"] - 0.5 * data["interval_s"],
        "interval_s": data["interval_s"] * (solve.solint // per_interval),
    }


def _slot_seconds(
    solves: Sequence[Solve], observation: Observation, data: Mapping[str, Any], time_factor: int
) -> float:
    """Estimate the work for one time slot of the input up to its solutions, CPU s."""
    raw = observation.n_baselines * observation.n_channels * observation.n_correlations
    given = data["max_baselines"] * data["max_channels"] * data["n_correlations"] / time_factor
    return PREPROCESS_S * raw + SOLVE_S * sum(len(solve.directions) for solve in solves) * given


def _memory(
    pipeline: Pipeline,
    solves: Sequence[Solve],
    observation: Observation,
    data: Mapping[str, Any],
    runs: Mapping[str, Any],
) -> dict[str, int]:
    """Estimate the memory of one DP3 process of each stage, MB."""
    raw = observation.n_baselines * observation.n_channels * observation.n_correlations
    windows = [
        chunkrules.integer(step.parameters, "timewindow", 1) for step in pipeline.steps if step.type == "aoflagger"
    ]
    estimates = {"preprocess": DP3_BYTES + stepdefaults.AOFLAGGER_BYTES * max(windows, default=0) * raw}
    if solves:
        n_visibilities = data["max_baselines"] * data["max_channels"] * data["n_correlations"]
        # The solves of a pass hold their own intervals; that passes follow each other is left out of account.
        solving = sum((SOLVE_BYTES + DIRECTION_BYTES * len(solve.directions)) * solve.solint for solve in solves)
        # In one pass, a process holds what both stages hold.
        before = estimates["preprocess"] if requests.one_pass(runs["preprocess"], runs["calibrate"]) else DP3_BYTES
        estimates |= {"calibrate": before + solving * n_visibilities, "apply": DP3_BYTES, "fit": DP3_BYTES}
    return {stage: math.ceil(size / 1e6) for stage, size in estimates.items()}
