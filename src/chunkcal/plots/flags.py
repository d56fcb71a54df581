"""Flagged fractions: by time and channel, and by station, baseline length, channel and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from chunkcal.flagging.flags import LENGTH_EDGES_M, Flags
from chunkcal.plots.reading import Span
from chunkcal.plots.style import (
    LIGHT,
    PIXEL,
    WIDTH,
    Picture,
    Theme,
    draw_labels,
    draw_legend,
    in_both,
    new_figure,
    page_axes,
    style_axes,
    time_unit,
)

NAMES = {"raw": "input", "preprocess": "pre-processed", "apply": "calibrated"}
_MAP = colormaps["cividis"].resampled(96)  # few levels, so that a palette holds them
_SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def draw_flag_waterfalls(stages: Mapping[str, Flags], span: Span) -> Picture:
    """Draw the flagged fraction by time and channel after each stage, one above the other."""
    return in_both(_waterfall_figure(stages, span, LIGHT), _MAP)


def _waterfall_figure(stages: Mapping[str, Flags], span: Span, theme: Theme) -> Figure:
    row, gap, bottom = 1.75, 0.35, 0.5
    height = bottom + len(stages) * (row + gap)
    figure = new_figure(height, theme)
    factor, unit = time_unit(span.end - span.start)
    # Few flags and many are both to be seen: the colour goes with the root of the fraction.
    norm = PowerNorm(0.5, 0, 1)
    axes = None
    for i, (stage, flags) in enumerate(stages.items()):
        y = height - (i + 1) * (row + gap)
        axes = figure.add_axes((0.75 / WIDTH, y / height, 1 - 1.75 / WIDTH, row / height), facecolor=theme.gap)
        _draw_waterfall(axes, flags, span, factor, norm)
        style_axes(axes, theme)
        axes.set_facecolor(theme.gap)
        axes.set_xlim(0, (span.end - span.start) / factor)
        axes.set_ylabel("MHz", fontsize=9, color=theme.text)
        axes.set_title(
            f"{NAMES.get(stage, stage)}: {100 * (flags.fraction or 0):.3g} % flagged",
            fontsize=9,
            color=theme.text,
            loc="left",
            y=1.0,  # fixed: else matplotlib measures all labels to place it
            pad=3,
        )
        axes.tick_params(labelbottom=i == len(stages) - 1)
        for start, end in span.gaps:  # after pre-processing they are rows that are flagged
            axes.axvspan((start - span.start) / factor, (end - span.start) / factor, color=theme.gap, lw=0)
        _draw_seams(axes, span, factor, theme)
    if axes is not None:
        axes.set_xlabel(f"time since start ({unit}); grey: no data", fontsize=9, color=theme.text)
        place = (1 - 0.8 / WIDTH, bottom / height, 0.16 / WIDTH, (height - bottom - gap) / height)
        bar = figure.colorbar(ScalarMappable(norm, _MAP), cax=figure.add_axes(place))
        ticks = [0, 0.01, 0.05, 0.1, 0.2, 0.5, 1]
        bar.set_ticks(ticks, labels=[f"{100 * tick:g} %" for tick in ticks])
        bar.ax.tick_params(colors=theme.muted, labelsize=8, length=2)
        bar.outline.set(edgecolor=theme.line, linewidth=2 * PIXEL)
    return figure


def _draw_waterfall(axes: Axes, flags: Flags, span: Span, factor: float, norm: PowerNorm) -> None:
    waterfall = flags.coarse_waterfall()
    frequencies = flags.channel_frequencies() / 1e6
    width = frequencies[1] - frequencies[0] if len(frequencies) > 1 else 0.1
    edges = np.append(frequencies[:: flags.per_group], frequencies[-1] + width) - width / 2
    # An empty column for every gap: pcolormesh wants edges that touch.
    breaks = np.flatnonzero(waterfall.start[1:] - waterfall.end[:-1] > 1e-3) + 1
    fraction = np.insert(waterfall.flagged / np.maximum(1, waterfall.total), breaks, np.nan, axis=0)
    starts = np.insert(waterfall.start, breaks, waterfall.end[breaks - 1])
    times = (np.append(starts, waterfall.end[-1]) - span.start) / factor
    axes.pcolormesh(times, edges, np.ma.masked_invalid(fraction).T, cmap=_MAP, norm=norm, rasterized=True)


def _draw_seams(axes: Axes, span: Span, factor: float, theme: Theme) -> None:
    if len(span.seams) <= 120:
        places = (np.array(span.seams) - span.start) / factor
        axes.vlines(places, 0, 1, transform=axes.get_xaxis_transform(), colors=theme.page, lw=PIXEL)


def draw_flag_bars(stages: Mapping[str, Flags], stations: Sequence[str], span: Span) -> Picture:
    """Draw the flagged fraction after each stage, or by each step, by station, baseline length, channel and time."""
    return in_both(_bar_figure(stages, stations, span, LIGHT))


def _bar_figure(stages: Mapping[str, Flags], stations: Sequence[str], span: Span, theme: Theme) -> Figure:
    size = 8 if len(stations) <= 40 else 6 if len(stations) <= 80 else 4
    names = [name[:14] for name in stations]
    middle = 0.85 + 1.4 + 0.3 + 0.0095 * size * max(map(len, names), default=1)  # below it the names have room
    bottom, height = 0.85, middle + 1.5 + 0.35
    figure = new_figure(height, theme)
    after = dict(zip(NAMES, (theme.muted, theme.series[0], theme.series[1]), strict=True))
    colours = {stage: after.get(stage, theme.series[i % len(theme.series)]) for i, stage in enumerate(stages)}
    legend = [NAMES.get(stage, stage) for stage in stages]
    draw_legend(page_axes(figure), 0.75, height - 0.16, legend, [colours[stage] for stage in stages], theme)
    wide = figure.add_axes((0.75 / WIDTH, middle / height, 1 - 0.9 / WIDTH, 1.5 / height))
    _draw_bars(wide, [(colours[stage], [flags.of(name) for name in stations]) for stage, flags in stages.items()])
    style_axes(wide, theme)
    _name_stations(wide, names, size, theme)
    width = (WIDTH - 0.9 - 2 * 0.6) / 3
    places = [(0.75 + i * (width + 0.6)) / WIDTH for i in range(3)]
    small = [figure.add_axes((x, bottom / height, width / WIDTH, 1.4 / height)) for x in places]
    _draw_lengths(small[0], stages, colours)
    factor, unit = time_unit(span.end - span.start)
    _draw_steps(small[1], stages, colours, _by_channel)
    _draw_steps(small[2], stages, colours, lambda flags: _by_time(flags, span, factor))
    for axes, name in zip(small, ("baseline length", "frequency (MHz)", f"time since start ({unit})"), strict=True):
        style_axes(axes, theme)
        axes.set_xlabel(name, fontsize=9, color=theme.text)
    small[0].tick_params(axis="x", labelsize=7)
    for axes in (wide, *small):
        _scale(axes)
        axes.grid(axis="y", color=theme.gap, lw=PIXEL)
        axes.set_axisbelow(True)
    return figure


def _name_stations(axes: Axes, names: Sequence[str], size: float, theme: Theme) -> None:
    """Label the horizontal axis; sixty ticks of matplotlib take longer than all the rest of the picture."""
    axes.set_xticks([])
    below = axes.get_xaxis_transform()
    ticks = [[(i, 0), (i, -2 / 72 / 1.5)] for i in range(len(names))]
    axes.add_collection(
        LineCollection(ticks, colors=theme.muted, linewidths=0.8, transform=below, clip_on=False), autolim=False
    )
    middle = 0.365 * size / 72  # inches; half the height of a text, which is across the axis here
    place = below + ScaledTranslation(middle, 0, axes.figure.dpi_scale_trans)
    labels = [(i, -5.5 / 72 / 1.5, name) for i, name in enumerate(names)]
    draw_labels(axes, labels, size, theme.muted, ha="right", rotation=90, transform=place)


def _draw_bars(axes: Axes, series: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    width = 0.8 / max(1, len(series))
    for i, (colour, values) in enumerate(series):
        shift = (i - len(series) / 2) * width
        known = [(place + shift, value) for place, value in enumerate(values) if value is not None]
        bars = [[(x, 0), (x, value), (x + width, value), (x + width, 0)] for x, value in known]
        axes.add_collection(PolyCollection(bars, color=colour, lw=0, snap=True))
    axes.set_xlim(-0.6, max((len(values) for _, values in series), default=1) - 0.4)


def _draw_lengths(axes: Axes, stages: Mapping[str, Flags], colours: Mapping[str, str]) -> None:
    edges = sorted({edge for flags in stages.values() for edge in flags.lengths_m})
    series = []
    for stage, flags in stages.items():
        pairs = [flags.lengths_m.get(edge, (0, 0)) for edge in edges]
        series.append((colours[stage], [flagged / total if total else None for flagged, total in pairs]))
    _draw_bars(axes, series)
    # Each bin ends where the next one begins.
    ends = dict(zip(LENGTH_EDGES_M, LENGTH_EDGES_M[1:], strict=False))
    axes.set_xticks(range(len(edges)), [f"< {_metres(ends[edge])}" for edge in edges], rotation=45, ha="right")


def _metres(length: int) -> str:
    return f"{length // 1000} km" if length >= 1000 else f"{length} m"


def _by_channel(flags: Flags) -> tuple[np.ndarray, np.ndarray]:
    frequencies = flags.channel_frequencies() / 1e6
    width = frequencies[1] - frequencies[0] if len(frequencies) > 1 else 0.1
    return np.append(frequencies, frequencies[-1] + width) - width / 2, flags.channels / max(1, flags.channel_total)


def _by_time(flags: Flags, span: Span, factor: float) -> tuple[np.ndarray, np.ndarray]:
    waterfall = flags.coarse_waterfall()
    fraction = waterfall.flagged.sum(axis=1) / np.maximum(1, waterfall.total.sum(axis=1))
    return (np.append(waterfall.start, waterfall.end[-1]) - span.start) / factor, fraction


def _draw_steps(
    axes: Axes,
    stages: Mapping[str, Flags],
    colours: Mapping[str, str],
    read: Callable[[Flags], tuple[np.ndarray, np.ndarray]],
) -> None:
    for i, (stage, flags) in enumerate(stages.items()):
        edges, fraction = read(flags)
        # Where stages agree, the earlier one still shows, being broader.
        axes.stairs(fraction, edges, color=colours[stage], baseline=None, lw=1 + 0.9 * (len(stages) - 1 - i))
        axes.set_xlim(edges[0], edges[-1])


def _scale(axes: Axes) -> None:
    """Let the axis end at a round fraction above all that is drawn."""
    top = axes.dataLim.y1
    end = next((scale for scale in _SCALES if scale >= top), 1.0)
    axes.set_ylim(0, end * 1.02)
    ticks = [0, end / 2, end]
    axes.set_yticks(ticks, [f"{100 * tick:g} %" for tick in ticks])
