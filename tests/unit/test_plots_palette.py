"""A page drawn for one theme gets the colours of the other as if it had been drawn for it."""

import io

import numpy as np
import pytest
from matplotlib import colormaps
from PIL import Image

from chunkcal.plots import DARK, LIGHT, solutions
from chunkcal.plots.palette import encode, in_other_colours, to_palette, with_palette
from chunkcal.plots.reading import Solutions, Span, Waterfalls
from chunkcal.plots.style import png, pngs

NAMED = np.array([[255, 255, 255], [0, 0, 0], [200, 0, 0]])
OTHER = np.array([[20, 20, 20], [240, 240, 240], [255, 120, 120]])


def page(*colours):
    return np.array([[(*colour, 255) for colour in colours]], np.uint8)


def test_named_colours_values_and_mixtures_are_told_apart():
    levels = np.array([[0, 0, 250], [250, 250, 0]])
    indices, palette = to_palette(page((255, 255, 255), (0, 0, 0), (0, 0, 250), (127, 127, 127)), NAMED, levels)
    assert palette[indices[0]].tolist() == [[255, 255, 255], [0, 0, 0], [0, 0, 250], [127, 127, 127]]
    dark = in_other_colours(palette, OTHER, levels)[indices[0]]
    assert dark.tolist() == [[20, 20, 20], [240, 240, 240], [0, 0, 250], [130, 130, 130]]


def test_an_edge_that_looks_like_a_value_is_none():
    levels = np.array([[120, 125, 130]])
    indices, palette = to_palette(page((127, 127, 127), (120, 125, 131)), NAMED, levels)
    assert palette[indices[0, 1]].tolist() == levels[0].tolist()
    assert in_other_colours(palette, OTHER, levels)[indices[0, 0]] == pytest.approx([130] * 3, abs=2)


def test_the_dark_page_is_a_png_of_the_same_pixels():
    indices, palette = to_palette(page((255, 255, 255), (0, 0, 0), (127, 127, 127)), NAMED, np.empty((0, 3), int))
    other = in_other_colours(palette, OTHER, np.empty((0, 3), int))
    image = Image.open(io.BytesIO(with_palette(encode(indices, palette), other)))
    image.verify()
    image = Image.open(io.BytesIO(with_palette(encode(indices, palette), other)))
    assert np.array_equal(np.asarray(image.convert("RGB")), other[indices])


def figures(theme):
    rng = np.random.default_rng(3)
    names, times = tuple(f"CS{i:03d}" for i in range(62)), 5.0 + 10 * np.arange(20)
    span = Span(0, 200, (50.0, 100.0, 150.0), ((60.0, 80.0),))
    points = Solutions("phase", "degrees", times, rng.uniform(-180, 180, (20, 62, 2)), names, ("XX", "YY"), "")
    for kind in ("phase", "amplitude"):
        values = np.cumsum(rng.normal(0, 20, (20, 8, 62, 2)), axis=0) % 360 - 180
        whole = Waterfalls(kind, "", times, 10.0, 1e8 + 1e5 * np.arange(8), values, names, ("XX", "YY"), "")
        yield solutions._waterfall_figure(whole, span, theme), solutions._MAPS[kind == "phase"]
    yield solutions._time_figure(points, span, theme), None


def test_looks_as_if_drawn_for_dark_pages():
    for (figure, colour_map), (other, _) in zip(figures(LIGHT), figures(DARK), strict=True):
        made, drawn = (
            np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).astype(int)
            for one in (pngs(figure, colour_map)[1], png(other, DARK, colour_map))
        )
        difference = np.abs(made - drawn).max(axis=2)
        assert difference.mean() < 2
        assert (difference > 60).mean() < 0.002  # a seam of one panel is 0.00004, those of all panels are 0.008


def test_a_map_of_colours_stays_as_it_is():
    levels = np.rint(255 * colormaps["cividis"].resampled(96)(np.arange(96))[:, :3]).astype(int)
    indices, palette = to_palette(page(*levels), NAMED, levels)
    assert (in_other_colours(palette, OTHER, levels)[indices[0]] == levels).all()
