"""How every picture looks: two themes, one width, one way to make the PNG.

Each picture is there for light and for dark pages. Only matplotlib's objects are used, no state of pyplot, and the
same data give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D, Transform

from chunkcal.plots import palette as palettes

DPI = 150  # with a page of 11 inch: sharp at 1100 CSS pixels on most screens
WIDTH = 11.0  # inch
PIXEL = 72 / DPI  # points; lines on values that are whole pixels wide have no blurred edges
FLAGGED = "#ff2a2a"  # a colour that no map of ours has


@dataclass(frozen=True)
class Theme:
    """Colours of a picture; the series are told apart by people who do not see red and green."""

    page: str
    panel: str
    text: str
    muted: str
    line: str
    gap: str
    missing: str
    series: tuple[str, ...]


LIGHT = Theme(
    "#ffffff",
    "#f7f8fa",
    "#1c2330",
    "#5b6472",
    "#9aa3b0",
    "#dde1e8",
    "#c0392b",
    ("#0b62b8", "#d1690e", "#137a52", "#8e44ad"),
)
DARK = Theme(
    "#161b22",
    "#1d242d",
    "#e6eaf0",
    "#a3adba",
    "#667080",
    "#343d49",
    "#ff8a7a",
    ("#6cb2ff", "#ffab5c", "#5fd6a2", "#d49bf0"),
)


@dataclass(frozen=True)
class Picture:
    """A picture in both themes, as PNG; sizes in CSS pixels."""

    light: bytes
    dark: bytes
    width: int
    height: int


def in_both(figure: Figure, colour_map: Colormap | None = None) -> Picture:
    """Render a figure that was drawn with `LIGHT` in both themes; of a colour map of few levels, all are kept."""
    light, dark = pngs(figure, colour_map)
    return Picture(light, dark, *_css_size(figure))


def drawn_twice(draw: Callable[[Theme], Figure], colour_map: Colormap) -> Picture:
    """Draw a figure for each theme: one with white on the colours of its map, which is white on dark pages, too."""
    light, dark = draw(LIGHT), draw(DARK)
    return Picture(png(light, LIGHT, colour_map), png(dark, DARK, colour_map), *_css_size(light))


def _css_size(figure: Figure) -> tuple[int, int]:
    width, height = (round(100 * size) for size in figure.get_size_inches())
    return width, height


def pngs(figure: Figure, colour_map: Colormap | None = None) -> tuple[bytes, bytes]:
    """Render a figure that was drawn with `LIGHT` as two PNGs, for light and for dark pages."""
    levels = _levels(colour_map)
    series = colour_map is None
    indices, palette = palettes.to_palette(_rendered(figure), _named(LIGHT, series), levels)
    light = palettes.encode(indices, palette)
    return light, palettes.with_palette(light, palettes.in_other_colours(palette, _named(DARK, series), levels))


def png(figure: Figure, theme: Theme, colour_map: Colormap | None = None) -> bytes:
    """Render a figure as it was drawn."""
    return palettes.encode(*palettes.to_palette(_rendered(figure), _named(theme, False), _levels(colour_map)))


def _rendered(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def _named(theme: Theme, series: bool) -> np.ndarray:
    """Colours that mean something, (n, 3), of 255, in the same order for every theme.

    Those of series are left out where a picture has a colour map instead: some look much like one of its values.
    """
    ground = (theme.page, theme.panel, theme.gap, theme.line, theme.text, theme.muted)
    return _of_255([to_rgb(colour) for colour in (*ground, theme.missing, FLAGGED, *(theme.series if series else ()))])


def _levels(colour_map: Colormap | None) -> np.ndarray:
    """Colours of a colour map, (n, 3), of 255."""
    return _of_255(colour_map(np.arange(colour_map.N))[:, :3]) if colour_map else np.empty((0, 3), int)


def _of_255(colours: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    return np.rint(255 * np.asarray(colours)).astype(int)


def new_figure(height: float, theme: Theme, width: float = WIDTH) -> Figure:
    """Make an empty page, sizes in inches."""
    return Figure((width, height), dpi=DPI, facecolor=theme.page)


@lru_cache(maxsize=2000)
def _outline(text: str) -> Path:
    """Outline of a text of 1 point, in which a dollar sign is a dollar sign."""
    vertices, codes = text_to_path.get_text_path(FontProperties(), text)
    return Path(np.reshape(vertices, (-1, 2)) / text_to_path.FONT_SCALE, codes)


def draw_labels(
    axes: Axes,
    labels: Sequence[tuple[float, float, str]],
    size: float,
    colour: str,
    ha: str | Sequence[str] = "left",
    va: str = "baseline",
    rotation: float = 0,
    transform: Transform | None = None,
) -> None:
    """Write many short texts: (x, y, text), by default in the units of the axes.

    As outlines in one collection: a page of sixty stations has hundreds, of which the same are on all pages, and a
    `matplotlib.text.Text` takes 2 ms.
    """
    sides = [ha] * len(labels) if isinstance(ha, str) else ha
    middle = {"baseline": 0.0, "center": 0.365, "top": 0.73}[va]  # of the size: digits of DejaVu Sans are 0.73 high
    outlines = []
    for (_, _, text), side in zip(labels, sides, strict=True):
        outline = _outline(text)
        width = outline.vertices[:, 0].max(initial=0.0)
        shift = {"left": 0.0, "center": 0.5, "right": 1.0}[side] * width
        outlines.append(Path(outline.vertices - (shift, middle), outline.codes))
    places = [(x, y) for x, y, _ in labels]
    drawn = PathCollection(outlines, offsets=places, offset_transform=transform or axes.transData, color=colour, lw=0)
    drawn.set_transform(Affine2D().scale(size * DPI / 72).rotate_deg(rotation))
    drawn.set_clip_on(False)
    axes.add_collection(drawn, autolim=False)


def draw_legend(axes: Axes, x: float, y: float, names: Sequence[str], colours: Sequence[str], theme: Theme) -> None:
    """Draw the names of series beside their colours, in a row that begins at (x, y), in inches of the page."""
    for name, colour in zip(names, colours, strict=False):
        axes.plot([x + 0.05], [y], "o", ms=5, mew=0, color=colour)
        axes.text(x + 0.14, y, name, fontsize=9, va="center", color=theme.text, parse_math=False)
        x += 0.32 + 0.085 * len(name)


def page_axes(figure: Figure) -> Axes:
    """Cover a whole figure with invisible axes in inches."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return axes


def style_axes(axes: Axes, theme: Theme, fontsize: float = 8) -> None:
    """Give ordinary axes the colours of a theme."""
    axes.set_facecolor(theme.panel)
    axes.tick_params(colors=theme.muted, labelsize=fontsize, length=2)
    axes.spines[:].set(color=theme.line, linewidth=2 * PIXEL)


def time_unit(length: float, seconds: float = 180.0, minutes: float = 3 * 3600.0) -> tuple[float, str]:
    """Choose the unit of a time axis of `length` s: seconds and name of the unit."""
    return (3600.0, "h") if length > minutes else (60.0, "min") if length > seconds else (1.0, "s")
