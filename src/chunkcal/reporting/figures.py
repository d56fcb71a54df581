"""The pictures of the report with their words: titles, captions, and texts for those who cannot see them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chunkcal import plots
from chunkcal.errors import UserError
from chunkcal.plots import Picture, Span
from chunkcal.reporting.results import Clock, Result, Task
from chunkcal.solutions import h5parm

_MAX_DIRECTIONS = 8  # pictures per solution table
_MAX_STEPS = 4  # as many as are told apart in one picture
_MAX_PICTURE_BYTES = 24 << 20  # of a page; the solutions of further observations are not drawn


@dataclass(frozen=True)
class Figure:
    """A picture of the page with its words."""

    title: str
    alt: str
    caption: str
    picture: Picture


@dataclass
class Budget:
    """Bytes of pictures that the page may still take."""

    left: int = _MAX_PICTURE_BYTES

    def spend(self, picture: Picture) -> None:
        """Take what a picture needs."""
        self.left -= len(picture.light) + len(picture.dark)


@dataclass
class SolveFigures:
    """The pictures of one solve, and notes on what is missing among them."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def span_of(plan: Mapping[str, Any]) -> Span:
    """Find the time axis of an observation: its ends, chunk seams and gaps, MJD s."""
    seen = plan["observation"]

    def edge(slot: float) -> float:
        return seen["first_time"] + (slot - 0.5) * seen["interval_s"]

    seams = tuple(edge(chunk["start_slot"]) for chunk in plan["chunks"][1:])
    return Span(edge(0), edge(seen["n_slots"]), seams, tuple((edge(a), edge(b)) for a, b in seen["missing"]))


# ---- solutions ------------------------------------------------------------------------------------------


def solution_figures(
    obs: str, solves: Mapping[str, str | os.PathLike], span: Span, budget: Budget, pool: Executor
) -> list[SolveFigures]:
    """Draw the solutions of every solve: each table and direction against time, and against time and frequency.

    Parameters
    ----------
    obs
        Name of the observation.
    solves
        h5parm by the name of the solve, in their order.
    budget
        What the page may still take; what is drawn beyond it is left out.
    pool
        What draws.
    """
    started = [(SolveFigures(name), *_start_drawing(obs, path, span, budget, pool)) for name, path in solves.items()]
    for drawn, notes, drawings in started:
        drawn.notes += notes
        for number, drawing in enumerate(drawings):
            if budget.left <= 0:
                drawn.notes.append("Further solutions are not drawn, to keep the page small.")
                for needless in drawings[number:]:
                    needless.cancel()
                break
            figures, problem = drawing.result()
            drawn.figures += figures
            drawn.notes += problem
            for figure in figures:
                budget.spend(figure.picture)
    return [drawn for drawn, *_ in started]


def _start_drawing(
    obs: str, path: str | os.PathLike, span: Span, budget: Budget, pool: Executor
) -> tuple[list[str], list[Future[tuple[list[Figure], list[str]]]]]:
    """Begin to draw an h5parm: notes on what is left out, and what `_draw_table` will give."""
    notes: list[str] = []
    drawings: list[Future] = []
    try:
        solsets = h5parm.describe(path).solsets
    except UserError as error:
        return [f"The solutions cannot be drawn: {error}"], []
    for solset, tables in solsets.items():
        # Phases first: they show at a glance whether calibration worked.
        for table in sorted(tables, key=lambda table: (table.kind != "phase", table.kind != "amplitude", table.name)):
            n_directions = table.length("dir")
            if n_directions > _MAX_DIRECTIONS:
                notes.append(f"{table.name}: {_MAX_DIRECTIONS} of {n_directions} directions are shown.")
            for direction in range(min(n_directions, _MAX_DIRECTIONS)):
                drawings.append(pool.submit(_draw_table, obs, path, solset, table, direction, span))
                if budget.left <= 0:  # nothing of it will be looked at
                    return notes, drawings
    return notes, drawings


