#!/usr/bin/env python3
"""Measure how what the pipeline adds grows with the number of chunks: ``make bench-scale``.

Real: planning, Snakemake with this workflow's own rules, merging and reporting. Stand-ins: the scripts of all rules but
planning, which make empty products in no time, so that only the cost of a job remains. What the supervisor uses is
measured with small chunks that DP3 really makes. A cluster of 1,000 slots is a model here: events on virtual time, with
the measured costs of a job.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import yaml

import bare
import bench

ROOT = Path(__file__).resolve().parent.parent
N_SLOTS = 1000
# Of the model: jobs of a run, and how long a task is.
N_MODELLED = 50_000
TASKS_S = (10, 30, 60, 120)
CHUNK_RULES = ("preprocess_chunk", "calibrate_chunk", "apply_chunk", "fit_chunk")
# Peak memory of a Python process, in bytes. The maximum of getrusage() has that of the process that started it, too.
PEAK = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024"
STAND_IN = """
import json
import sys
from pathlib import Path

for name in sys.argv[1:] or map(str, snakemake.output):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".ms" or path.parent.name == "calibrate" and not path.suffix:
        path.mkdir(exist_ok=True)
    else:
        path.write_text(json.dumps({"verdict": "pass"}))
"""
# Of the script of chunks, which starts as the real one does.
STAND_IN_SH = f"""
exec "$CHUNKCAL_PYTHON" -P -c 'import chunkcal.cluster.chunks{STAND_IN}' "${{snakemake_output[@]}}"
"""


def simulate(folder: Path, n_observations: int, n_chunks: int) -> None:
    """Make observations as small as they can be: chunks of one slot."""
    folder.mkdir(parents=True)
    first = folder / "o0.ms"
    sizes = ["--n-stations", "3", "--n-channels", "1", "--n-patches", "1", "--n-sources", "1", "--n-slots"]
    command = [sys.executable, "-m", "chunkcal.cli", "simulate", str(first), *sizes, str(n_chunks)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for number in range(1, n_observations):
        shutil.copytree(first, folder / f"o{number}.ms")
        shutil.copy(folder / "o0.skymodel", folder / f"o{number}.skymodel")


def configure(work: Path, data: Path) -> None:
    """Write the workflow, with stand-ins for all scripts but the plan's, and its configuration."""
    work.mkdir(parents=True)
    shutil.copy(ROOT / "Snakefile", work)
    # The profile, too: without it Snakemake takes its ilp scheduler, and a cost that no user of this pipeline has.
    for name in ("workflow", "profiles"):
        shutil.copytree(ROOT / name, work / name)
    for script in (work / "workflow/scripts").glob("*.*"):
        if script.name != "plan_chunks.py":
            script.write_text(STAND_IN_SH if script.suffix == ".sh" else STAND_IN)
    config = {
        "input": [str(data / "*.ms")],
        "chunks": {"n_slots": 1},
        "calibrate": {"sky_model": "{ms_dir}/{obs}.skymodel", "solves": [{"mode": "diagonal", "solint_s": 4}]},
    }
    (work / "config").mkdir()
    (work / "config/config.yaml").write_text(yaml.safe_dump(config))


def run_snakemake(work: Path, *arguments: str) -> dict[str, float]:
    """Run snakemake in a process of its own and tell what that process alone has used, and how many jobs there were."""
    program = (
        "import json, resource, sys\n"
        "from snakemake.cli import main\n"
        "try:\n    main(sys.argv[2:])\n"
        "except SystemExit as end:\n    status = end.code\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        f"found = {{'status': status, 'cpu_s': used.ru_utime + used.ru_stime, 'rss_bytes': {PEAK}}}\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "found['children_cpu_s'] = used.ru_utime + used.ru_stime\n"
        "open(sys.argv[1], 'w').write(json.dumps(found))\n"
    )
    measured, output = work / "measured.json", work / "output"
    began = time.monotonic()
    with open(output, "w") as stream:
        command = [sys.executable, "-c", program, str(measured), "--cores", "2", *arguments]
        subprocess.run(command, cwd=work, stdout=stream, stderr=stream, check=True)
    found = json.loads(measured.read_text())
    if found.pop("status"):
        sys.exit(f"snakemake failed; see {output}")
    rows = [line.split() for line in output.read_text().splitlines()]
    jobs = {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[0] in CHUNK_RULES and row[1].isdigit()}
    return found | {"wall_s": time.monotonic() - began, "chunk_jobs": sum(jobs.values())}


