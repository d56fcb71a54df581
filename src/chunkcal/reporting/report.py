"""The page that a person looks at after a run: one self-contained HTML file.

Everything is inline, there is no script, and the same run gives the same bytes.
"""

from __future__ import annotations

import argparse
import base64
import datetime
import gc
import json
import multiprocessing
import os
import statistics
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jinja2

import chunkcal
from chunkcal import plots
from chunkcal.planning.requests import STAGES, data_bytes
from chunkcal.reporting.figures import (
    Budget,
    Figure,
    flag_figures,
    gantt_figure,
    image_figure,
    solution_figures,
    span_of,
)
from chunkcal.reporting.results import Clock, Flags, Result, Run, Task, collect, collect_folder
from chunkcal.reporting.summary import gain_text, percent

_MJD_0 = datetime.datetime(1858, 11, 17, tzinfo=datetime.UTC)
_UNIX_0 = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_ROWS_PER_TABLE = 21  # at most; stations stand side by side in as many tables as needed
_SCALES = (0.05, 0.1, 0.2, 0.5, 1.0)  # flagged fractions that bars may reach to
_HIGH = 0.5  # flagged fraction from which on a station is named
_MAX_PROCESSES = 8
_LONG = 60  # characters of a parameter's value; the whole stands in the list of DP3 parameters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``chunkcal report``."""
    parser.add_argument("output_dir", nargs="?", default="results", help="output folder of the run")


def run(args: argparse.Namespace) -> int:
    """Write the report of what a run has made so far.

    Its time is the epoch, so that Snakemake makes it again when the rest is there.

    Raises
    ------
    UserError
        The folder holds no run.
    """
    output = Path(args.output_dir) / "report.html"
    _publish(render(collect_folder(args.output_dir), {}), output)
    os.utime(output, (0, 0))
    print(output.resolve())
    return 0


def write_report(
    plan: str | os.PathLike,
    records: Iterable[str | os.PathLike],
    fits: Iterable[str | os.PathLike],
    solutions: Iterable[str | os.PathLike],
    measurement_sets: Iterable[str | os.PathLike],
    settings: Mapping[str, Any],
    output: str | os.PathLike,
    images: Iterable[str | os.PathLike] = (),
    quality: Iterable[str | os.PathLike] = (),
) -> None:
    """Write the report of a run; it appears under its name only when it is whole.

    Parameters
    ----------
    plan, records, fits, solutions, measurement_sets, images, quality
        As `results.collect`. What is missing or unreadable is said on the page.
    settings
        Sections of the configuration, shown as they are.
    output
        The HTML file.

    Raises
    ------
    UserError
        The plan cannot be read.
    """
    _publish(render(collect(plan, records, fits, solutions, measurement_sets, images, quality), settings), Path(output))


