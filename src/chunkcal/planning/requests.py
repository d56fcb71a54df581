"""One chunk's DP3 run and what its product must look like, from the plan of its observation.

Standard library only: Snakemake evaluates this for each of thousands of chunk jobs.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from chunkcal.lineage import digest

STAGES = ("preprocess", "calibrate", "apply", "fit")
# Steps after which the data in memory are what DP3 would read back from the MeasurementSet that it writes, bit for bit
# (tests/integration/test_one_pass.py). Others may leave values that are not finite, which reading flags.
ONE_PASS_STEPS = ("aoflagger", "averager", "filter", "madflagger", "phaseshifter", "preflagger", "uvwflagger")
# Name of the step that writes the pre-processed data within such a run.
WRITING_STEP = "preprocessed"
# Steps that count what they flag (DP3 6.6, base/FlagCounter.cc).
COUNTING_STEPS = ("preflagger", "uvwflagger", "aoflagger", "madflagger")
# Model visibilities that the fit of a chunk is measured on, and slots at least: enough for a figure of three digits,
# because several chunks go into it.
FIT_BYTES = 2 << 20
FIT_MIN_SLOTS = 4
# What a plan's note on the length of chunks begins with, where that was chosen.
AUTO = "chunks: auto chose"
_MOST_CHOICES = 5
_BYTES_PER_VISIBILITY = 8
_BYTES_WRITTEN_PER_VISIBILITY = 13  # DATA, FLAG and WEIGHT_SPECTRUM
_MJD_DAY_0 = datetime.date(1858, 11, 17)


def step_name(solve: str) -> str:
    """Give DP3's name of the step of a solve."""
    return f"solve_{solve}"


