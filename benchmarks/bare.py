#!/usr/bin/env python3
"""The same work without the pipeline: DP3 by hand, by xargs, or one dask task for each MeasurementSet.

``prepare`` writes a folder per DP3 run: its parsets, links to its inputs, and ``run.sh``. It is made from the
pipeline's own plan, so that all cases do the same work; DP3 is called as its users call it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster

from chunkcal import dp3
from chunkcal.join import dp3_times, join
from chunkcal.planning import requests
from chunkcal.solutions.merge import Grid, merge

ME = Path(__file__).resolve()


def prepare(folder: Path, plan: dict[str, Any], n_threads: int) -> None:
    """Write one folder per DP3 run of a plan, ``<stage>/<chunk>``, and the plan itself.

    What the pipeline does in one DP3 process is one run here, too.
    """
    for chunk in (chunk["name"] for chunk in plan["chunks"]):
        if requests.final_stage(plan) == "preprocess":
            _prepare_run(
                folder, "preprocess", chunk, requests.chunk_request(plan, "preprocess", chunk)["run"], n_threads
            )
            continue
        found = requests.pass_request(plan, chunk)
        first, second = (found["stages"][stage]["run"] for stage in ("preprocess", "calibrate"))
        if found["one_pass"]:
            data = _prepare_run(folder, "calibrate", chunk, found["one_pass"], n_threads) / first["product"]
        else:
            data = _prepare_run(folder, "preprocess", chunk, first, n_threads) / first["product"]
            _prepare_run(folder, "calibrate", chunk, second, n_threads, {"in.ms": data})
        links = {"in.ms": data} | {f"{solve}.h5": folder / f"{solve}.h5" for solve in plan["solves"]}
        _prepare_run(folder, "apply", chunk, requests.chunk_request(plan, "apply", chunk)["run"], n_threads, links)
    folder.joinpath("plan.json").write_text(json.dumps(plan))


def _prepare_run(
    folder: Path, stage: str, chunk: str, run: dict[str, Any], n_threads: int, links: dict[str, Path] | None = None
) -> Path:
    work = folder / stage / chunk
    work.mkdir(parents=True)
    for name, target in (run["links"] | (links or {})).items():
        (work / name).symlink_to(target)
    if stage == "calibrate":
        (work / run["product"]).mkdir()
    command = [sys.executable, str(Path(sys.executable).with_name("DP3.py"))]
    environment = dp3.environment(n_threads, not dp3.is_wheel(command))
    lines = ["#!/bin/sh", "set -e", f"cd {shlex.quote(str(work))}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    for number, keys in enumerate(run["parsets"], start=1):
        (work / f"parset{number}").write_text(dp3.parset_text(keys))
        lines.append(shlex.join(dp3.argv(command, f"parset{number}", n_threads)) + " >> log 2>&1")
    (work / "run.sh").write_text("\n".join(lines) + "\n")
    return work


def merge_all(folder: Path) -> None:
    """Merge the solutions of all chunks."""
    plan = json.loads((folder / "plan.json").read_text())
    for solve in plan["solves"]:
        parts = [folder / "calibrate" / chunk["name"] / "solutions" / f"{solve}.h5" for chunk in plan["chunks"]]
        merge(parts, folder / f"{solve}.h5", Grid.of(**requests.solution_grid(plan, solve)))


def join_all(folder: Path) -> None:
    """Join the calibrated chunks."""
    plan = json.loads((folder / "plan.json").read_text())
    stage = requests.final_stage(plan)
    parts = [
        folder / stage / chunk["name"] / requests.chunk_request(plan, stage, chunk["name"])["run"]["product"]
        for chunk in plan["chunks"]
    ]
    times = requests.join_times(plan)
    join(parts, folder / "joined.ms", requests.join_expects(plan), times=times and dp3_times(**times))


def run_all(folder: Path, n_jobs: int) -> None:
    """Run all chunks, `n_jobs` at a time: each through to its solutions, and when all have them each to its end.

    What DP3 has used is left in ``dp3_cpu_s``.
    """
    first = [stage for stage in ("preprocess", "calibrate") if (folder / stage).exists()]
    chunks = sorted(path.name for path in (folder / first[0]).iterdir())
    steps = " && ".join(f"sh {shlex.quote(str(folder / stage))}/{{}}/run.sh" for stage in first)
    dp3_cpu_s = _xargs(n_jobs, steps, chunks)
    if (folder / "apply").exists():
        _this("merge", folder)
        dp3_cpu_s += _xargs(n_jobs, f"sh {shlex.quote(str(folder / 'apply'))}/{{}}/run.sh", chunks)
    if len(chunks) > 1:
        _this("join", folder)
    (folder / "dp3_cpu_s").write_text(str(dp3_cpu_s))


def _xargs(n_jobs: int, command: str, names: list[str]) -> float:
    """Run a command for each name; return the CPU seconds of all."""
    argv = ["xargs", "-P", str(n_jobs), "-I", "{}", "sh", "-c", command]
    before = _children_cpu_s()
    subprocess.run(argv, input="\n".join(names), text=True, check=True)
    return _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _this(action: str, folder: Path) -> None:
    subprocess.run([sys.executable, str(ME), action, str(folder)], check=True)


def run_per_ms(folders: list[Path], n_slots: int) -> None:
    """Run each MeasurementSet as one dask task, on `n_slots` workers with one unit of a resource each."""
    slots = {"n_workers": n_slots, "threads_per_worker": 1, "resources": {"subprocess_slots": 1}}
    with LocalCluster(**slots, dashboard_address=None) as cluster, Client(cluster) as client:
        futures = client.map(_whole, [str(path) for path in folders], resources={"subprocess_slots": 1}, pure=False)
        client.gather(futures)


def _whole(folder: str) -> None:
    subprocess.run([sys.executable, str(ME), "all", folder, "1"], check=True)


def run_cluster(scheduler_file: Path, n_slots: int, n_threads: int) -> None:
    """Be a dask cluster that a user has started by hand, as docs/clusters.md says, until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # to be waited for
    dask = [sys.executable, "-m", "dask"]
    starting = scheduler_file.with_suffix(".starting")
    started = []
    try:
        command = [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
        started.append(_start([*command, "--scheduler-file", str(starting)]))
        while not starting.exists():
            time.sleep(0.1)
        for _ in range(n_slots):
            command = [*dask, "worker", "--scheduler-file", str(starting), "--nthreads", str(n_threads)]
            command += ["--resources", "subprocess_slots=1", "--no-dashboard"]
            command += ["--local-directory", str(scheduler_file.parent)]
            started.append(_start(command))
        with Client(scheduler_file=str(starting), timeout=60) as client:
            client.wait_for_workers(n_slots, timeout=60)
        starting.rename(scheduler_file)
        signal.sigwait({signal.SIGTERM})
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait()


def _start(command: list[str]) -> subprocess.Popen:
    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    quiet = {"DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "2s", "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}
    quiet |= {"DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s"}
    quiet |= {"DASK_DISTRIBUTED__WORKER__MEMORY__MONITOR_INTERVAL": "5s"}
    quiet |= {"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": "chunkcal.cluster.quiet"}
    quiet |= {"MALLOC_TRIM_THRESHOLD_": "67108864", "MALLOC_MMAP_THRESHOLD_": "67108864"}
    environment = os.environ | quiet
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, preexec_fn=unblock)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("merge", "join"):
        actions.add_parser(name).add_argument("folder", type=Path)
    action = actions.add_parser("all", help="all chunks of a prepared folder, by xargs")
    action.add_argument("folder", type=Path)
    action.add_argument("n_jobs", type=int)
    action = actions.add_parser("per-ms", help="each prepared folder as one dask task")
    action.add_argument("n_slots", type=int)
    action.add_argument("folders", type=Path, nargs="+")
    action = actions.add_parser("cluster", help="a dask cluster, until SIGTERM")
    action.add_argument("n_slots", type=int)
    action.add_argument("n_threads", type=int)
    action.add_argument("scheduler_file", type=Path)
    options = parser.parse_args()
    match options.action:
        case "merge":
            merge_all(options.folder)
        case "join":
            join_all(options.folder)
        case "all":
            run_all(options.folder, options.n_jobs)
        case "per-ms":
            run_per_ms(options.folders, options.n_slots)
        case "cluster":
            run_cluster(options.scheduler_file, options.n_slots, options.n_threads)
    return 0


if __name__ == "__main__":
    sys.exit(main())