def _publish(page: str, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f"{output.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def render(run: Run, settings: Mapping[str, Any]) -> str:
    """Make the page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(chunkcal.__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "data_uri": _data_uri, "duration": duration, "size": size}
    budget = Budget()
    with _artists() as pool:
        flags = [pool.submit(flag_figures, result, span_of(result.plan)) for result in run.observations.values()]
        timings = pool.submit(_timings, run.tasks)
        template = environment.get_template("report.html.j2")  # is compiled, which takes 0.1 s
        # One after the other: what is spent on the solutions of an observation decides on the next one's.
        pairs = zip(run.observations.values(), flags, strict=True)
        observations = [_observation(result, drawn, budget, pool) for result, drawn in pairs]
        timings = timings.result()
    return template.render(
        observations=observations,
        timings=timings,
        settings=json.dumps(settings, indent=1, ensure_ascii=False, default=str),
        versions=_versions(run),
        light=plots.LIGHT,
        dark=plots.DARK,
    )


def _artists() -> Executor:
    """Give processes that draw, as many as this one may use cores."""
    n_processes = min(_MAX_PROCESSES, len(os.sched_getaffinity(0)))
    gc.freeze()  # else each of them would copy most of our memory as it looks for garbage
    # Joining goes on beside, and more waits for that.
    return ProcessPoolExecutor(n_processes, multiprocessing.get_context("fork"), initializer=os.nice, initargs=(10,))


# ---- one observation ------------------------------------------------------------------------------------


def _observation(result: Result, flags: Future[list[Figure]], budget: Budget, pool: Executor) -> dict[str, Any]:
    factor = result.fit.factor if result.fit else None
    tone = "neutral" if factor is None else "good" if factor >= 1 else "bad"
    failed = result.quality is not None and result.quality["verdict"] == "fail"
    if result.is_calibrated and (factor is None or failed):
        tone = "bad"
    span = span_of(result.plan)
    solves, note = _solves(result)
    image, image_facts = image_figure(result.images, result.name) if result.images else (None, None)
    solve_figures = solution_figures(result.name, solves, span, budget, pool)
    return {
        "name": result.name,
        "tone": tone,
        "gain": gain_text(result),
        "fit": result.fit,
        "quality": result.quality,
        "raw": result.flags.get("raw", Flags()).fraction,
        "final": result.final.fraction if result.final else None,
        "exactness": _exactness(result.plan),
        "outputs": [(name, _absolute(path)) for name, path in _outputs(result)],
        "notes": result.plan["notes"],
        "problems": _shortened(result.problems),
        "facts": _facts(result),
        "chunks": _chunks(result.plan),
        "steps": _steps(result.plan),
        "parsets": [(stage, result.plan["runs"][stage]) for stage in STAGES if result.plan["runs"].get(stage)],
        "flags": _flag_tables(result),
        "flag_steps": _flag_steps(result),
        "flag_figures": flags.result(),
        "solves": solve_figures,
        "solves_note": note,
        "image": image,
        "image_facts": image_facts,
    }


def _outputs(result: Result) -> list[tuple[str, Path | None]]:
    data = ("calibrated data" if result.is_calibrated else "pre-processed data", result.ms)
    return [data, *((f"solutions, {name}", result.solutions.get(name)) for name in result.plan["solves"])]


def _absolute(path: Path | None) -> str | None:
    return None if path is None else os.path.abspath(path)


def _shortened(problems: Sequence[str], n: int = 5) -> list[str]:
    more = [f"and {len(problems) - n} more like these"] if len(problems) > n else []
    return [*problems[:n], *more]


def _exactness(plan: Mapping[str, Any]) -> dict[str, Any]:
    unit = plan["unit"]
    if not plan["exact"]:
        return {"exact": False, "text": "APPROXIMATE", "reasons": unit["inexact"]}
    text = "exact: chunks give what one run over the whole observation gives"
    if unit["rounding"]:
        return {"exact": True, "text": f"{text}, up to rounding", "reasons": unit["rounding"]}
    return {"exact": True, "text": f"{text}, bit for bit", "reasons": []}


def _facts(result: Result) -> list[tuple[str, str, str]]:
    """Name what went in and what came out."""
    seen, data = result.plan["observation"], result.plan["data"]
    end = seen["first_time"] + (seen["n_slots"] - 0.5) * seen["interval_s"]
    begin = seen["first_time"] - 0.5 * seen["interval_s"]
    lost = sum(stop - start for start, stop in seen["missing"])
    gaps = f"{len(seen['missing'])} ({lost} of {seen['n_slots']} slots)" if lost else "none"
    first, last = seen["first_frequency_hz"] / 1e6, seen["last_frequency_hz"] / 1e6
    return [
        ("path", seen["ms"], _absolute(result.ms) or "missing"),
        ("size", size(seen["size_bytes"]), _size_out(result)),
        ("telescope", seen["telescope"], ""),
        ("field", ", ".join(seen["fields"]), ""),
        ("start (UTC)", _utc(_MJD_0, begin), ""),
        ("length", duration(end - begin), ""),
        ("time slots", _times(seen), _times(data)),
        ("channels", _channels(seen), _channels(data)),
        ("band", f"{first:.3f} to {last:.3f} MHz", ""),
        ("correlations", str(seen["n_correlations"]), str(data["n_correlations"])),
        ("stations", str(len(seen["stations"])), ""),
        ("baselines", str(seen["n_baselines"]), str(data["n_baselines"] or "chosen by DP3")),
        ("gaps in time", gaps, ""),
    ]


def _times(grid: Mapping[str, Any]) -> str:
    return f"{grid['n_slots']} × {grid['interval_s']:.4g} s"


def _channels(band: Mapping[str, Any]) -> str:
    n = band["n_channels"] or "chosen by DP3:"
    return f"{n} × {band['channel_width_hz'] / 1e3:.4g} kHz"


def _chunks(plan: Mapping[str, Any]) -> dict[str, Any]:
    lengths = [chunk["n_slots"] for chunk in plan["chunks"]]
    interval = plan["observation"]["interval_s"]
    usual = max(lengths, default=0)
    odd = Counter(n for n in lengths if n != usual)
    text = f"{len(lengths)} of {usual} slots ({duration(usual * interval)})"
    if odd:
        text += "; " + ", ".join(f"{count} of {n} slots" for n, count in sorted(odd.items())[:4]) + " among them"
    return {
        "text": text,
        "unit": f"{plan['unit']['n_slots']} slots",
        "reasons": [reason for reason, _ in plan["unit"]["reasons"]],
    }


def _steps(plan: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Name the DP3 steps of each stage with their parameters, in short."""
    stages = []
    for stage in STAGES:
        run = plan["runs"].get(stage)
        if not run:
            continue
        steps = []
        for parset in run["parsets"]:
            for name in parset.get("steps", "").strip("[]").split(","):
                own = {k[len(name) + 1 :]: v for k, v in parset.items() if name and k.startswith(f"{name}.")}
                kind = own.pop("type", name)
                shown = [f"{k} {v if len(v) <= _LONG else '…'}" for k, v in own.items()]
                steps.append(f"{kind} ({', '.join(shown)})" if shown else kind)
        stages.append((stage, [step for step in steps if step] or ["copy"]))
    return stages


# ---- flags ----------------------------------------------------------------------------------------------


def _flag_tables(result: Result) -> dict[str, Any] | None:
    """Put flagged fractions of stations into tables that stand side by side."""
    columns = [name for name in ("raw", "preprocess", "apply") if name in result.flags]
    if not columns:
        return None
    known = list(result.plan["observation"]["stations"])
    found = dict.fromkeys(known) | dict.fromkeys(name for key in columns for name in result.flags[key].stations)
    rows = [(name, [result.flags[key].of(name) for key in columns]) for name in found]
    rows = [row for row in rows if any(value is not None for value in row[1])]
    final = [(name, values[-1] or 0.0) for name, values in rows]
    highest = max((value for _, values in rows for value in values if value is not None), default=0.0)
    n_tables = max(1, -(-len(rows) // _ROWS_PER_TABLE))
    length = max(1, -(-len(rows) // n_tables))
    return {
        "columns": columns,
        "totals": [result.flags[key].fraction for key in columns],
        "tables": [rows[i : i + length] for i in range(0, len(rows), length)],
        "scale": next((scale for scale in _SCALES if scale >= highest), 1.0),
        "high": sorted((row for row in final if row[1] >= _HIGH), key=lambda row: -row[1]),
        "silent": [name for name in known if name not in {row[0] for row in rows}],
    }


def _flag_steps(result: Result) -> list[tuple[str, int, int]]:
    """Name what single steps flagged in addition, and of how many visibilities."""
    totals = result.flag_steps.totals.items()
    return [(step, flagged, total) for step, (flagged, total) in totals if flagged or step.startswith("preprocess.")]


def _solves(result: Result) -> tuple[dict[str, Path], str]:
    """Give the solutions to draw, by the name of the solve, or say why there are none."""
    if not result.is_calibrated:
        return {}, "Nothing was calibrated."
    missing = [name for name in result.plan["solves"] if name not in result.solutions]
    return result.solutions, f"The merged solutions of {', '.join(missing)} are missing." if missing else ""


# ---- timings and versions -------------------------------------------------------------------------------


def _timings(tasks: Sequence[Task]) -> dict[str, Any] | None:
    if not tasks:
        return None
    clock = Clock.of(tasks)
    slots = {(task.host, task.worker) for task in tasks}
    stages = []
    for stage in STAGES:
        own = [task for task in tasks if task.stage == stage]
        if own:
            wall = [task.end - task.start for task in own]
            stages.append(
                {
                    "stage": stage,
                    "n": len(own),
                    "median": statistics.median(wall),
                    "longest": max(wall),
                    "cpu": sum(task.cpu_s for task in own),
                    "memory": max(task.max_rss_kb for task in own) * 1024,
                }
            )
    busy = sum(task.end - task.start for task in tasks)
    n_runs = {row["stage"]: row["n"] for row in stages}
    return {
        "stages": stages,
        "one_pass": n_runs.get("preprocess", 0) < n_runs.get("calibrate", 0),
        "length": clock.length,
        "start": _utc(_UNIX_0, clock.start),
        "end": _utc(_UNIX_0, clock.end),
        "n_pauses": len(clock.pauses),
        "n_slots": len(slots),
        "busy": busy,
        "cpu": sum(task.cpu_s for task in tasks),
        "occupancy": busy / (len(slots) * clock.length) if clock.length > 0 else None,
        "figure": gantt_figure(tasks, clock),
    }


def _versions(run: Run) -> list[tuple[str, str]]:
    hosts = sorted({task.host for task in run.tasks})
    shown = ", ".join(hosts[:20]) + (f" and {len(hosts) - 20} more" if len(hosts) > 20 else "")
    return [
        ("DP3", ", ".join(sorted(run.dp3_versions)) or "unknown"),
        ("chunkcal", chunkcal.__version__),
        ("Python", ".".join(map(str, sys.version_info[:3]))),
        ("threads per DP3 run", ", ".join(map(str, sorted(run.threads))) or "unknown"),
        *([("layout", run.layout)] if run.layout else []),
        ("hosts", shown or "unknown"),
    ]


# ---- words ----------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """Write a duration in the unit a person would choose."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def size(n_bytes: float) -> str:
    """Write a number of bytes."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes:.0f} B"


def _size_out(result: Result) -> str:
    """Say how large the output is; about, while its chunks are still being joined."""
    if result.ms is None:
        return "–"
    return size(_size_of(result.ms)) if result.ms.exists() else f"about {size(data_bytes(result.plan))}"


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _utc(zero: datetime.datetime, seconds: float) -> str:
    return f"{zero + datetime.timedelta(seconds=seconds):%Y-%m-%d %H:%M:%S}"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
