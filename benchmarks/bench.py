#!/usr/bin/env python3
"""Measure the pipeline beside bare DP3, on the same input and cores: ``make bench``.

Every case makes the same calibrated MeasurementSet and solutions from the same simulated input, which is checked bit
for bit. Cases take turns, forth and back, so that what else the machine does, and a steady drift of its speed, hits
all of them; medians over the repetitions are told.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import yaml

import bare
from chunkcal import dp3
from chunkcal.config import load_schema, validate
from chunkcal.inputs import resolve_observations
from chunkcal.lineage import contents
from chunkcal.planning.plan import make_plan
from picture import draw

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CASES = {
    "unchunked": "bare DP3 on the whole, all threads",
    "xargs": "bare DP3 on the chunks, xargs -P",
    "running": "chunkcal on a running cluster",
    "cold": "chunkcal from cold",
    "per-ms": "one dask task for the MeasurementSet",
}
WINDOW_SLOTS = 40  # of AOFlagger, and so the unit of a chunk
STEPS = [
    {"AOFlagger": {"timewindow": WINDOW_SLOTS}},
    {"Averager": {"timestep": 2, "freqstep": 2}},
]
SOLVE = {"name": "gain", "mode": "diagonal", "solint_s": 32, "solution_bandwidth_hz": 100e3}
NOTABLY_STOLEN = 0.01  # s of CPU time for each s of wall time
BYTES_PER_VISIBILITY = 13  # DATA, FLAG, WEIGHT_SPECTRUM


def configuration(options: argparse.Namespace, folder: Path, n_chunks: int, **cluster: Any) -> dict[str, Any]:
    """Give what the pipeline is configured with."""
    several = options.n_patches > 1
    return {
        "input": str(options.folder / "input/bench.ms"),
        "output_dir": str(folder / "results"),
        "chunks": {"count": n_chunks},
        "preprocess": {"steps": STEPS},
        "calibrate": {
            "sky_model": str(options.folder / "input/bench.skymodel"),
            "solves": [SOLVE | ({"directions": "patches"} if several else {})],
        },
        "apply": {"direction": "patch0"} if several else {},
        "cluster": {"n_slots": options.slots, "threads_per_slot": options.threads} | cluster,
    }


def make_input(options: argparse.Namespace) -> int:
    """Simulate the input; return its size in bytes."""
    n_baselines = options.n_stations * (options.n_stations + 1) // 2
    slot = n_baselines * options.n_channels * 4 * BYTES_PER_VISIBILITY
    windows = max(1, round(options.size_mb * 1e6 / slot / WINDOW_SLOTS / options.chunks))
    path = options.folder / "input/bench.ms"
    path.parent.mkdir(parents=True)
    sizes = {"--n-stations": options.n_stations, "--n-channels": options.n_channels, "--n-patches": options.n_patches}
    sizes |= {"--n-sources": 6}
    sizes |= {"--n-slots": windows * WINDOW_SLOTS * options.chunks, "--seed": 42}
    command = [sys.executable, "-m", "chunkcal.cli", "simulate", str(path)]
    subprocess.run([*command, *(str(word) for pair in sizes.items() for word in pair)], check=True, stdout=sys.stderr)
    return size_of(path)


def size_of(path: Path) -> int:
    """Give the bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def plan_of(options: argparse.Namespace, n_chunks: int) -> dict[str, Any]:
    """Plan as the pipeline does."""
    config = configuration(options, options.folder, n_chunks)
    config = validate(config, load_schema(ROOT / "workflow/schemas/config.schema.yaml"))
    sections = ("chunks", "preprocess", "calibrate", "apply", "quality", "extra_inputs_dir")
    sections = {key: config[key] for key in sections} | {"dp3": {"command": "auto"}}
    plans = make_plan(resolve_observations(config), sections, dp3.version(dp3.find_command("auto")))
    return json.loads(json.dumps(plans.observations))["bench"]


