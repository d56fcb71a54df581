"""How every picture looks: two themes, one width, one way to make the PNG.

Each picture is drawn for light and for dark pages. Only matplotlib's objects are used, no state of pyplot, and the
same data give the same bytes.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, to_rgb
from matplotlib.figure import Figure
from PIL import Image

DPI = 150  # with a page of 11 inch: sharp at 1100 CSS pixels on most screens
WIDTH = 11.0  # inch
_COLOURS = 96  # besides those that are kept; a palette makes the page a third of the size
FLAGGED = "#ff2a2a"  # a colour that no map of ours has
_NEAR = 6  # of 255


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


def in_both(draw: Callable[[Theme], Figure], colour_map: Colormap | None = None) -> Picture:
    """Draw a figure in both themes, side by side; if it uses a colour map of few levels, all of them are kept."""
    # A process forked from this one has the data and matplotlib already: two themes take little longer than one.
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    other = fork.Process(target=lambda: sender.send_bytes(png(draw(DARK), DARK, colour_map)))
    other.start()
    sender.close()
    figure = draw(LIGHT)
    light = png(figure, LIGHT, colour_map)
    try:
        dark = receiver.recv_bytes()
    except EOFError:  # killed, say for its memory: one after the other needs less
        dark = png(draw(DARK), DARK, colour_map)
    other.join()
    receiver.close()
    width, height = (round(100 * size) for size in figure.get_size_inches())
    return Picture(light, dark, width, height)


def png(figure: Figure, theme: Theme, colour_map: Colormap | None = None) -> bytes:
    """Render a figure as PNG with a palette, in which colours that mean something stay however little they are used."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    named = [FLAGGED, theme.page, theme.panel, theme.gap, theme.missing, *theme.series]
    named += [theme.text, theme.muted]
    levels = colour_map(np.arange(colour_map.N))[:, :3] if colour_map else np.empty((0, 3))
    kept = np.rint(255 * np.concatenate([[to_rgb(colour) for colour in named], levels])).astype(int)
    n_common = min(_COLOURS, 256 - len(kept))
    common = np.array(image.quantize(n_common, dither=Image.Dither.NONE).getpalette()).reshape(-1, 3)[:n_common]
    # A mean of many near-whites must not win over the page's white.
    distinct = np.abs(common[:, None] - kept).max(axis=2).min(axis=1) > _NEAR
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate([kept, common[distinct]]).ravel().tolist())
    stream = io.BytesIO()
    image.quantize(palette=palette, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def new_figure(height: float, theme: Theme, width: float = WIDTH) -> Figure:
    """Make an empty page, sizes in inches."""
    return Figure((width, height), dpi=DPI, facecolor=theme.page)


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
    axes.spines[:].set_color(theme.line)


def time_unit(length: float, seconds: float = 180.0, minutes: float = 3 * 3600.0) -> tuple[float, str]:
    """Choose the unit of a time axis of `length` s: seconds and name of the unit."""
    return (3600.0, "h") if length > minutes else (60.0, "min") if length > seconds else (1.0, "s")