def _draw_table(
    obs: str, path: str | os.PathLike, solset: str, table: h5parm.Soltab, direction: int, span: Span
) -> tuple[list[Figure], list[str]]:
    """Draw a direction of a table: the figures, and why some are missing."""
    figures: list[Figure] = []
    try:
        figures.extend(_figures_of_table(obs, path, solset, table, direction, span))
    except (OSError, KeyError, ValueError) as error:
        return figures, [f"{table.name} cannot be drawn ({error})."]
    return figures, []


def _figures_of_table(
    obs: str, path: str | os.PathLike, solset: str, table: h5parm.Soltab, direction: int, span: Span
) -> Iterator[Figure]:
    where = ""
    if table.length("dir") > 1:
        where = f", direction {table.directions[direction] if table.directions else direction}"
    solutions = plots.read_solutions(path, solset, table, direction)
    title = f"{table.kind.capitalize()} of each station{where}"
    caption = _caption(table, solutions, span, len(solutions.times))
    caption[1:1] = ["A red tick at the bottom: no solution, or a flagged one"]
    if not solutions.is_angle:
        caption.append("Arrow heads: outside of the range shown")
    if len(solutions.times) > 2 * plots.MAX_POINTS:
        caption.append(f"One of {len(solutions.times) // plots.MAX_POINTS} solutions is drawn")
    alt = _alternative(title, "against time", obs, solutions)
    yield Figure(title, alt, _sentences(caption), plots.draw_solutions(solutions, span))
    if table.length("freq") < 2 or "time" not in table.axes:
        return
    waterfalls = plots.read_waterfalls(path, solset, table, direction)
    title = f"{table.kind.capitalize()} against time and frequency{where}"
    caption = _caption(table, waterfalls, span, table.length("time"))
    if len(waterfalls.polarizations) > 1:
        caption[1:1] = ["Polarizations above each other, frequency upwards in each of them"]
    alt = _alternative(title, "as an image", obs, waterfalls)
    yield Figure(title, alt, _sentences(caption), plots.draw_waterfalls(waterfalls, span))


def _caption(table: h5parm.Soltab, drawn: plots.Solutions | plots.Waterfalls, span: Span, n_times: int) -> list[str]:
    parts = [f"Solution table {table.name}, {n_times} solutions in time" + (f", {drawn.note}" if drawn.note else "")]
    if len(span.seams) > plots.MAX_SEAMS:
        parts.append(f"Where the {len(span.seams) + 1} chunks meet is not marked, they are too many")
    elif span.seams:
        parts.append("Vertical lines: where chunks meet")
    if span.gaps:
        parts.append("Grey bands: no data")
    if drawn.without:
        among = f"{len(drawn.without)} of {len(drawn.stations)}"
        parts.append(f"No solutions at all ({among}): {', '.join(drawn.without)}")
    return parts


def _alternative(title: str, how: str, obs: str, drawn: plots.Solutions | plots.Waterfalls) -> str:
    return (
        f"{title} {how} for {len(drawn.stations)} stations of {obs}, one small panel each; "
        f"{len(drawn.without)} of them have no solutions"
    )


def _sentences(parts: Sequence[str]) -> str:
    return ". ".join(parts) + "."


# ---- flags ----------------------------------------------------------------------------------------------


def flag_figures(result: Result, span: Span) -> list[Figure]:
    """Draw the flagged fractions of an observation after each stage."""
    stages = {name: flags for name, flags in result.flags.items() if flags.n_total}
    stages = {name: stages[name] for name in ("raw", "preprocess", "apply") if name in stages}
    if not stages:
        return []
    stations = [name for name in result.plan["observation"]["stations"] if any(f.of(name) for f in stages.values())]
    words = ", ".join(f"{plots.STAGE_NAMES[name]} {100 * flags.fraction:.3g} %" for name, flags in stages.items())
    gaps = " After pre-processing gaps are in the numbers: DP3 fills them with flagged rows." if span.gaps else ""
    figures = [
        Figure(
            "Flagged fraction by time and frequency",
            f"Flagged fraction of {result.name} by time and frequency: {words}",
            "Of all cross-correlations. Vertical lines: where chunks meet. Averaging hides flags: a sample is flagged"
            f" only if all that went into it were.{gaps}",
            plots.draw_flag_waterfalls(stages, span),
        ),
        Figure(
            "Flagged fraction by station, baseline length, frequency and time",
            f"Bars of the flagged fraction of {len(stations)} stations of {result.name}, and of baseline lengths,"
            f" frequencies and times: {words}",
            "Stations without any flag are left out. A baseline counts for both of its stations; its length is that"
            " between the stations, not projected.",
            plots.draw_flag_bars(stages, stations, span),
        ),
    ]
    return [*figures, *_step_figures(result, span)]


