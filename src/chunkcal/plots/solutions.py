"""Solutions of all stations on one page: against time, and against time and frequency."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import PcolorImage
from matplotlib.ticker import MaxNLocator

from chunkcal.plots.panels import (
    Layout,
    draw_edges,
    draw_frames,
    draw_gaps,
    draw_time_ticks,
    draw_titles,
    draw_value_ticks,
    part_of,
)
from chunkcal.plots.reading import Solutions, Span, Waterfalls
from chunkcal.plots.style import (
    FLAGGED,
    LIGHT,
    PIXEL,
    WIDTH,
    Picture,
    Theme,
    draw_legend,
    in_both,
    new_figure,
    page_axes,
)

MAX_POINTS = 1000  # in time, per panel: more than its pixels
# Angles come back to where they began, through the colours of -180, -90, 0 and 90 degrees. No colour of the circle
# looks like a gap, a panel or a flag, also to people who do not see red and green; twilight ends in a gap's grey.
_ANGLES = LinearSegmentedColormap.from_list("angles", ["#714805", "#b10085", "#00a5f8", "#96f285", "#714805"])
# Few levels, so that a palette holds them.
_MAPS = {True: _ANGLES.resampled(96), False: colormaps["cividis"].resampled(96)}


# ---- against time ---------------------------------------------------------------------------------------


def draw_solutions(solutions: Solutions, span: Span) -> Picture:
    """Draw solutions against time, a small panel for each station."""
    return in_both(_time_figure(solutions, span, LIGHT))


def _time_figure(solutions: Solutions, span: Span, theme: Theme) -> Figure:
    layout = Layout.of(len(solutions.stations))
    figure = new_figure(layout.page, theme)
    axes = page_axes(figure)
    low, high, ticks = _value_range(solutions)
    draw_frames(axes, layout, span, theme)
    draw_edges(axes, layout, span, theme, seam=theme.line)
    draw_titles(axes, layout, solutions.stations, solutions.without, theme)
    if solutions.is_angle:
        middle = layout.height / 2
        zero = [[(x, y + middle), (x + layout.width, y + middle)] for x, y in layout.corners]
        axes.add_collection(LineCollection(zero, colors=theme.line, linewidths=0.3, linestyles="dotted"))
    _draw_points(axes, layout, solutions, span, (low, high), theme)
    labels = [((tick - low) / (high - low), f"{tick:g}") for tick in ticks]
    draw_value_ticks(axes, layout, labels, _quantity(solutions), theme)
    draw_time_ticks(axes, layout, span, theme)
    names = [name for name in solutions.polarizations if name]
    draw_legend(axes, layout.left, layout.top + 0.14, names, theme.series, theme)
    return figure


def _quantity(solutions: Solutions | Waterfalls) -> str:
    return f"{solutions.kind} ({solutions.unit})" if solutions.unit else solutions.kind


def _value_range(solutions: Solutions) -> tuple[float, float, list[float]]:
    if solutions.is_angle:
        return -185.0, 185.0, [-180.0, 0.0, 180.0]
    finite = solutions.values[np.isfinite(solutions.values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    margin = max(0.15 * (high - low), 0.02 * max(abs(low), abs(high)), 1e-12)
    low, high = float(low - margin), float(high + margin)
    return low, high, [float(t) for t in MaxNLocator(3).tick_values(low, high) if low <= t <= high]


def _draw_points(
    axes: Axes, layout: Layout, solutions: Solutions, span: Span, limits: tuple[float, float], theme: Theme
) -> None:
    """Draw solutions, those out of range as arrow heads, and where there are none a tick at the bottom."""
    stride = max(1, len(solutions.times) // MAX_POINTS)
    times, values = solutions.times[::stride], solutions.values[::stride]
    level = (values - limits[0]) / (limits[1] - limits[0])
    size = 1.4 if len(times) > 150 else 2.2 if len(times) > 40 else 3.2
    x = layout.corners[:, 0] + layout.width * part_of(span, times)[:, None]
    bottom = np.broadcast_to(layout.corners[:, 1], x.shape)
    for p in range(values.shape[2]):
        height = level[:, :, p]
        y = bottom + layout.height * np.clip(height, 0.03, 0.97)
        # Later polarisations are drawn smaller, so that equal values show both.
        style = {"mew": 0, "color": theme.series[p % len(theme.series)], "alpha": 0.85}
        for marker, chosen, scale in (
            ("o", (height >= 0) & (height <= 1), 1.0),
            ("^", height > 1, 1.5),
            ("v", height < 0, 1.5),
        ):
            axes.plot(x[chosen], y[chosen], marker, ms=size * scale * (1 - 0.15 * p), **style)
    lost = ~np.isfinite(values).all(axis=2)
    lost &= np.isfinite(values).any(axis=(0, 2))[None, :]  # panels without any are marked as such
    lost &= ~_in_gaps(times, span)[:, None]
    ticks = [[(a, b), (a, b + 0.08 * layout.height)] for a, b in zip(x[lost], bottom[lost], strict=True)]
    axes.add_collection(LineCollection(ticks, colors=theme.missing, linewidths=0.9))


def _in_gaps(times: np.ndarray, span: Span) -> np.ndarray:
    """Tell which times lie in a gap of the data, (n_times,) bool."""
    inside = np.zeros(len(times), bool)
    for start, end in span.gaps:
        inside |= (times > start) & (times < end)
    return inside


# ---- against time and frequency -------------------------------------------------------------------------


def draw_waterfalls(waterfalls: Waterfalls, span: Span) -> Picture:
    """Draw solutions against time and frequency, a small panel for each station, polarizations above each other."""
    return in_both(_waterfall_figure(waterfalls, span, LIGHT), _MAPS[waterfalls.is_angle])


def _waterfall_figure(waterfalls: Waterfalls, span: Span, theme: Theme) -> Figure:
    n = len(waterfalls.polarizations)
    layout = Layout.of(len(waterfalls.stations), stretch=1.0 if n <= 2 else 1.6)
    figure = new_figure(layout.page, theme)
    axes = page_axes(figure)
    low, high = _colour_range(waterfalls)
    draw_frames(axes, layout, span, theme)
    _draw_images(axes, layout, waterfalls, span, (low, high), theme)
    draw_gaps(axes, layout, span, theme)  # over the images: a solution may reach into a gap
    draw_edges(axes, layout, span, theme, seam=theme.page, width=PIXEL)
    draw_titles(axes, layout, waterfalls.stations, waterfalls.without, theme)
    names = [((n - p - 0.5) / n, name) for p, name in enumerate(waterfalls.polarizations)]
    first, last = waterfalls.frequencies[[0, -1]] / 1e6
    draw_value_ticks(axes, layout, names, f"frequency upwards, {first:.2f} to {last:.2f} MHz", theme)
    draw_time_ticks(axes, layout, span, theme)
    _draw_colour_bar(axes, layout, waterfalls, (low, high), theme)
    return figure


def _colour_range(waterfalls: Waterfalls) -> tuple[float, float]:
    if waterfalls.is_angle:
        return -180.0, 180.0
    finite = waterfalls.values[np.isfinite(waterfalls.values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    return float(low), float(high if high > low else low + max(abs(low) * 0.01, 1e-12))


def _draw_images(
    axes: Axes, layout: Layout, waterfalls: Waterfalls, span: Span, limits: tuple[float, float], theme: Theme
) -> None:
    """Put solutions into the panels: columns are intervals on an even grid, gaps have their own colour.

    All panels are one image with uneven columns and rows: those between the panels are transparent.
    """
    values, half = waterfalls.values, 0.5 * waterfalls.interval_s
    column = np.rint((waterfalls.times - waterfalls.times[0]) / waterfalls.interval_s).astype(int)
    n_columns, n_polarizations = column[-1] + 1, values.shape[3]
    n_rows = n_polarizations * values.shape[1]
    scaled = np.clip((values - limits[0]) / (limits[1] - limits[0]), 0, 1)
    colours = _MAPS[waterfalls.is_angle](np.where(np.isfinite(scaled), scaled, 0))
    colours[~np.isfinite(values)] = to_rgba(FLAGGED)
    n_down = -(-layout.n // layout.columns)
    page = np.zeros((n_down, n_rows + 1, layout.columns, n_columns + 1, 4))
    separators = []
    for station, (x, y) in enumerate(layout.corners):
        if not np.isfinite(values[:, :, station]).any():
            continue
        down, across = divmod(station, layout.columns)
        image = page[n_down - 1 - down, :-1, across, :-1]
        image[:] = to_rgba(theme.gap)
        # Rows from below: last polarization under the others, low frequencies under high ones.
        image[:, column] = colours[:, :, station, ::-1].transpose(2, 1, 0, 3).reshape(n_rows, -1, 4)
        levels = y + layout.height * np.arange(1, n_polarizations) / n_polarizations
        separators += [[(x, level), (x + layout.width, level)] for level in levels]
    ends = part_of(span, np.array([waterfalls.times[0] - half, waterfalls.times[-1] + half]))
    places = layout.width * np.linspace(*np.clip(ends, 0, 1), n_columns + 1)
    x = (layout.corners[: layout.columns, 0, None] + places).ravel()
    y = (layout.corners[:: layout.columns, 1][::-1, None] + np.linspace(0, layout.height, n_rows + 1)).ravel()
    page = np.rint(255 * page).astype(np.uint8).reshape(len(y), len(x), 4)[:-1, :-1]
    axes.add_image(PcolorImage(axes, x, y, page))
    axes.add_collection(LineCollection(separators, colors=theme.page, linewidths=2 * PIXEL))


def _draw_colour_bar(
    axes: Axes, layout: Layout, waterfalls: Waterfalls, limits: tuple[float, float], theme: Theme
) -> None:
    """Draw the colour bar into the line above the panels, and what the other colours mean."""
    y, left, length = layout.top + 0.14, layout.left, 2.0
    ramp = _MAPS[waterfalls.is_angle](np.linspace(0, 1, 256))[None, :, :3]
    style = {"fontsize": 9, "color": theme.text, "va": "center"}
    low, high = (f"{limit:.3g}" for limit in limits)
    axes.text(left, y, f"{_quantity(waterfalls)}  {low}", **style)
    left += 0.08 + 0.066 * len(f"{_quantity(waterfalls)}  {low}")
    axes.imshow(ramp, extent=(left, left + length, y - 0.07, y + 0.07), aspect="auto", interpolation="nearest")
    axes.text(left + length + 0.08, y, high, **style)
    names, colours = ["flagged", "no data"], [FLAGGED, theme.gap]
    draw_legend(axes, left + length + 0.8, y, names, colours, theme)
    axes.set(xlim=(0, WIDTH), ylim=(0, layout.page))
