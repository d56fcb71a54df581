"""Pictures of the report: solutions of all stations on one page, and who ran what when.

Each picture is drawn for light and for dark pages. Only matplotlib's objects are used, no state of pyplot, and the
same data give the same bytes.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from chunkcal.h5parm import Soltab

_DPI = 150  # with a page of 11 inch: sharp at 1100 CSS pixels on most screens
_WIDTH = 11.0
_BLOCK_VALUES = 1 << 22  # of a solution table in memory at a time
MAX_POINTS = 1000  # in time, per panel: more than its pixels
MAX_SEAMS = 60  # lines per panel; more would hide the solutions and are left out
_ANGLES = {"phase", "scalarphase", "commonscalarphase", "rotation", "rotationangle", "commonrotationangle"}
_UNITS = {"tec": "TECU", "clock": "s", "delay": "s", "rotationmeasure": "rad/m²"}


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
STAGES = ("preprocess", "calibrate", "apply", "fit")


@dataclass(frozen=True)
class Picture:
    """A picture in both themes, as PNG; sizes in CSS pixels."""

    light: bytes
    dark: bytes
    width: int
    height: int


@dataclass(frozen=True)
class Solutions:
    """Solutions of one table and direction, ready to be drawn.

    Attributes
    ----------
    times : (n_times,) float64
        Centres of solution intervals, MJD s.
    values : (n_times, n_stations, n_polarizations) float64
        NaN where there is no solution or it is flagged. Angles in degrees.
    note : str
        Which frequency, and what angles are relative to.
    """

    kind: str
    unit: str
    times: np.ndarray
    values: np.ndarray
    stations: tuple[str, ...]
    polarizations: tuple[str, ...]
    note: str

    @property
    def is_angle(self) -> bool:
        """Whether values wrap at 360 degrees."""
        return self.kind in _ANGLES

    @property
    def without(self) -> tuple[str, ...]:
        """Stations that have no solution at all."""
        finite = np.isfinite(self.values).any(axis=(0, 2))
        return tuple(name for name, found in zip(self.stations, finite, strict=True) if not found)


@dataclass(frozen=True)
class Span:
    """What the time axis shows, MJD s: start and end of the observation, chunk seams, gaps (start, end)."""

    start: float
    end: float
    seams: tuple[float, ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()


# ---- reading --------------------------------------------------------------------------------------------


def read_solutions(path: str | os.PathLike, solset: str, soltab: Soltab, direction: int = 0) -> Solutions:
    """Read the solutions of one direction.

    Angles are those of one frequency, because they cannot be averaged over a band; other kinds are the median over
    frequencies. Phases are relative to the first station that has solutions; those off the diagonal of a Jones matrix
    relative to the diagonal element of the same column, so that J stays J times a diagonal matrix.
    """
    with h5py.File(path, "r", locking=False) as file:
        group = file[solset][soltab.name]
        frequencies = group["freq"][:] if "freq" in soltab.axes else np.array([np.nan])
        times = group["time"][:] if "time" in soltab.axes else np.zeros(1)
        angle, pick, note = soltab.kind in _ANGLES, None, ""
        if angle and len(frequencies) > 1:
            pick = _best_frequency(group, soltab, direction)
            note = f"at {frequencies[pick] / 1e6:.3f} MHz, one of {len(frequencies)} frequencies"
        elif len(frequencies) > 1:
            note = f"median over {len(frequencies)} frequencies"
        elif np.isfinite(frequencies[0]) and frequencies[0] > 0:
            note = f"at {frequencies[0] / 1e6:.3f} MHz"
        rest = max(1, int(np.prod(soltab.shape)) // max(1, len(times)))
        step = max(1, _BLOCK_VALUES // rest)
        blocks = [
            _median(_block(group, soltab, direction, slice(start, start + step), pick))
            for start in range(0, len(times), step)
        ]
    values = np.concatenate(blocks) if blocks else np.empty((0, soltab.length("ant"), soltab.length("pol")))
    polarizations = soltab.polarizations or ("",)
    stations = soltab.antennas or ("all stations",)
    if angle:
        if soltab.kind.endswith("phase"):
            values, reference = _referenced(values, polarizations)
            if reference is not None:
                note = ", ".join(filter(None, (note, f"relative to {stations[reference]}")))
        values = np.degrees((values + np.pi) % (2 * np.pi) - np.pi)
    unit = "degrees" if angle else _UNITS.get(soltab.kind, "")
    return Solutions(soltab.kind, unit, times, values, stations, polarizations, note)


def _block(group: h5py.Group, soltab: Soltab, direction: int, times: slice, pick: int | None) -> np.ndarray:
    """Read solutions as (time, freq, ant, pol) float64, NaN where weight is 0."""
    chosen = {"time": times, "freq": slice(None) if pick is None else slice(pick, pick + 1)}
    chosen |= {"ant": slice(None), "pol": slice(None), "dir": direction}
    key = tuple(chosen.get(axis, 0) for axis in soltab.axes)
    kept = [axis for axis in soltab.axes if axis in ("time", "freq", "ant", "pol")]
    values = group["val"][key].astype(float)
    values[(group["weight"][key] == 0) | ~np.isfinite(values)] = np.nan
    wanted = [axis for axis in ("time", "freq", "ant", "pol") if axis in kept]
    values = values.transpose([kept.index(axis) for axis in wanted])
    for i, axis in enumerate(("time", "freq", "ant", "pol")):
        if axis not in kept:
            values = np.expand_dims(values, i)
    return values


def _best_frequency(group: h5py.Group, soltab: Soltab, direction: int) -> int:
    """Find the frequency nearest to the middle among those with (nearly) the most solutions, from some of the times."""
    n_times, n = soltab.length("time"), soltab.length("freq")
    sample = _block(group, soltab, direction, slice(None, None, max(1, n_times // 30)), None)
    found = np.isfinite(sample).sum(axis=(0, 2, 3))
    good = np.flatnonzero(found >= 0.95 * found.max())
    return int(good[np.argmin(np.abs(good - (n - 1) / 2))])


def _median(values: np.ndarray) -> np.ndarray:
    if values.shape[1] == 1:
        return values[:, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all NaN: so is the median
        return np.nanmedian(values, axis=1)


def _referenced(values: np.ndarray, polarizations: Sequence[str]) -> tuple[np.ndarray, int | None]:
    finite = np.isfinite(values).mean(axis=(0, 2)) if values.size else np.zeros(values.shape[1])
    if not finite.any():
        return values, None
    reference = int(np.argmax(finite >= 0.5 * finite.max()))
    columns = [0, 3, 0, 3] if len(polarizations) == 4 else range(values.shape[2])  # XX XY YX YY
    return values - values[:, reference, :][:, None, list(columns)], reference


# ---- drawing --------------------------------------------------------------------------------------------


def draw_solutions(solutions: Solutions, span: Span) -> Picture:
    """Draw solutions against time, a small panel for each station.

    All panels are drawn into one set of axes, in inches of the page: sixty sets of axes take seconds.
    """
    return _in_both(lambda theme: _solution_figure(solutions, span, theme))


def draw_gantt(tasks: Sequence[tuple[str, str, float, float]], pauses: Sequence[tuple[float, float]] = ()) -> Picture:
    """Draw who ran what when.

    Parameters
    ----------
    tasks
        (slot, stage, start, end) of each DP3 run, seconds since the start of the run without its pauses.
    pauses
        (when, how long) the run was interrupted, s.
    """
    return _in_both(lambda theme: _gantt_figure(tasks, pauses, theme))


def _in_both(draw) -> Picture:
    figures = [draw(theme) for theme in (LIGHT, DARK)]
    width, height = (round(100 * size) for size in figures[0].get_size_inches())
    light, dark = map(_png, figures)
    return Picture(light, dark, width, height)


def _png(figure: Figure) -> bytes:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    stream = io.BytesIO()
    # Few colours are in use; a palette makes the page a third of the size.
    image.quantize(96, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _figure(height: float, theme: Theme) -> Figure:
    return Figure((_WIDTH, height), dpi=_DPI, facecolor=theme.page)


@dataclass(frozen=True)
class _Layout:
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
    def of(cls, n: int) -> _Layout:
        columns = min(n, 4 if n <= 12 else 6 if n <= 36 else 8)
        width = (_WIDTH - cls.left - 0.1 - (columns - 1) * cls.gap[0]) / columns
        height = {4: 1.15, 6: 0.95, 8: 0.72}.get(columns, 1.3)
        rows = -(-n // columns)
        return cls(n, columns, width, height, cls.bottom + rows * (height + cls.gap[1]))

    def corner(self, i: int) -> tuple[float, float]:
        row, column = divmod(i, self.columns)
        x = self.left + column * (self.width + self.gap[0])
        return x, self.top - (row + 1) * (self.height + self.gap[1])


def _solution_figure(solutions: Solutions, span: Span, theme: Theme) -> Figure:
    layout = _Layout.of(len(solutions.stations))
    figure = _figure(layout.top + 0.3, theme)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, layout.top + 0.3))
    axes.axis("off")
    low, high, ticks = _value_range(solutions)
    length = max(span.end - span.start, 1e-3)
    factor, unit = (3600.0, "h") if length > 3 * 3600 else (60.0, "min") if length > 180 else (1.0, "s")
    time_ticks = [t for t in MaxNLocator(4 if layout.columns <= 6 else 3).tick_values(0, length / factor)]
    time_ticks = [t for t in time_ticks if 0 <= t * factor <= length]
    corners = np.array([layout.corner(i) for i in range(layout.n)])
    _draw_frames(axes, corners, layout, solutions, span, theme)
    _draw_points(axes, corners, layout, solutions, span, (low, high), theme)
    style = {"fontsize": 7, "color": theme.muted}
    for i, (x, y) in enumerate(corners):
        if i % layout.columns == 0:
            for tick in ticks:
                place = y + layout.height * (tick - low) / (high - low)
                axes.text(x - 0.06, place, f"{tick:g}", ha="right", va="center", **style)
        if i + layout.columns >= layout.n:
            for tick in time_ticks:
                part = tick * factor / length
                side = "left" if part < 0.05 else "right" if part > 0.95 else "center"  # clear of the next panel's
                axes.text(x + layout.width * part, y - 0.05, f"{tick:g}", ha=side, va="top", **style)
    quantity = f"{solutions.kind} ({solutions.unit})" if solutions.unit else solutions.kind
    axes.text(0.13, layout.top / 2, quantity, rotation=90, ha="center", va="center", fontsize=9, color=theme.text)
    axes.text(_WIDTH / 2, 0.1, f"time since start ({unit})", ha="center", va="bottom", fontsize=9, color=theme.text)
    _draw_legend(axes, [name for name in solutions.polarizations if name], theme.series, layout.top + 0.14, theme)
    return figure


def _value_range(solutions: Solutions) -> tuple[float, float, list[float]]:
    if solutions.is_angle:
        return -185.0, 185.0, [-180.0, 0.0, 180.0]
    finite = solutions.values[np.isfinite(solutions.values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    margin = max(0.15 * (high - low), 0.02 * max(abs(low), abs(high)), 1e-12)
    low, high = float(low - margin), float(high + margin)
    return low, high, [float(t) for t in MaxNLocator(3).tick_values(low, high) if low <= t <= high]


def _draw_frames(
    axes: Axes, corners: np.ndarray, layout: _Layout, solutions: Solutions, span: Span, theme: Theme
) -> None:
    """Draw panels with their names, gaps and chunk seams."""
    w, h = layout.width, layout.height
    length = max(span.end - span.start, 1e-3)

    def boxes(start: float, end: float) -> list[list[tuple[float, float]]]:
        a, b = (w * min(1.0, max(0.0, (t - span.start) / length)) for t in (start, end))
        return [[(x + a, y), (x + b, y), (x + b, y + h), (x + a, y + h)] for x, y in corners]

    axes.add_collection(PolyCollection(boxes(span.start, span.end), facecolor=theme.panel, edgecolor="none"))
    gaps = [box for gap in span.gaps for box in boxes(*gap)]
    axes.add_collection(PolyCollection(gaps, facecolor=theme.gap, edgecolor="none"))
    seams = [
        [(x + w * (t - span.start) / length, y), (x + w * (t - span.start) / length, y + h)]
        for t in (span.seams if len(span.seams) <= MAX_SEAMS else ())
        for x, y in corners
    ]
    axes.add_collection(LineCollection(seams, colors=theme.line, linewidths=0.35))
    axes.add_collection(PolyCollection(boxes(span.start, span.end), facecolor="none", edgecolor=theme.line, lw=0.5))
    if solutions.is_angle:
        zero = [[(x, y + h / 2), (x + w, y + h / 2)] for x, y in corners]
        axes.add_collection(LineCollection(zero, colors=theme.line, linewidths=0.3, linestyles="dotted"))
    without, size = set(solutions.without), 8 if layout.columns <= 6 else 7
    for (x, y), name in zip(corners, solutions.stations, strict=True):
        empty = name in without
        axes.text(
            x, y + h + 0.04, name[:24], fontsize=size, color=theme.missing if empty else theme.text, parse_math=False
        )
        if empty:
            axes.text(
                x + w / 2, y + h / 2, "no solutions", fontsize=size, color=theme.missing, ha="center", va="center"
            )


def _draw_points(
    axes: Axes,
    corners: np.ndarray,
    layout: _Layout,
    solutions: Solutions,
    span: Span,
    limits: tuple[float, float],
    theme: Theme,
) -> None:
    """Draw solutions, those out of range as arrow heads, and where there are none a tick at the bottom."""
    stride = max(1, len(solutions.times) // MAX_POINTS)
    times, values = solutions.times[::stride], solutions.values[::stride]
    x = layout.width * (times - span.start) / max(span.end - span.start, 1e-3)
    level = (values - limits[0]) / (limits[1] - limits[0])
    size = 1.4 if len(times) > 150 else 2.2 if len(times) > 40 else 3.2
    page_x = corners[:, 0][None, :] + x[:, None]
    for p in range(values.shape[2]):
        height = level[:, :, p]
        colour = theme.series[p % len(theme.series)]
        # Later polarisations are drawn smaller, so that equal values show both.
        for marker, chosen, scale in (
            ("o", (height >= 0) & (height <= 1), 1.0),
            ("^", height > 1, 1.5),
            ("v", height < 0, 1.5),
        ):
            place = corners[:, 1][None, :] + layout.height * np.clip(height, 0.03, 0.97)
            axes.plot(
                page_x[chosen], place[chosen], marker, ms=size * scale * (1 - 0.15 * p), mew=0, color=colour, alpha=0.85
            )
    lost = ~np.isfinite(values).all(axis=2)
    lost &= np.isfinite(values).any(axis=(0, 2))[None, :]  # panels without any are marked as such
    for start, end in span.gaps:
        lost[(times > start) & (times < end)] = False
    ticks = [[(a, b), (a, b + 0.08 * layout.height)] for a, b in zip(page_x[lost], _rows(corners, lost), strict=True)]
    axes.add_collection(LineCollection(ticks, colors=theme.missing, linewidths=0.9))


def _rows(corners: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    return np.broadcast_to(corners[:, 1], chosen.shape)[chosen]


def _draw_legend(axes: Axes, names: Sequence[str], colours: Sequence[str], y: float, theme: Theme) -> None:
    x = _Layout.left
    for name, colour in zip(names, colours, strict=False):
        axes.plot([x + 0.05], [y], "o", ms=5, mew=0, color=colour)
        axes.text(x + 0.14, y, name, fontsize=9, va="center", color=theme.text, parse_math=False)
        x += 0.32 + 0.085 * len(name)


def _gantt_figure(
    tasks: Sequence[tuple[str, str, float, float]], pauses: Sequence[tuple[float, float]], theme: Theme
) -> Figure:
    slots = sorted({task[0] for task in tasks}, key=lambda name: (len(name), name))
    row = 0.24 if len(slots) <= 32 else 0.12
    body = row * len(slots)
    figure = _figure(body + 0.95, theme)
    height = body + 0.95
    margin = min(2.5, 0.25 + 0.075 * max(map(len, slots), default=1))
    box = (margin / _WIDTH, 0.5 / height, 1 - (margin + 0.15) / _WIDTH, body / height)
    end = max((task[3] for task in tasks), default=1.0) or 1.0
    factor, unit = (3600.0, "h") if end > 2 * 3600 else (60.0, "min") if end > 300 else (1.0, "s")
    axes = figure.add_axes(box, xlim=(0, end / factor), ylim=(len(slots), 0), facecolor=theme.panel)
    place = {name: i for i, name in enumerate(slots)}
    for stage, colour in zip(STAGES, theme.series, strict=True):
        bars = [
            [(s / factor, place[slot] + 0.12), (e / factor, place[slot] + 0.12)]
            + [(e / factor, place[slot] + 0.88), (s / factor, place[slot] + 0.88)]
            for slot, name, s, e in tasks
            if name == stage
        ]
        # A thin edge of the panel's colour keeps neighbours apart, as long as it does not hide them.
        edge = theme.panel if len(tasks) < 400 * len(slots) else "none"
        axes.add_collection(PolyCollection(bars, facecolor=colour, edgecolor=edge, linewidth=0.4))
    for when, length in pauses:
        axes.axvline(when / factor, color=theme.text, lw=0.8, ls="--")
        axes.text(when / factor, -0.1, f"pause {length / 60:.0f} min", fontsize=7, color=theme.muted, ha="center")
    axes.set_yticks(np.arange(len(slots)) + 0.5, slots, fontsize=8 if row > 0.2 else 6, parse_math=False)
    axes.tick_params(colors=theme.muted, labelsize=8 if row > 0.2 else 6, length=2)
    axes.set_xlabel(f"time since the first DP3 run ({unit})", fontsize=9, color=theme.text)
    axes.spines[:].set_color(theme.line)
    legend = figure.add_axes((0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(0, height))
    legend.axis("off")
    used = {task[1] for task in tasks}
    pairs = [(name, colour) for name, colour in zip(STAGES, theme.series, strict=True) if name in used]
    _draw_legend(legend, [p[0] for p in pairs], [p[1] for p in pairs], height - 0.16, theme)
    return figure
