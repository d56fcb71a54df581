"""The chart of who ran what when."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from chunkcal import plots
from chunkcal.plots import timing
from chunkcal.plots.style import LIGHT

TASKS = [("slot 0", "preprocess", 0.0, 4.0), ("slot 0", "apply", 4.0, 10.0), ("slot 1", "calibrate", 5.0, 7.5)]


def test_busy_is_the_part_of_the_time_with_a_run():
    assert timing._busy(TASKS, ["slot 0", "slot 1"], 10.0) == [1.0, 0.25]


def test_the_curve_counts_runs():
    axes = Figure().add_subplot()
    timing._draw_running(axes, TASKS, 2, 1.0, LIGHT)
    path = axes.collections[0].get_paths()[0].vertices
    assert path[:, 1].max() == 2

    def running(at):
        return max(y for x, y in path if abs(x - at) < 1e-9)

    assert running(4.0) == 1  # of two at one moment, the end comes first
    assert running(7.5) == 2
    assert np.isclose(path[:, 0].max(), 10.0)


def test_grows_with_slots_and_shows_pauses():
    few = plots.draw_gantt(TASKS)
    many = plots.draw_gantt([(f"slot {i}", "fit", 0.0, 1.0) for i in range(20)])
    assert many.height > few.height + 300
    assert plots.draw_gantt(TASKS, [(4.0, 600.0)]).light != few.light
    assert plots.draw_gantt(TASKS).light == few.light


@pytest.mark.parametrize("n", [1, 400])
def test_draws_any_number_of_runs(n):
    picture = plots.draw_gantt([("slot 0", "fit", float(i), i + 1.0) for i in range(n)])
    assert picture.width == 1100