def measure_dry_run(folder: Path, n_observations: int, n_chunks: int) -> dict[str, Any]:
    """Build the whole DAG."""
    simulate(folder / "data", n_observations, n_chunks)
    configure(folder / "work", folder / "data")
    return {"what": "dry run", "n_chunks": n_observations * n_chunks} | run_snakemake(
        folder / "work", "--dry-run", "--quiet", "rules"
    )


def measure_jobs(folder: Path, n_chunks: int) -> dict[str, Any]:
    """Run every job of one observation, with stand-ins."""
    simulate(folder / "data", 1, n_chunks)
    configure(folder / "work", folder / "data")
    found = run_snakemake(folder / "work", "--quiet", "progress")
    # A job that pre-processes and solves has two records.
    records = [path for path in (folder / "work/results").glob("o0/*/t????.json") if path.parent.name != "preprocess"]
    return {"what": "jobs", "n_chunks": n_chunks} | found | {"chunk_jobs": len(records)}


def measure_supervisor(folder: Path, n_chunks: int) -> dict[str, Any]:
    """Calibrate small chunks on a cluster of two slots; tell what the supervisor, with the scheduler, says it used."""
    options = _small(folder, n_stations=8, n_chunks=n_chunks, n_slots=2)
    bench.make_input(options)
    bench.run_case(options, "cold", folder / "run")
    log = (folder / "run/logs/cluster.log").read_text()
    requests, cpu_s = re.findall(r"stopped after (\d+) requests, CPU-s: ([\d.]+)", log)[-1]
    return {"what": "supervisor", "n_chunks": n_chunks, "chunk_jobs": int(requests), "cpu_s": float(cpu_s)}


def _small(folder: Path, n_stations: int, n_chunks: int = 2, n_slots: int = 1) -> argparse.Namespace:
    """Give the options of `bench` for an input of small chunks."""
    sizes = {"size_mb": 1, "n_stations": n_stations, "n_channels": 16, "n_patches": 1}
    return argparse.Namespace(folder=folder, slots=n_slots, threads=1, chunks=n_chunks, **sizes)


def measure_merge(folder: Path, sizes: list[int]) -> list[dict[str, Any]]:
    """Merge copies of one chunk's real solutions, each moved in time, in processes of their own."""
    options = _small(folder, n_stations=20)
    bench.make_input(options)
    plan = bench.plan_of(options, 2)
    bare.prepare(folder / "one", plan, 1)
    for script in sorted((folder / "one").glob("[pc]*/t0000/run.sh"), reverse=True):  # up to the solutions
        subprocess.run(["sh", str(script)], check=True)
    seed = folder / "one/calibrate/t0000/solutions/gain.h5"
    interval = plan["solves"]["gain"]["interval_s"]
    rows = []
    for n_chunks in sizes:
        place = folder / f"merge{n_chunks}"
        place.mkdir()
        for number in range(n_chunks):
            path = place / f"t{number:04}.h5"
            shutil.copy(seed, path)
            with h5py.File(path, "r+") as file:
                for soltab in file["sol000"].values():
                    if isinstance(soltab, h5py.Group) and "time" in soltab:
                        length = len(soltab["time"])
                        soltab["time"][...] += number * length * interval
        program = (
            "import json, resource, sys\n"
            "from pathlib import Path\n"
            "from chunkcal.solutions.merge import Grid, merge\n"
            "place, start, interval, length = Path(sys.argv[1]), *map(float, sys.argv[2:])\n"
            "parts = sorted(place.glob('t*.h5'))\n"
            "grid = Grid.of([p.stem for p in parts], [int(length)] * len(parts), start_s=start, interval_s=interval)\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_utime\n"
            "merge(parts, place / 'merged.h5', grid)\n"
            "cpu_s = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before\n"
            f"print(json.dumps({{'cpu_s': cpu_s, 'rss_bytes': {PEAK}}}))\n"
        )
        start = plan["solves"]["gain"]["start_s"]
        command = [sys.executable, "-c", program, str(place), repr(start), repr(interval), str(length)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"what": "merge", "n_chunks": n_chunks} | json.loads(done.stdout.splitlines()[-1]))
        shutil.rmtree(place)
    return rows


