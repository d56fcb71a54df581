"""Images of the sky with coordinates, beam and colour bar."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import astropy.io.fits
import numpy as np
from astropy.visualization.wcsaxes import WCSAxes
from astropy.wcs import WCS
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import AsinhNorm
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse

from chunkcal.plots.style import Picture, Theme, drawn_twice, new_figure

_WIDTH = 8.8  # inch; smaller than other pictures, because noise makes big files
_MAP = colormaps["inferno"].resampled(48)
_TITLES = {"before": "before calibration", "after": "after calibration", "dirty": "dirty", "clean": "cleaned"}

Panel = tuple[str, str | os.PathLike, Mapping[str, Any]]  # name, FITS file, what `image.measure` says of it


def draw_sky(panels: Sequence[Panel]) -> Picture:
    """Draw images side by side, two in a row, in one scale: that of the last, which is the best.

    Parameters
    ----------
    panels
        ``{before,after}-{dirty,clean}.fits``, the file, and its measures.
    """
    images = [(name, *_read(path), measures) for name, path, measures in panels]
    return drawn_twice(lambda theme: _figure(images, theme), _MAP)


def _read(path: str | os.PathLike) -> tuple[np.ndarray, WCS]:
    with astropy.io.fits.open(path) as file:
        return file[0].data.squeeze(), WCS(file[0].header, fix=False).celestial


def _figure(images: Sequence[tuple[str, np.ndarray, WCS, Mapping[str, Any]]], theme: Theme) -> Figure:
    rows = -(-len(images) // 2)
    size, left, gap, bottom, head = 3.35, 0.85, 0.25, 0.55, 0.42
    height = bottom + rows * (size + head)
    figure = new_figure(height, theme, _WIDTH)
    best = images[-1][3]
    noise = max(best["noise_jy"], 1e-9 * abs(best["peak_jy"]), 1e-30)
    norm = AsinhNorm(3 * noise, vmin=-3 * noise, vmax=max(best["peak_jy"], 5 * noise))
    for i, (name, image, wcs, measures) in enumerate(images):
        row, column = divmod(i, 2)
        place = (left + column * (size + gap), height - (row + 1) * (size + head))
        box = (place[0] / _WIDTH, place[1] / height, size / _WIDTH, size / height)
        axes = figure.add_axes(WCSAxes(figure, box, wcs=wcs))
        axes.imshow(image, origin="lower", cmap=_MAP, norm=norm, interpolation="antialiased")
        _draw_beam(axes, wcs, image.shape, measures, theme)
        _label(axes, name, measures, theme, first=column == 0, last=row == rows - 1)
    bar = figure.add_axes(((left + 2 * size + gap + 0.15) / _WIDTH, bottom / height, 0.14 / _WIDTH, 1 - 0.97 / height))
    colours = figure.colorbar(ScalarMappable(norm, _MAP), cax=bar)
    ticks = [0, *(n * noise for n in (10, 100, 1000, 10000) if n * noise < 0.6 * norm.vmax), norm.vmax]
    colours.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    colours.ax.minorticks_off()
    colours.ax.tick_params(colors=theme.muted, labelsize=8, length=2)
    colours.set_label("Jy/beam", fontsize=9, color=theme.text)
    colours.outline.set_edgecolor(theme.line)
    return figure


def _draw_beam(axes: Axes, wcs: WCS, shape: tuple[int, ...], measures: Mapping[str, Any], theme: Theme) -> None:
    """Draw the restoring beam into the lower left corner; enlarged, with the factor, if it is too small to see."""
    pixel = np.sqrt(np.abs(np.linalg.det(wcs.pixel_scale_matrix))) * 3600
    major, minor = (length / pixel for length in measures["beam_arcsec"])
    if not major > 0:
        return
    factor = max(1, int(np.ceil(0.04 * shape[1] / major)))
    corner = 0.02 * shape[1] + 0.6 * factor * major
    # Angles go north through east, and east is to the left: counter-clockwise from upwards.
    axes.add_patch(
        Ellipse(
            (corner, corner),
            factor * minor,
            factor * major,
            angle=measures["beam_angle_deg"],
            fc="none",
            ec="white",
            lw=1.0,
        )
    )
    text = "beam" if factor == 1 else f"beam × {factor}"
    axes.text(corner + 0.7 * factor * major, corner, text, color="white", fontsize=7, va="center")


def _label(axes: WCSAxes, name: str, measures: Mapping[str, Any], theme: Theme, first: bool, last: bool) -> None:
    when, _, kind = name.removesuffix(".fits").partition("-")
    values = f"peak {measures['peak_jy']:.3g}, noise {measures['noise_jy']:.2g} Jy/beam"
    if measures["dynamic_range"]:
        values += f", range {measures['dynamic_range']:.0f}"
    title = f"{_TITLES.get(when, when)}, {_TITLES.get(kind, kind)}"
    axes.set_title(f"{title}\n{values}", fontsize=8, color=theme.text, loc="left", pad=4, linespacing=1.3)
    for coordinate, label, shown, side in zip(
        axes.coords, ("right ascension", "declination"), (last, first), ("b", "l"), strict=True
    ):
        coordinate.set_ticklabel(color=theme.muted, size=7, exclude_overlapping=True)
        coordinate.set_ticklabel_position(side if shown else "")
        coordinate.set_axislabel(label if shown else "", color=theme.text, fontsize=8, minpad=0.5)
        coordinate.set_axislabel_position(side if shown else "")
        coordinate.set_ticks(number=4, color="white", size=3)
        coordinate.set_auto_axislabel(False)
    axes.coords.frame.set_color(theme.line)