def run_case(options: argparse.Namespace, case: str, folder: Path) -> dict[str, Any]:
    """Run a case once in a new folder; return what was measured, with digests of what it made."""
    folder.mkdir(parents=True)
    python, background = [sys.executable, str(HERE / "bare.py")], []
    products = folder / "joined.ms", folder / "gain.h5"
    cores = str(options.slots * options.threads)
    match case:
        case "unchunked":
            bare.prepare(folder, plan_of(options, 1), options.slots * options.threads)
            argv = [*python, "all", str(folder), "1"]
        case "xargs":
            bare.prepare(folder, plan_of(options, options.chunks), options.threads)
            argv = [*python, "all", str(folder), str(options.slots)]
        case "per-ms":
            bare.prepare(folder, plan_of(options, 1), options.threads)
            argv = [*python, "per-ms", str(options.slots), str(folder)]
        case _:
            cluster = {}
            if case == "running":
                ready, layout = folder / "scheduler.json", (str(options.slots), str(options.threads))
                background = ["--background", json.dumps([*python, "cluster", *layout, str(ready)])]
                background += ["--ready", str(ready)]
                cluster = {"backend": "existing", "scheduler_file": str(ready)}
            config = configuration(options, folder, options.chunks, **cluster)
            (folder / "config.yaml").write_text(yaml.safe_dump(config))
            argv = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory"]
            argv += [str(folder), "--configfile", "config.yaml", "--cores", cores, "--quiet", "all"]
            argv += ["--workflow-profile", str(ROOT / "profiles/default")]  # as in a checkout, where it is found
            products = folder / "results/bench/bench.ms", folder / "results/bench/solutions/gain.h5"
    if case in ("unchunked", "per-ms"):
        products = folder / "apply/t0000/out.ms", folder / "gain.h5"
    measured = folder / "measured.json"
    command = [sys.executable, str(HERE / "measure.py"), *background, str(measured), "--", *argv]
    with open(folder / "output", "wb") as output:
        status = subprocess.call(command, cwd=folder, stdout=output, stderr=output)
    if status:
        sys.exit(f"{case} ended with status {status}; see {folder / 'output'}")
    found = json.loads(measured.read_text())
    found["output_bytes"] = sum(size_of(product) for product in products)
    found["digests"] = contents.of_ms(products[0]) | contents.of_h5parm(products[1])
    if case in ("running", "cold"):
        found |= slots(folder / "results", options.slots)
    else:
        found["dp3_cpu_s"] = found["same_dp3_cpu_s"] = float((folder / "dp3_cpu_s").read_text())
    return found


def slots(results: Path, n_slots: int) -> dict[str, Any]:
    """Tell how busy the slots were and what DP3 itself has used, from the records of the chunks.

    The occupancy is that of the times in which there are chunks to run: up to the solutions, and behind them.
    """
    records = [(path.parent.name, json.loads(path.read_text())) for path in results.glob("bench/*/t????.json")]
    records = [(stage, record) for stage, record in records if "cpu_s" in record]  # else another one tells of the run
    busy = span = 0.0
    gaps = []
    for stages in ({"preprocess", "calibrate"}, {"apply", "fit"}):
        tasks = sorted(
            (record["worker"], record["start"], record["end"]) for stage, record in records if stage in stages
        )
        busy += sum(end - start for _, start, end in tasks)
        span += max(end for *_, end in tasks) - min(start for _, start, _ in tasks)
        gaps += [b[1] - a[2] for a, b in itertools.pairwise(tasks) if a[0] == b[0]]
    return {
        "n_tasks": len(records),
        "dp3_cpu_s": sum(record["cpu_s"] for _, record in records),
        "same_dp3_cpu_s": sum(record["cpu_s"] for stage, record in records if stage != "fit"),  # as of `xargs -P`
        "occupancy": busy / span / n_slots,
        "median_gap_s": statistics.median(gaps) if gaps else None,
        "p90_gap_s": sorted(gaps)[int(0.9 * len(gaps))] if gaps else None,
    }


def medians(runs: list[dict[str, Any]], case: str, input_bytes: int) -> dict[str, Any]:
    """Summarise the repetitions of a case."""

    def median(key: str) -> float | None:
        values = [run[key] for run in runs if run.get(key) is not None]
        return statistics.median(values) if values else None

    row = {"case": case, "repetitions": len(runs), "wall_s": median("wall_s")}
    row |= {"wall_min_s": min(run["wall_s"] for run in runs), "wall_max_s": max(run["wall_s"] for run in runs)}
    row |= {key: median(key) for key in ("cpu_s", "stolen_s", "peak_rss_bytes", "read_bytes", "written_bytes")}
    row |= {"input_bytes": input_bytes, "output_bytes": median("output_bytes")}
    row |= {key: median(key) for key in ("n_tasks", "dp3_cpu_s", "occupancy", "median_gap_s", "p90_gap_s")}
    row["outside_dp3_fraction"] = 1 - row["dp3_cpu_s"] / row["cpu_s"]
    row["wall_per_dp3_cpu"] = statistics.median(run["wall_s"] / run["same_dp3_cpu_s"] for run in runs)
    if row["n_tasks"]:
        row["overhead_cpu_s_per_task"] = (row["cpu_s"] - row["dp3_cpu_s"]) / row["n_tasks"]
    return row


