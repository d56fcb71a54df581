"""Pictures of solutions: all stations on a page, and what is flagged or missing can be told by its colour."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from chunkcal import plots
from chunkcal.plots.panels import Layout
from chunkcal.plots.solutions import _MAPS
from chunkcal.plots.style import FLAGGED


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def count(image, colour):
    """Count pixels of exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((image == wanted).all(axis=2).sum())


THEMES = (plots.LIGHT, plots.DARK)


def both(picture):
    return picture.light, picture.dark


def waterfalls(values, n_times=20):
    names = tuple(f"m{i}" for i in range(values.shape[2]))
    times = 5.0 + 10 * np.arange(n_times)
    return plots.Waterfalls("amplitude", "", times, 10.0, np.array([1e8, 2e8]), values, names, ("XX", "YY"), "")


def test_draws_many_stations_and_times_on_one_page():
    rng = np.random.default_rng(2)
    names = tuple(f"m{i:03d}" for i in range(62))
    values = rng.normal(size=(5000, 62, 2))
    solutions = plots.Solutions("amplitude", "", np.arange(5000.0), values, names, ("XX", "YY"), "")
    picture = plots.draw_solutions(solutions, plots.Span(0, 5000, tuple(range(1, 5000, 10)), ((100, 200),)))
    assert picture.width == 1100
    assert picture.height < 1200
    assert picture.light != picture.dark
    assert len(picture.light) < 600_000


PANELS = 1.15 * (11 - 0.72 - 3 * 0.14) * 150**2  # square pixels of four panels


def drawn(one, *gaps):
    return pixels(plots.draw_waterfalls(one, plots.Span(0, 200, (), gaps)).light)


def test_flagged_solutions_and_gaps_have_their_colours():
    values = np.linspace(0, 1, 20 * 2 * 4 * 2).reshape(20, 2, 4, 2)
    legend = count(drawn(waterfalls(values)), FLAGGED)
    values[5:10] = np.nan  # a quarter of the time
    assert count(drawn(waterfalls(values)), FLAGGED) - legend == pytest.approx(PANELS / 4, rel=0.05)
    in_gap = drawn(waterfalls(values), (50, 100))
    assert count(in_gap, FLAGGED) - legend < 0.02 * PANELS
    assert count(in_gap, plots.LIGHT.gap) == pytest.approx(PANELS / 4, rel=0.05)


def near(png, colour, distance=30):
    """Count pixels that look much like this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(pixels(png) - wanted).max(axis=2) < distance).sum())


@pytest.mark.parametrize("kind", ["phase", "amplitude"])
def test_no_value_looks_like_a_gap_or_a_flag(kind):
    """Phases near 180 degrees were once drawn in the grey of a gap."""
    whole = np.broadcast_to(np.linspace(-180, 180, 20)[:, None, None, None], (20, 2, 4, 2))
    unit = {"phase": "degrees", "amplitude": ""}[kind]
    steep = dataclasses.replace(waterfalls(whole), kind=kind, unit=unit)
    assert steep.is_angle == (kind == "phase")
    flat = dataclasses.replace(steep, values=np.zeros_like(whole))  # what else is on the page
    span = plots.Span(0, 200)
    pictures = [both(plots.draw_waterfalls(one, span)) for one in (steep, flat)]
    for one, none, theme in zip(*pictures, THEMES, strict=True):
        for colour in (theme.gap, FLAGGED):
            assert near(one, colour) - near(none, colour) < 0.02 * PANELS  # a column is 0.05


def test_missing_columns_are_no_data():
    whole, keep = waterfalls(np.ones((20, 2, 4, 2))), np.r_[0:5, 10:20]
    part = dataclasses.replace(whole, times=whole.times[keep], values=whole.values[keep])
    lost = [count(drawn(one), plots.LIGHT.gap) for one in (whole, part)]
    assert lost[1] - lost[0] == pytest.approx(PANELS / 4, rel=0.05)


def test_times_without_solution_get_a_tick():
    names, values = tuple(f"m{i}" for i in range(8)), np.ones((20, 8, 2))

    def red():
        solutions = plots.Solutions("amplitude", "", 5.0 + 10 * np.arange(20), values, names, ("XX", "YY"), "")
        return count(pixels(plots.draw_solutions(solutions, plots.Span(0, 200)).light), plots.LIGHT.missing)

    assert red() == 0
    values[3, 2] = np.nan
    assert red() > 5


def test_sixty_two_stations_with_waterfalls_fit_on_a_page():
    rng = np.random.default_rng(1)
    picture = plots.draw_waterfalls(waterfalls(rng.normal(size=(20, 2, 62, 2))), plots.Span(0, 200))
    assert (picture.width, picture.height < 1000) == (1100, True)
    assert picture.light != picture.dark
    assert len(picture.light) < 300_000


def test_a_station_s_panel_shows_its_own_solutions():
    """All panels are one image: each value must be at its station, time, frequency and polarization."""
    values = np.zeros((20, 2, 13, 2))
    values[:10, 1, 6, 0] = 1.0  # early, the high frequency, seventh station, XX
    image, layout = drawn(waterfalls(values)), Layout.of(13)
    x, y = layout.corner(6)
    yellow = [int(value) for value in np.rint(255 * np.array(_MAPS[False](0.9999)[:3]))]
    found = np.argwhere((image == yellow).all(axis=2)) / 150
    found = found[found[:, 0] > layout.page - layout.top]  # not the colour bar
    assert found[:, 1].min() == pytest.approx(x, abs=0.02)
    assert found[:, 1].max() == pytest.approx(x + layout.width / 2, abs=0.02)
    assert layout.page - found[:, 0].min() == pytest.approx(y + layout.height, abs=0.02)
    assert layout.page - found[:, 0].max() == pytest.approx(y + 0.75 * layout.height, abs=0.02)
