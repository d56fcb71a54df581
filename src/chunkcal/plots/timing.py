"""Who ran what when, and how busy the slots were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from chunkcal.plots.style import (
    LIGHT,
    WIDTH,
    Picture,
    Theme,
    draw_legend,
    in_both,
    new_figure,
    page_axes,
    style_axes,
    time_unit,
)

STAGES = ("preprocess", "calibrate", "apply", "fit")
Bar = tuple[str, str, float, float]  # slot, stage, start, end


def draw_gantt(tasks: Sequence[Bar], pauses: Sequence[tuple[float, float]] = ()) -> Picture:
    """Draw who ran what when, with the part of the time that each slot was busy.

    Parameters
    ----------
    tasks
        (slot, stage, start, end) of each DP3 run, seconds since the start of the run without its pauses.
    pauses
        (when, how long) the run was interrupted, s.
    """
    return in_both(_gantt_figure(tasks, pauses, LIGHT))


def _gantt_figure(tasks: Sequence[Bar], pauses: Sequence[tuple[float, float]], theme: Theme) -> Figure:
    slots = sorted({task[0] for task in tasks}, key=lambda name: (len(name), name))
    row = 0.24 if len(slots) <= 32 else 0.12
    strip, body = 0.55, row * len(slots)
    height = body + strip + 1.15
    figure = new_figure(height, theme)
    margin = min(2.5, 0.45 + 0.075 * max(map(len, slots), default=1))
    left, width = margin / WIDTH, 1 - (margin + 0.6) / WIDTH
    end = max((task[3] for task in tasks), default=1.0) or 1.0
    factor, unit = time_unit(end, seconds=300.0, minutes=2 * 3600.0)
    axes = figure.add_axes((left, 0.5 / height, width, body / height), xlim=(0, end / factor), ylim=(len(slots), 0))
    style_axes(axes, theme, 8 if row > 0.2 else 6)
    _draw_bars(axes, tasks, slots, factor, theme)
    axes.set_yticks(np.arange(len(slots)) + 0.5, slots, parse_math=False)
    axes.set_xlabel(f"time since the first DP3 run ({unit})", fontsize=9, color=theme.text)
    for slot, busy in zip(slots, _busy(tasks, slots, end), strict=True):
        at = (1.008, slots.index(slot) + 0.5)
        axes.text(
            *at,
            f"{100 * busy:.0f} %",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8 if row > 0.2 else 6,
            color=theme.muted,
        )
    above = figure.add_axes((left, (0.5 + body + 0.12) / height, width, strip / height), sharex=axes)
    _draw_running(above, tasks, len(slots), factor, theme)
    for when, length in pauses:
        axes.axvline(when / factor, color=theme.text, lw=0.8, ls="--")
        above.axvline(when / factor, color=theme.text, lw=0.8, ls="--")
        above.text(
            when / factor,
            1.09 * len(slots),
            f" pause {length / 60:.0f} min",
            fontsize=7,
            color=theme.muted,
            va="bottom",
        )
    used = {task[1] for task in tasks}
    pairs = [(name, colour) for name, colour in zip(STAGES, theme.series, strict=True) if name in used]
    names, colours = [name for name, _ in pairs], [colour for _, colour in pairs]
    draw_legend(page_axes(figure), margin, height - 0.16, names, colours, theme)
    return figure


def _draw_bars(axes: Axes, tasks: Sequence[Bar], slots: Sequence[str], factor: float, theme: Theme) -> None:
    place = {name: i for i, name in enumerate(slots)}
    # A thin edge of the panel's colour keeps neighbours apart, as long as it does not hide them.
    edge = theme.panel if len(tasks) < 400 * len(slots) else "none"
    for stage, colour in zip(STAGES, theme.series, strict=True):
        bars = [
            [(s / factor, place[slot] + 0.12), (e / factor, place[slot] + 0.12)]
            + [(e / factor, place[slot] + 0.88), (s / factor, place[slot] + 0.88)]
            for slot, name, s, e in tasks
            if name == stage
        ]
        axes.add_collection(PolyCollection(bars, facecolor=colour, edgecolor=edge, linewidth=0.4))


def _busy(tasks: Sequence[Bar], slots: Sequence[str], end: float) -> list[float]:
    """Part of the time that each slot was running DP3."""
    sums = dict.fromkeys(slots, 0.0)
    for slot, _, start, stop in tasks:
        sums[slot] += stop - start
    return [sums[slot] / end for slot in slots]


def _draw_running(axes: Axes, tasks: Sequence[Bar], n_slots: int, factor: float, theme: Theme) -> None:
    """Draw how many slots were busy at each moment."""
    times = np.array([[start, stop] for _, _, start, stop in tasks]).reshape(-1, 2)
    changes = np.concatenate([times[:, 0], times[:, 1]])
    steps = np.repeat([1, -1], len(times))
    order = np.lexsort((steps, changes))  # of two at one moment, the end comes first
    axes.fill_between(
        np.append(0, changes[order]) / factor,
        np.append(0, np.cumsum(steps[order])),
        step="post",
        color=theme.muted,
        alpha=0.5,
        lw=0,
    )
    style_axes(axes, theme)
    axes.tick_params(labelbottom=False)
    axes.set(ylim=(0, n_slots * 1.08), yticks=[0, n_slots])
    axes.set_ylabel("slots\nbusy", fontsize=8, color=theme.text)