def machine() -> str:
    """Describe this machine in a line."""
    models = {
        line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    }
    memory = psutil.virtual_memory().total / 2**30
    kernel = platform.release().partition("-")[0]
    return f"{os.cpu_count()} x {'/'.join(models) or platform.machine()}, {memory:.0f} GiB, Linux {kernel}"


def as_markdown(table: pd.DataFrame, title: str) -> str:
    """Write the table as docs/performance.md shows it.

    The second ratio is that of the wall times for each CPU second that DP3 has used for the same work on the same
    chunks: it does not depend on how fast the machine was meanwhile.
    """
    limits = table.set_index("case").loc[["xargs"]].squeeze() if "xargs" in set(table.case) else None

    def cell(value: Any, form: str) -> str:
        return "" if value is None or pd.isna(value) else form.format(value)

    def ratios(row: Any) -> str:
        if limits is None:
            return ""
        ratio = f"{row.wall_s / limits.wall_s:.2f}"
        same = row.case in ("xargs", "running", "cold")
        return f"{ratio}, {row.wall_per_dp3_cpu / limits.wall_per_dp3_cpu:.2f}" if same else ratio

    lines = [
        title,
        "",
        "| case | wall s (range) | / xargs, the same per CPU s of DP3 | CPU s | outside DP3, per task | peak GB "
        "| read + written / input, / input + output | occupancy "
        "| gap ms (median, 90 %) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for _, row in table.iterrows():
        gap = "" if pd.isna(row.median_gap_s) else f"{1e3 * row.median_gap_s:.0f}, {1e3 * row.p90_gap_s:.0f}"
        moved = row.read_bytes + row.written_bytes
        cells = [
            CASES[row.case],
            f"{row.wall_s:.1f} ({row.wall_min_s:.1f}–{row.wall_max_s:.1f})",
            ratios(row),
            f"{row.cpu_s:.1f}",
            cell(row.outside_dp3_fraction, "{:.1%}") + cell(row.get("overhead_cpu_s_per_task"), ", {:.2f} s"),
            f"{row.peak_rss_bytes / 1e9:.2f}",
            f"{moved / row.input_bytes:.1f}, {moved / (row.input_bytes + row.output_bytes):.1f}",
            cell(row.occupancy, "{:.1%}"),
            gap,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if (table.stolen_s > NOTABLY_STOLEN * table.wall_s).any():
        told = ", ".join(f"{CASES[row.case]} {row.stolen_s:.0f}" for _, row in table.iterrows())
        lines += ["", f"CPU seconds that the host of this virtual machine gave to others meanwhile: {told}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure all cases and write ``table.tsv``, ``table.md`` and ``picture.png``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=HERE / "results", help="where everything goes; made anew")
    parser.add_argument("--size-mb", type=float, default=100, help="of the input, about")
    parser.add_argument("--n-stations", type=int, default=30)
    parser.add_argument("--n-channels", type=int, default=32)
    parser.add_argument(
        "--n-patches", type=int, default=1, help="of the sky model; each is solved for if there are more"
    )
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each slot")
    parser.add_argument("--repetitions", type=int, default=2, help="every other one in the opposite order")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=list(CASES), help="in this order; one may be there more than once"
    )
    options = parser.parse_args()
    options.folder = options.folder.absolute()
    # With it, each process would compile the modules of a checkout.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    shutil.rmtree(options.folder, ignore_errors=True)
    input_bytes = make_input(options)
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in options.cases}
    reference = None
    for repetition in range(options.repetitions):
        for case in options.cases[:: -1 if repetition % 2 else 1]:
            folder = options.folder / case
            found = run_case(options, case, folder)
            digests = found.pop("digests")
            reference = reference or digests
            if digests != reference:
                sys.exit(f"{case} has made other bits than {options.cases[0]}; see {folder}")
            print(f"{repetition + 1}/{options.repetitions} {case}: {json.dumps(found)}", flush=True)
            runs[case].append(found)
            shutil.rmtree(folder)
    table = pd.DataFrame([medians(runs[case], case, input_bytes) for case in CASES if case in runs])
    title = (
        f"{datetime.date.today()}, {machine()}; input {input_bytes / 1e6:.0f} MB, {options.chunks} chunks, "
        f"slots x threads: {options.slots} x {options.threads}, repetitions: {options.repetitions}"
    )
    table.to_csv(options.folder / "table.tsv", sep="\t", index=False)
    text = as_markdown(table, title)
    (options.folder / "table.md").write_text(text)
    draw(table, CASES, title, options.folder / "picture.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
