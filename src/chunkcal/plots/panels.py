"""Panels of all stations on one page.

All panels are drawn into one set of axes, in inches of the page: sixty sets of axes take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

from chunkcal.plots.reading import Span
from chunkcal.plots.style import PIXEL, WIDTH, Theme, draw_labels, time_unit

MAX_SEAMS = 60  # lines per panel; more would hide the solutions and are left out


@dataclass(frozen=True)
class Layout:
    """Panels of the page, inches; (x, y) of a panel is its lower left corner."""

    n: int
    columns: int
    width: float
    height: float
    top: float

    left = 0.62
    gap = (0.14, 0.26)
    bottom = 0.5

    @classmethod
    def of(cls, n: int, stretch: float = 1.0) -> Layout:
        """Lay out `n` panels, `stretch` times as high as usual."""
        columns = min(n, 4 if n <= 12 else 6 if n <= 36 else 8)
        width = (WIDTH - cls.left - 0.1 - (columns - 1) * cls.gap[0]) / columns
        height = stretch * {4: 1.15, 6: 0.95, 8: 0.72}.get(columns, 1.3)
        rows = -(-n // columns)
        return cls(n, columns, width, height, cls.bottom + rows * (height + cls.gap[1]))

    @property
    def page(self) -> float:
        """Height of the page with a line for the legend, inches."""
        return self.top + 0.3

    @property
    def corners(self) -> np.ndarray:
        """Lower left corners of all panels, (n, 2), inches."""
        return np.array([self.corner(i) for i in range(self.n)])

    def corner(self, i: int) -> tuple[float, float]:
        """Lower left corner of one panel, inches."""
        row, column = divmod(i, self.columns)
        x = self.left + column * (self.width + self.gap[0])
        return x, self.top - (row + 1) * (self.height + self.gap[1])


def part_of(span: Span, times: np.ndarray | float) -> np.ndarray:
    """Place times on the time axis: 0 at its start, 1 at its end."""
    return (np.asarray(times) - span.start) / max(span.end - span.start, 1e-3)


def draw_frames(axes: Axes, layout: Layout, span: Span, theme: Theme) -> None:
    """Draw the ground of the panels, and gaps in the data."""
    axes.add_collection(PolyCollection(_boxes(layout, 0.0, 1.0), facecolor=theme.panel, edgecolor="none", zorder=0))
    draw_gaps(axes, layout, span, theme)


def draw_gaps(axes: Axes, layout: Layout, span: Span, theme: Theme) -> None:
    """Fill the times without data."""
    gaps = [box for gap in span.gaps for box in _boxes(layout, *np.clip(part_of(span, gap), 0, 1))]
    axes.add_collection(PolyCollection(gaps, facecolor=theme.gap, edgecolor="none"))


def draw_edges(axes: Axes, layout: Layout, span: Span, theme: Theme, seam: str, width: float = 0.35) -> None:
    """Draw the borders of the panels, and thin lines where chunks meet."""
    shown = span.seams if len(span.seams) <= MAX_SEAMS else ()
    if shown:
        places = layout.corners[:, :1] + layout.width * part_of(span, np.array(shown))
        ends = layout.corners[:, None, 1, None] + (0, layout.height)
        lines = np.stack(np.broadcast_arrays(places[..., None], ends), axis=-1)  # panel, seam, end, (x, y)
        codes = [Path.MOVETO, Path.LINETO] * len(shown)
        # One path for each panel: matplotlib takes 15 us for each path.
        seams = [Path(panel.reshape(-1, 2), codes) for panel in lines]
        axes.add_collection(PathCollection(seams, facecolor="none", edgecolor=seam, lw=width))
    axes.add_collection(PolyCollection(_boxes(layout, 0.0, 1.0), facecolor="none", edgecolor=theme.line, lw=PIXEL))


def _boxes(layout: Layout, start: float, end: float) -> list[list[tuple[float, float]]]:
    a, b, h = layout.width * start, layout.width * end, layout.height
    return [[(x + a, y), (x + b, y), (x + b, y + h), (x + a, y + h)] for x, y in layout.corners]


def draw_titles(axes: Axes, layout: Layout, names: Sequence[str], without: Sequence[str], theme: Theme) -> None:
    """Write the station above each panel, and say which have no solutions."""
    size = 8 if layout.columns <= 6 else 7
    above = [(x, y + layout.height + 0.04, name[:24]) for (x, y), name in zip(layout.corners, names, strict=True)]
    empty = [name in without for name in names]
    draw_labels(axes, [label for label, is_empty in zip(above, empty, strict=True) if not is_empty], size, theme.text)
    draw_labels(axes, [label for label, is_empty in zip(above, empty, strict=True) if is_empty], size, theme.missing)
    middles = layout.corners[empty] + (layout.width / 2, layout.height / 2)
    draw_labels(axes, [(x, y, "no solutions") for x, y in middles], size, theme.missing, ha="center", va="center")


def draw_value_ticks(axes: Axes, layout: Layout, labels: Sequence[tuple[float, str]], name: str, theme: Theme) -> None:
    """Label the vertical axis of the leftmost panels: places from 0 to 1, and the quantity."""
    left = layout.corners[:: layout.columns]
    ticks = [(x - 0.06, y + layout.height * place, label) for x, y in left for place, label in labels]
    draw_labels(axes, ticks, 7, theme.muted, ha="right", va="center")
    axes.text(0.13, layout.top / 2, name, rotation=90, ha="center", va="center", fontsize=9, color=theme.text)


def draw_time_ticks(axes: Axes, layout: Layout, span: Span, theme: Theme) -> None:
    """Label the time axis of the lowest panels."""
    length = max(span.end - span.start, 1e-3)
    factor, unit = time_unit(length)
    ticks = MaxNLocator(4 if layout.columns <= 6 else 3).tick_values(0, length / factor)
    ticks = ticks[(ticks >= 0) & (ticks * factor <= length)]
    parts = ticks * factor / length
    sides = ["left" if part < 0.05 else "right" if part > 0.95 else "center" for part in parts]  # clear of the next's
    lowest = layout.corners[-layout.columns :]
    places = [
        (x + layout.width * part, y - 0.05, f"{tick:g}")
        for x, y in lowest
        for tick, part in zip(ticks, parts, strict=True)
    ]
    draw_labels(axes, places, 7, theme.muted, ha=sides * len(lowest), va="top")
    axes.text(WIDTH / 2, 0.1, f"time since start ({unit})", ha="center", va="bottom", fontsize=9, color=theme.text)