def _step_figures(result: Result, span: Span) -> list[Figure]:
    """Draw what single steps flagged: those that flagged most, in their order."""
    totals = result.flag_steps.totals
    most = sorted((step for step in totals if totals[step][0]), key=lambda step: -totals[step][0])[:_MAX_STEPS]
    steps = {step: result.flag_steps.as_flags(step) for step in totals if step in most}
    steps = {step: flags for step, flags in steps.items() if flags}
    if not steps:
        return []
    stations = [name for name in result.plan["observation"]["stations"] if any(f.of(name) for f in steps.values())]
    words = ", ".join(f"{step} {100 * flags.fraction:.3g} %" for step, flags in steps.items())
    return [
        Figure(
            "What single steps flagged",
            f"Bars of the fraction that steps flagged in addition, of {len(stations)} stations of {result.name}, and of"
            f" baseline lengths, frequencies and chunks: {words}",
            "What was not flagged before the step, as DP3 tells it: of visibilities with autocorrelations. By length"
            " without them, and from whole percents of each baseline, so less than half a percent shows as none. By"
            " time each chunk is one value.",
            plots.draw_flag_bars(steps, stations, span),
        )
    ]


# ---- images ---------------------------------------------------------------------------------------------


def image_figure(folder: str | os.PathLike, obs: str) -> tuple[Figure | None, dict[str, Any]]:
    """Take the picture of the quick-look images from their folder.

    Returns
    -------
    Figure or None
        None if there are no images.
    dict
        What ``image.json`` says; ``problem`` is why there is no picture, if there is none.
    """
    folder = Path(folder)
    try:
        found = json.loads((folder / "image.json").read_text(encoding="utf-8"))
        if found["problem"]:
            return None, found
        light, dark = ((folder / name).read_bytes() for name in ("images.png", "images-dark.png"))
        width, height = found["pictures"]
    except (OSError, ValueError, KeyError) as error:
        return None, {"images": {}, "problem": f"the quick-look images in {folder} cannot be read ({error})"}
    ranges = ", ".join(f"{name.removesuffix('.fits')} {_range(one)}" for name, one in found["images"].items())
    figure = Figure(
        "Quick look at the sky",
        f"Images of {obs}, dirty and cleaned; dynamic ranges: {ranges}",
        f"{found['size_pixels']} pixels of {found['scale_arcsec']:g} arcsec, from {found['n_chunks']} chunk(s), all in"
        " the colours of the last. Noise: 1.4826 times the median absolute deviation. Range: peak / noise.",
        Picture(light, dark, width, height),
    )
    return figure, found


def _range(measures: Mapping[str, Any]) -> str:
    return f"{measures['dynamic_range']:.0f}" if measures["dynamic_range"] else "unknown"


# ---- timings --------------------------------------------------------------------------------------------


def gantt_figure(tasks: Sequence[Task], clock: Clock) -> Figure:
    """Draw who ran what when, and how busy each slot was."""
    hosts = {task.host for task in tasks}
    bars = [
        (
            f"slot {task.worker}" if len(hosts) == 1 else f"{task.host} {task.worker}",
            task.stage,
            clock.since_start(task.start),
            clock.since_start(task.end),
        )
        for task in tasks
    ]
    n_slots = len({(task.host, task.worker) for task in tasks})
    pauses = [(clock.since_start(start), end - start) for start, end in clock.pauses]
    return Figure(
        "Who ran what when",
        f"{len(bars)} DP3 runs on {n_slots} slots against time, coloured by stage, with the number of busy slots",
        "One row per slot, one bar per DP3 run, and the part of the time that the slot was running DP3. Above: how many"
        " slots were busy.",
        plots.draw_gantt(bars, pauses),
    )
