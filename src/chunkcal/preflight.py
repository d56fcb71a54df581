"""Everything that can be known to go wrong is said before the first chunk is queued, all of it at once.

``chunkcal check`` and ``snakemake preflight`` tell what was found; planning refuses to go on where something is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

from chunkcal import dp3, wsclean
from chunkcal.cluster import guard, layout
from chunkcal.cluster.state import BATCH_BACKENDS
from chunkcal.errors import UserError, counted
from chunkcal.inputs import chunks_dir, refuse_output_dir, refuse_scratch_dir, resolve_observations
from chunkcal.planning import requests
from chunkcal.planning.plan import Plan, make_plan

# Sections of the configuration that a plan is made from.
_SECTIONS = ("chunks", "preprocess", "calibrate", "apply", "quality", "extra_inputs_dir")
# What the folder of an observation holds, besides <obs>.ms.
_PRODUCTS = {*requests.STAGES, "solutions", "bands", "image", "quality.json", "quality.passed", "flags.tsv"}
_PRODUCTS |= {"provenance.json"}
_TRIAL_SLOTS = 8
_TRIAL_TIMEOUT_S = 60.0


def checked_plan(
    observations: Sequence[Mapping[str, Any]],
    sections: Mapping[str, Any],
    output_dir: str,
    keep_chunks: bool = False,
    dp3_version: str | None = None,
    n_slots: int | None = None,
    previous_lengths: Mapping[str, int] | None = None,
    chunks_dir: str | None = None,
) -> Plan:
    """Plan all observations, and see whether the plans can be carried out here.

    Parameters
    ----------
    observations, sections, dp3_version, previous_lengths
        As `make_plan`; ``dp3`` in `sections` with ``command`` and ``measures_dir``.
    output_dir, keep_chunks
        Of the configuration.
    n_slots
        Slots of the whole cluster.
    chunks_dir
        Folder in which chunks lie while they are needed, see `inputs.chunks_dir`; None is `output_dir`.

    Raises
    ------
    UserError
        With all problems of all observations: what `make_plan` refuses, an output folder that holds something foreign,
        too little room on the disks, and steps that DP3 itself does not accept.
    """
    plans: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    slots_each = -(-n_slots // len(observations)) if n_slots else None
    for entry in observations:
        try:
            plans |= make_plan([entry], sections, dp3_version, slots_each, previous_lengths).observations
        except UserError as error:
            problems += error.lines
    problems += _places(plans, output_dir)
    problems += _room(plans, output_dir, chunks_dir or output_dir, keep_chunks)
    # Where chunks that DP3 cannot solve are to be flagged, the first one may be such a chunk.
    flags = bool(sections.get("calibrate")) and sections["calibrate"].get("on_bad_chunk") == "flag"
    problems += _trials(plans, sections["dp3"], ("preprocess",) if flags else ("preprocess", "calibrate"))
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return Plan(plans)


def _places(plans: Mapping[str, Mapping[str, Any]], output_dir: str) -> list[str]:
    """Look for what is not ours where products go."""
    problems = []
    inputs = [Path(os.path.realpath(plan["observation"]["ms"])) for plan in plans.values()]
    for name in plans:
        folder = Path(output_dir, name)
        inside = [path for path in inputs if path.is_relative_to(os.path.realpath(folder))]
        if inside:
            problems.append(f"output_dir: the input {inside[0]} lies where products go; choose another folder")
            continue
        try:
            found = sorted(os.listdir(folder)) if folder.is_dir() else []
        except OSError as error:
            problems.append(f"output_dir: {folder} cannot be read ({error.strerror}); see to it that you may")
            continue
        known = {*_PRODUCTS, f"{name}.ms"}
        strangers = [entry for entry in found if entry not in known and entry[0] != "." and ".tmp-" not in entry]
        if strangers:
            more = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
            problems.append(
                f"output_dir: {folder} holds what no run makes: {', '.join(strangers[:3])}{more};"
                " move it away, or choose another folder"
            )
    return problems


def _room(plans: Mapping[str, Mapping[str, Any]], output_dir: str, chunks_dir: str, keep_chunks: bool) -> list[str]:
    """Compare the room on the disks with what the run has there at a time, less what is there already."""
    data = sum(map(requests.data_bytes, plans.values()))
    # Chunks of one stage, which those of the next replace one by one, and what they are joined into.
    wanted = {"scratch_dir": (chunks_dir, data), "output_dir": (output_dir, data)}
    if _standing(output_dir).stat().st_dev == _standing(chunks_dir).stat().st_dev:
        wanted = {"output_dir": (output_dir, (3 if keep_chunks else 2) * data)}
    problems = []
    for key, (folder, needs) in wanted.items():
        free = shutil.disk_usage(_standing(folder)).free
        if free >= needs:
            continue
        places = {folder, chunks_dir} if len(wanted) == 1 else {folder}
        there = sum(_size(Path(place, name)) for place in places for name in plans)
        if free + there < needs:
            what = {1: "chunks and products", 2: "chunks" if key == "scratch_dir" else "products"}[len(wanted)]
            problems.append(
                f"{key}: {folder} needs about {_readable(needs)} for {what}, and its disk has {_readable(free)} free;"
                " the disk is full too soon: make room, or choose another folder"
            )
    return problems


def _standing(folder: str) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return place


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue  # has just gone
    return total


def _readable(n_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def _trials(plans: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    """Let DP3 run over the first slots of one observation of each kind: those with the same steps and data."""
    kinds: dict[str, str] = {}
    for name, plan in plans.items():
        observation = plan["observation"]
        kind = [plan["runs"][stage] and plan["runs"][stage]["parsets"] for stage in stages]
        kind += [observation["telescope"], observation["n_channels"], observation["n_baselines"]]
        kinds.setdefault(json.dumps(kind), name)
    names = list(kinds.values())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [
            problem for problem in pool.map(lambda name: _try(name, plans[name], settings, stages), names) if problem
        ]


def _try(name: str, plan: dict[str, Any], settings: Mapping[str, Any], stages: Sequence[str]) -> str | None:
    """Run the first stages over a few slots, into nothing; say in one line what DP3 says against it."""
    chunk = plan["chunks"][0]
    with tempfile.TemporaryDirectory(prefix="chunkcal-check-") as folder:
        if "calibrate" in stages and plan["runs"]["calibrate"]:
            both = requests.pass_request(plan, chunk["name"])["one_pass"]
            if both and not _run_all(Path(folder, "one-pass"), both, plan, settings):
                return None
        made: dict[str, str] = {}
        for stage in stages:
            if not plan["runs"][stage]:
                continue
            run = requests.chunk_request(plan, stage, chunk["name"])["run"]
            work = Path(folder, stage)
            problem = _run_all(work, run | {"links": run["links"] | made}, plan, settings)
            if problem:
                return f"{name}: {stage}: DP3 fails on the first slots: {problem}"
            made = {"in.ms": str(work / run["product"])}
    return None


def _run_all(work: Path, run: Mapping[str, Any], plan: Mapping[str, Any], settings: Mapping[str, Any]) -> str | None:
    """Make the DP3 runs of a stage, or of two in one pass, in a new folder; return the first problem."""
    work.mkdir()
    for link, target in run["links"].items():
        (work / link).symlink_to(target)
    if run["product"] == "solutions":
        (work / run["product"]).mkdir()
    problems = (_run(work, _shortened(keys, plan), settings) for keys in run["parsets"])
    return next((problem for problem in problems if problem), None)


def _shortened(keys: Mapping[str, str], plan: Mapping[str, Any]) -> dict[str, str]:
    """Leave of a DP3 run what shows whether DP3 takes it: few slots, one iteration."""
    short = dict(keys)
    if "msin.ntimes" in keys:  # of the raw data
        factor = plan["time_factor"]
        short["msin.ntimes"] = str(min(plan["chunks"][0]["n_slots"], -(-_TRIAL_SLOTS // factor) * factor))
    return short | {key: "1" for key in keys if key.endswith(".maxiter")}


def _run(work: Path, keys: Mapping[str, str], settings: Mapping[str, Any]) -> str | None:
    command = dp3.find_command(settings["command"])
    environment = os.environ | dp3.environment(1, not dp3.is_wheel(command), settings.get("measures_dir"))
    (work / "parset").write_text(dp3.parset_text(keys))
    # The guard kills DP3 with us, however we end.
    argv = [sys.executable, "-I", "-S", guard.__file__, *dp3.argv(command, "parset", 1)]
    with open(work / "log", "wb") as log:
        process = subprocess.Popen(argv, cwd=work, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)
        ended = os.pidfd_open(process.pid)  # Popen.wait with a timeout would look every 50 ms
        try:
            if not select.select([ended], [], [], _TRIAL_TIMEOUT_S)[0]:
                return None  # it had nothing against them for that long
        finally:
            os.close(ended)
            process.stdin.close()
            status = process.wait()
    return dp3.describe_failure(status, (work / "log").read_text(errors="replace")[-4000:]) if status else None


def report(config: Mapping[str, Any], stream: TextIO) -> bool:
    """Tell what a run with this configuration would find and do, and all that is in its way.

    Parameters
    ----------
    config
        Validated, with its defaults.
    stream
        One line per program and observation, and one per problem.

    Returns
    -------
    bool
        Whether there is no problem.
    """
    problems: list[str] = []
    plans: Mapping[str, dict[str, Any]] = {}
    try:
        command = dp3.find_command(config["dp3"]["command"])
        print(f"DP3 {dp3.version(command)}: {' '.join(command)}", file=stream)
    except UserError as error:
        problems += error.lines
    print(_wsclean_line(config["image"]), file=stream)
    try:
        refuse_output_dir(config["output_dir"])
    except UserError as error:
        problems += error.lines
    try:
        refuse_scratch_dir(config["scratch_dir"])
    except UserError as error:
        problems += error.lines
    if not problems:
        sections = {key: config[key] for key in (*_SECTIONS, "dp3")}
        try:
            rows = resolve_observations(dict(config))
            places = {"keep_chunks": config["keep_chunks"], "chunks_dir": chunks_dir(config)}
            n_slots = _slots(config["cluster"])
            plans = checked_plan(rows, sections, config["output_dir"], n_slots=n_slots, **places).observations
        except UserError as error:
            problems += error.lines
    for name, plan in plans.items():
        print(f"{name}: {_describe(plan)}", file=stream)
        for note in plan["notes"]:
            print(f"    note: {note}", file=stream)
    if plans:
        _, note = layout.settle(_cluster(config["cluster"]), layout.memory_mb(plans.values()))
        print(note or f"cluster: {counted(_slots(config['cluster']), 'slot')}", file=stream)
    for problem in problems:
        print(f"problem: {problem}", file=stream)
    if problems:
        print(f"{counted(len(problems), 'problem')}; nothing was started", file=stream)
    else:
        total = sum(map(requests.data_bytes, plans.values()))
        print(f"no problem; pre-processed data will take about {_readable(total)}", file=stream)
    return not problems


def _slots(cluster: Mapping[str, Any]) -> int:
    """Count the slots that a run would have, as far as that can be told without Snakemake's own options."""
    cluster = layout.settle(_cluster(cluster))[0]
    if isinstance(cluster["n_slots"], int):
        return cluster["n_slots"]
    if cluster["backend"] in BATCH_BACKENDS:
        return (cluster["job"]["max_jobs"] or cluster["job"]["n_jobs"]) * cluster["job"]["n_processes"]
    return max(1, (os.cpu_count() or 1) // cluster["threads_per_slot"])


def _cluster(cluster: Mapping[str, Any]) -> dict[str, Any]:
    """Take all cores for given to Snakemake, and this machine for where DP3 runs, unless there is more to go by."""
    backend = "local" if cluster["backend"] == "auto" else cluster["backend"]
    return dict(cluster) | {"backend": backend, "machine_cores": os.cpu_count() or 1}


def _wsclean_line(settings: Mapping[str, Any]) -> str:
    command = wsclean.find(settings["command"])
    if command is None:
        return "WSClean: not found" + ("; there will be no quick-look image" if settings["enabled"] else ", not needed")
    return f"WSClean: {wsclean.version(command)}: {' '.join(command)}"


def _describe(plan: Mapping[str, Any]) -> str:
    observation, chunks = plan["observation"], plan["chunks"]
    missing = sum(end - begin for begin, end in observation["missing"])
    return (
        f"{counted(observation['n_slots'], 'slot')} of {observation['interval_s']:g} s"
        + (f" ({missing} missing)" if missing else "")
        + f", {counted(observation['n_channels'], 'channel')}, {counted(observation['n_baselines'], 'baseline')};"
        f" {counted(len(chunks), 'chunk')} of {counted(plan['chunk_length'], 'slot')}"
        + ("" if plan["exact"] else ", approximate")
        + f", at most {max(plan['memory_mb'].values())} MB per DP3"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``chunkcal check``."""
    from chunkcal.commandline import add_config_arguments  # jsonschema is slow to import; plan_chunks has no use for it

    add_config_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Check what snakemake would be given; exit status 1 if there is a problem."""
    from chunkcal.commandline import read_config

    config, _ = read_config(options)
    return 0 if report(config, sys.stdout) else 1