def measure_report(folder: Path, sizes: list[str]) -> list[dict[str, Any]]:
    """Write reports of copies of one real chunk, in as many observations and chunks as `sizes` say, ``10x500``."""
    options = _small(folder, n_stations=30)
    bench.make_input(options)
    bench.run_case(options, "cold", folder / "one")
    rows = []
    for n_observations, n_chunks in (map(int, size.split("x")) for size in sizes):
        place = folder / "many"
        _copy_chunk(folder / "one/results", place, n_observations, n_chunks)
        program = (
            "import json, resource, sys, time\n"
            "from chunkcal.cli import main\n"
            "began = time.monotonic()\n"
            "main(['report', sys.argv[1]])\n"
            "used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]\n"
            "found = {'wall_s': time.monotonic() - began, 'cpu_s': sum(one.ru_utime + one.ru_stime for one in used)}\n"
            f"print(json.dumps(found | {{'rss_bytes': {PEAK}}}))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, str(place)], check=True, stdout=subprocess.PIPE, text=True
        )
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append({"what": f"report, {n_observations} observations", "n_chunks": n_observations * n_chunks} | found)
        shutil.rmtree(place)
    return rows


def _copy_chunk(results: Path, target: Path, n_observations: int, n_chunks: int) -> None:
    """Make a folder of results in which all chunks are copies of the first one, each at its own time."""
    plan = json.loads((results / "plan/observations.json").read_text())["bench"]
    first, length_s = plan["chunks"][0], plan["chunks"][0]["n_slots"] * plan["observation"]["interval_s"]
    plan["observation"]["n_slots"] = n_chunks * first["n_slots"]
    plan["chunks"] = [
        first | {"name": f"t{number:04}", "start_slot": number * first["n_slots"]} for number in range(n_chunks)
    ]
    names = [f"o{number}" for number in range(n_observations)]
    (target / "plan").mkdir(parents=True)
    (target / "plan/observations.json").write_text(json.dumps(dict.fromkeys(names, plan)))
    for name in names:
        for folder in ("solutions", "fit"):
            shutil.copytree(results / "bench" / folder, target / name / folder)
        shutil.copy(results / "bench/quality.json", target / name)
        for stage in ("preprocess", "calibrate", "apply"):
            record = json.loads((results / f"bench/{stage}/t0000.json").read_text())
            (target / name / stage).mkdir()
            for chunk in plan["chunks"]:
                (target / name / stage / f"{chunk['name']}.json").write_text(json.dumps(record))
                for found in record["verified"].values():
                    if isinstance(found, dict) and found.get("counts"):
                        found["counts"]["times"]["start"] += length_s


def occupancy(
    task_s: float, n_tasks: int, snakemake_s: float, script_s: float, supervisor_s: float, n_cores: int, n_slots: int
) -> float:
    """Model a run and tell how busy its slots are, from the first task to the last one's end.

    Parameters
    ----------
    task_s
        Mean time of a task in its slot; single ones are up to a fifth shorter or longer.
    n_tasks
        Chunk jobs of the run. All could start at once, so that nothing but these costs keeps a slot waiting.
    snakemake_s, script_s, supervisor_s
        CPU time of a job in Snakemake's main process, in its script, and in the supervisor. The first and the last are
        one process each; scripts run side by side.
    n_cores
        Cores for scripts.
    n_slots
        Slots; twice as many jobs are in flight.
    """
    durations = random.Random(1)
    slots, cores, in_flight = [0.0] * n_slots, [0.0] * n_cores, [0.0] * (2 * n_slots)
    snakemake = supervisor = busy = end = 0.0
    for _ in range(n_tasks):
        # What a heap gives is the earliest time at which one of its members is free.
        snakemake = max(snakemake, heapq.heappop(in_flight)) + snakemake_s
        script = max(snakemake, heapq.heappop(cores)) + script_s
        heapq.heappush(cores, script)
        supervisor = max(supervisor, script) + supervisor_s
        duration = task_s * durations.uniform(0.8, 1.2)
        done = max(supervisor, heapq.heappop(slots)) + duration
        heapq.heappush(slots, done)
        heapq.heappush(in_flight, done)
        busy, end = busy + duration, max(end, done)
    return busy / (n_slots * end)