def load_plan(path: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the plans of all observations, by name, as `plan.Plan.write` wrote them."""
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def choices(plans: dict[str, dict[str, Any]]) -> list[str]:
    """Say, in a line for each of the first observations, what length of chunks ``auto`` has chosen, and why."""
    lines = [f"{obs}: {note}" for obs, plan in plans.items() for note in plan["notes"] if note.startswith(AUTO)]
    more = len(lines) - _MOST_CHOICES
    return lines[:_MOST_CHOICES] + ([f"and {more} more; the report has them all"] if more > 0 else [])


def find_chunk(plan: dict[str, Any], name: str) -> dict[str, Any]:
    """Find a chunk by its name; names are ``t0000``, ``t0001``, ... in time order."""
    chunk = plan["chunks"][int(name[1:])]
    if chunk["name"] != name:
        raise KeyError(f"chunk {name} is not at its place in the plan of {plan['observation']['name']}")
    return chunk


def chunk_request(plan: dict[str, Any], stage: str, chunk: str) -> dict[str, Any]:
    """Give the DP3 run of one stage for one chunk.

    Parameters
    ----------
    plan
        Plan of the observation.
    stage
        One of `STAGES`.
    chunk
        Name of the chunk.

    Returns
    -------
    dict
        ``run`` (``parsets``, ``links``, ``product``, ``threads`` if it is fixed) without the links to products of
        earlier stages; ``expect``: what
        the product must be, with ``kind`` (``ms``, ``h5parms`` or ``fit``). For h5parms, ``solves`` has ``first_time``
        (MJD s), ``interval_s`` and ``n_solutions`` of each by name. For the others there are ``first_time``,
        ``interval_s`` and ``n_slots``; ``n_baselines`` and ``n_channels``, None if only DP3 can tell; and for the
        first stage ``row_start`` and ``n_rows`` of its input, and ``nan_weights``: None, or what to do about them.
    """
    found = find_chunk(plan, chunk)
    run = plan["runs"][stage]
    expect = expectation(plan, stage, found)
    selection: dict[str, str] = {}
    if stage == "preprocess":
        selection = chunk_time_range(plan["observation"], found)
        expect |= {"row_start": found["row_start"], "n_rows": found["n_rows"]}  # to count the flags of the input
        expect["nan_weights"] = plan["nan_weights"]
    elif stage == "fit":
        selection = {"msin.ntimes": str(expect["n_slots"])}
    parsets = [{"msin": parset["msin"], **selection, **parset} for parset in run["parsets"]]
    if stage == "preprocess":
        parsets = [parset | _flag_counts(parset) for parset in parsets]
    keys = ("links", "product", "threads")
    return {"run": {"parsets": parsets} | {key: run[key] for key in keys if key in run}, "expect": expect}


def pass_request(plan: dict[str, Any], chunk: str) -> dict[str, Any]:
    """Give the DP3 runs that take a chunk from the raw data to its solutions.

    Returns
    -------
    dict
        ``stages``: `chunk_request` of preprocess and calibrate, by name; ``one_pass``: the run that makes both products
        in one process, None if something must be done in between.
    """
    stages = {stage: chunk_request(plan, stage, chunk) for stage in ("preprocess", "calibrate")}
    return {"stages": stages, "one_pass": one_pass(*(request["run"] for request in stages.values()))}


def one_pass(preprocess: dict[str, Any], calibrate: dict[str, Any]) -> dict[str, Any] | None:
    """Put the steps of both stages into one run, where the bits of both products stay the same; else None.

    They would not, or might not, where what is written is not what is solved for (storage managers that round, other
    steps than `ONE_PASS_STEPS`), or where DDECal reads more of its input than the visibilities (beams).
    """
    if "threads" in calibrate or len(preprocess["parsets"]) > 1 or len(calibrate["parsets"]) > 1:
        return None
    before, after = dict(preprocess["parsets"][0]), dict(calibrate["parsets"][0])
    out = before.pop("msout")
    after.pop("msin")
    if any(key.startswith("msout.") for key in before) or any(key.startswith(("msin.", "msout")) for key in after):
        return None
    first, second = (_names(parset.pop("steps")) for parset in (before, after))
    types = {before.get(f"{name}.type", name).lower() for name in first}
    beams = any("beam" in f"{key}={value}".lower() for key, value in after.items())
    shared = before.keys() & after.keys() or preprocess["links"].keys() & calibrate["links"].keys()
    if beams or shared or not types <= set(ONE_PASS_STEPS):
        return None
    writing = {f"{WRITING_STEP}.type": "msout", f"{WRITING_STEP}.name": out}
    steps = f"[{','.join((*first, WRITING_STEP, *second))}]"
    return {
        "parsets": [before | {"steps": steps} | writing | after],
        "links": preprocess["links"] | calibrate["links"],
        "product": calibrate["product"],
    }


def _names(steps: str) -> list[str]:
    """Split a list of steps, ``[a,b]``."""
    return [name for name in steps.strip("[]").split(",") if name]


def _flag_counts(parset: dict[str, str]) -> dict[str, str]:
    """Ask each flagging step to save its fractions, for `chunkcal.flagging.flagsteps`."""
    wanted = {}
    for step in _names(parset.get("steps", "")):
        if parset.get(f"{step}.type") in COUNTING_STEPS and not any(key.startswith(f"{step}.count.") for key in parset):
            wanted |= {f"{step}.count.save": "true", f"{step}.count.path": "."}
    return wanted


def chunk_time_range(observation: dict[str, Any], chunk: dict[str, Any]) -> dict[str, str]:
    """Give ``msin.starttime`` and ``msin.ntimes`` of a chunk.

    DP3 takes the first slot that is not before starttime, and goes back whole intervals if that one lies behind a gap
    (steps/MsReader.cc, ``SkipFirstTimes``). Half an interval early, neither rounding nor a slot that is some
    milliseconds off the grid can make it miss the first slot.
    """
    early = observation["first_time"] + (chunk["start_slot"] - 0.5) * observation["interval_s"]
    return {"msin.starttime": start_time_text(early), "msin.ntimes": str(chunk["n_slots"])}


def start_time_text(mjd_s: float) -> str:
    """Write a time as casacore's MVTime reads it: ``2013/03/29/13:59:53.006950``, to the microsecond."""
    microseconds = round(Fraction(mjd_s) * 10**6)
    days, rest = divmod(microseconds, 86_400 * 10**6)
    date = _MJD_DAY_0 + datetime.timedelta(days=days)
    seconds, fraction = divmod(rest, 10**6)
    hours, seconds = divmod(seconds, 3600)
    minutes, seconds = divmod(seconds, 60)
    return f"{date:%Y/%m/%d}/{hours:02d}:{minutes:02d}:{seconds:02d}.{fraction:06d}"


def expectation(plan: dict[str, Any], stage: str, chunk: dict[str, Any]) -> dict[str, Any]:
    """Say what a stage must make of a chunk; see `chunk_request`."""
    data = plan["data"]
    first = chunk["start_slot"] // plan["time_factor"]
    n_slots = -(-chunk["n_slots"] // plan["time_factor"])
    if stage == "calibrate":
        return {"kind": "h5parms", "solves": {name: _solutions(plan, name, chunk) for name in plan["solves"]}}
    shape = {"n_baselines": data["n_baselines"], "n_channels": data["n_channels"]}
    if stage == "fit":
        n_visibilities = data["max_baselines"] * data["max_channels"] * data["n_correlations"]
        n_slots = min(n_slots, max(FIT_MIN_SLOTS, FIT_BYTES // (n_visibilities * _BYTES_PER_VISIBILITY)))
    return {
        "kind": "fit" if stage == "fit" else "ms",
        "first_time": data["first_time"] + first * data["interval_s"],
        "interval_s": data["interval_s"],
        "n_slots": n_slots,
        **shape,
    }


def _solutions(plan: dict[str, Any], name: str, chunk: dict[str, Any]) -> dict[str, Any]:
    """Say where the solutions of one solve lie in a chunk."""
    solve = plan["solves"][name]
    first = first_solution(plan, name, chunk)
    return {
        "first_time": solve["start_s"] + (first + 0.5) * solve["interval_s"],
        "interval_s": solve["interval_s"],
        "n_solutions": n_solutions(plan, name, chunk),
    }


def first_solution(plan: dict[str, Any], name: str, chunk: dict[str, Any]) -> int:
    """Give the index of the first solution of a chunk in the merged table of a solve."""
    solve = plan["solves"][name]
    return chunk["start_slot"] // plan["time_factor"] // solve["solint"] * solve["solutions_per_interval"]


def data_bytes(plan: Mapping[str, Any]) -> int:
    """Estimate the size of an observation's pre-processed data, bytes."""
    data = plan["data"]
    samples = data["n_slots"] * data["max_baselines"] * data["max_channels"] * data["n_correlations"]
    return samples * _BYTES_WRITTEN_PER_VISIBILITY


def seams(plan: dict[str, Any]) -> dict[str, list[int]]:
    """Give, by solve, the first solution of each chunk but the first."""
    return {name: [first_solution(plan, name, chunk) for chunk in plan["chunks"][1:]] for name in plan["solves"]}


def n_solutions(plan: dict[str, Any], name: str, chunk: dict[str, Any]) -> int:
    """Count the solutions of a solve in a chunk; the last interval may be short."""
    solve = plan["solves"][name]
    n_slots = -(-chunk["n_slots"] // plan["time_factor"])
    return -(-n_slots * solve["solutions_per_interval"] // solve["solint"])


def solution_grid(plan: dict[str, Any], name: str) -> dict[str, Any]:
    """Give the arguments of `merge.Grid.of` for a solve: what its chunks must cover, exactly once."""
    solve = plan["solves"][name]
    return {
        "names": [chunk["name"] for chunk in plan["chunks"]],
        "counts": [n_solutions(plan, name, chunk) for chunk in plan["chunks"]],
        "start_s": solve["start_s"],
        "interval_s": solve["interval_s"],
    }


def final_stage(plan: dict[str, Any]) -> str:
    """Name the stage whose chunks are joined."""
    return "apply" if plan["runs"]["apply"] else "preprocess"


def join_expects(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Say what each chunk that is joined must be, in time order."""
    return [expectation(plan, final_stage(plan), chunk) for chunk in plan["chunks"]]


def join_times(plan: dict[str, Any]) -> dict[str, Any] | None:
    """Give the arguments of `join.dp3_times` for pre-processed chunks; None when calibrated chunks are joined.

    A run that applies solutions counts from the first TIME of its input, which is what `join` does by itself.
    """
    if final_stage(plan) == "apply":
        return None
    averages = len(plan["unit"]["time_factors"])
    grid = plan["observation"] if averages < 2 else plan["data"]
    return {
        "first_time": grid["first_time"],
        "interval_s": grid["interval_s"],
        "n_slots": plan["data"]["n_slots"],
        "averaging": plan["time_factor"] if averages < 2 else 1,
    }


def history(plan: dict[str, Any], *stages: str) -> dict[str, Any]:
    """Give the arguments of `history.lines`: what all chunks of these stages have in common."""
    runs = {stage: plan["runs"][stage]["parsets"] for stage in stages if plan["runs"][stage]}
    return {"runs": runs, "dp3_version": plan["dp3_version"]}


def contents(plan: dict[str, Any], stage: str) -> dict[str, str | None]:
    """Digest what a stage reads besides products of the run: a changed byte there makes its chunks out of date.

    Of the raw MeasurementSet, which may be huge, only ``table.dat`` is looked at, see `digest.of_contents`.
    """
    raw = [plan["runs"]["preprocess"]["links"]["in.ms"]] if stage == "preprocess" else []
    return digest.of_contents([*raw, *user_files(plan, stage)])


def user_files(plan: dict[str, Any], stage: str) -> list[str]:
    """List the user's files that a stage reads: `step_files` and the sky model."""
    links = plan["runs"][stage]["links"]
    return sorted({*step_files(plan, stage), *(path for name, path in links.items() if name.endswith(".skymodel"))})


def step_files(plan: dict[str, Any], stage: str) -> list[str]:
    """List the user's files that a stage reads besides its data: solutions, sky models, strategies."""
    run = plan["runs"][stage]
    return run["files"] if "files" in run else [path for name, path in run["links"].items() if name.endswith(".h5")]