def cost_per_job(rows: list[dict[str, Any]], what: str, key: str) -> float:
    """Give what a further chunk job costs, in s, from the growth between the two largest runs."""
    small, large = sorted((row for row in rows if row["what"] == what), key=lambda row: row["chunk_jobs"])[-2:]
    return max(0.0, large[key] - small[key]) / (large["chunk_jobs"] - small["chunk_jobs"])


def model(rows: list[dict[str, Any]], n_cores: int) -> str:
    """Say how busy 1,000 slots would be."""
    own, script = (cost_per_job(rows, "jobs", key) for key in ("cpu_s", "children_cpu_s"))
    supervisor_s = cost_per_job(rows, "supervisor", "cpu_s")
    text = (
        f"CPU of a further chunk job, between the two largest runs: Snakemake itself {1e3 * own:.1f} ms, its script"
        f" {1e3 * script:.1f} ms, the supervisor with the scheduler {1e3 * supervisor_s:.1f} ms.\nModel of {N_SLOTS}"
        f" slots with these costs and {n_cores} cores for scripts, {N_MODELLED} chunk jobs:\n"
    )
    busy = {task_s: occupancy(task_s, N_MODELLED, own, script, supervisor_s, n_cores, N_SLOTS) for task_s in TASKS_S}
    return text + "\n".join(f"  tasks of {task_s:4} s: slots busy {share:6.1%}" for task_s, share in busy.items())


def main() -> int:
    """Measure all and write ``scale.tsv``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "benchmarks/results/scale", help="made anew")
    parser.add_argument("--observations", type=int, default=10, help="of the dry run")
    parser.add_argument("--chunks", type=int, default=498, help="of each of them; two jobs each, and some")
    parser.add_argument("--jobs", type=int, nargs="+", default=[50, 200, 400], help="chunks of the runs with stand-ins")
    parser.add_argument("--merges", type=int, nargs="+", default=[10, 100, 1000], help="chunks that are merged")
    parser.add_argument(
        "--reports",
        nargs="+",
        default=["1x50", "10x50", "100x50", "1x500"],
        help="observations x chunks of the reports",
    )
    parser.add_argument("--supervised", type=int, nargs="+", default=[10, 60], help="chunks of the runs with real DP3")
    parser.add_argument("--script-cores", type=int, default=8, help="cores for scripts, for the model")
    options = parser.parse_args()
    for name in ("jobs", "supervised"):
        if len(set(getattr(options, name))) < 2:
            parser.error(f"--{name}: what a further chunk costs is told from two runs; give two different numbers")
    options.folder = options.folder.absolute()
    shutil.rmtree(options.folder, ignore_errors=True)
    rows = []
    for n_chunks in (max(1, options.chunks // 10), options.chunks):
        rows.append(measure_dry_run(options.folder / f"dry{n_chunks}", options.observations, n_chunks))
        print(json.dumps(rows[-1]), flush=True)
    for n_chunks in options.jobs:
        rows.append(measure_jobs(options.folder / f"jobs{n_chunks}", n_chunks))
        print(json.dumps(rows[-1]), flush=True)
    for n_chunks in options.supervised:
        rows.append(measure_supervisor(options.folder / f"supervised{n_chunks}", n_chunks))
        print(json.dumps(rows[-1]), flush=True)
    rows += measure_merge(options.folder / "merge", options.merges)
    rows += measure_report(options.folder / "report", options.reports)
    table = pd.DataFrame(rows)
    table["cpu_ms_per_job"] = 1e3 * table.cpu_s / table.chunk_jobs
    table.to_csv(options.folder / "scale.tsv", sep="\t", index=False)
    print(f"{bench.machine()}\n{table.to_string(index=False, float_format=lambda value: f'{value:.4g}')}")
    print(model(rows, options.script_cores))
    return 0


if __name__ == "__main__":
    sys.exit(main())
