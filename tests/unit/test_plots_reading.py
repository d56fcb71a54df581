"""Solutions as pictures need them, whatever the order of the axes."""

import h5py
import numpy as np
import pytest

from chunkcal import plots
from chunkcal.solutions import h5parm
from h5parms import write_h5


@pytest.mark.parametrize("axes", [("time", "freq", "ant", "dir", "pol"), ("pol", "dir", "time", "ant", "freq")])
def test_reads_axes_in_any_order(tmp_path, axes):
    write_h5(tmp_path / "s.h5", axes=axes, kinds=("phase", "amplitude"))
    amplitude, phase = h5parm.describe(tmp_path / "s.h5").solsets["sol000"]
    with h5py.File(tmp_path / "s.h5") as file:
        order = [axes.index(axis) for axis in ("dir", "time", "freq", "ant", "pol")]
        stored = {kind: file[f"sol000/{kind}000/val"][:].transpose(order)[0] for kind in ("phase", "amplitude")}
    found = plots.read_solutions(tmp_path / "s.h5", "sol000", amplitude)
    np.testing.assert_allclose(found.values, np.median(stored["amplitude"], axis=1))
    assert found.without == ("RS305",)
    found = plots.read_solutions(tmp_path / "s.h5", "sol000", phase)
    middle = stored["phase"][:, 1]
    np.testing.assert_allclose(found.values, np.degrees(middle - middle[:, :1]), atol=1e-9)
    assert "121.000 MHz" in found.note


def test_flagged_solutions_are_left_out_and_a_dead_reference_is_replaced(tmp_path):
    write_h5(tmp_path / "s.h5", dead=(0,))
    with h5py.File(tmp_path / "s.h5", "a") as file:
        file["sol000/phase000/weight"][2, :, 3] = 0
    phase = h5parm.describe(tmp_path / "s.h5").solsets["sol000"][1]
    found = plots.read_solutions(tmp_path / "s.h5", "sol000", phase)
    assert "relative to CS002" in found.note
    assert np.isnan(found.values[2, 3]).all()
    assert np.isfinite(found.values[3, 3]).all()


@pytest.mark.parametrize("axes", [("time", "freq", "ant", "dir", "pol"), ("pol", "freq", "dir", "ant", "time")])
@pytest.mark.parametrize("block", [1, 300, 1 << 22])
def test_waterfalls_hold_every_solution(tmp_path, monkeypatch, axes, block):
    monkeypatch.setattr("chunkcal.plots.reading._BLOCK_VALUES", block)
    write_h5(tmp_path / "s.h5", axes=axes, directions=("[p]", "[q]"))
    amplitude, phase = h5parm.describe(tmp_path / "s.h5").solsets["sol000"]
    with h5py.File(tmp_path / "s.h5") as file:
        order = [axes.index(axis) for axis in ("dir", "time", "freq", "ant", "pol")]
        stored = {kind: file[f"sol000/{kind}000/val"][:].transpose(order)[1] for kind in ("phase", "amplitude")}
    found = plots.read_waterfalls(tmp_path / "s.h5", "sol000", amplitude, direction=1)
    np.testing.assert_array_equal(found.values, stored["amplitude"])
    assert found.interval_s == 10.0
    assert found.without == ("RS305",)
    found = plots.read_waterfalls(tmp_path / "s.h5", "sol000", phase, direction=1)
    np.testing.assert_allclose(found.values, np.degrees(stored["phase"] - stored["phase"][:, :, :1]), atol=1e-9)
    assert "relative to CS001" in found.note


def test_long_waterfalls_are_thinned_out(tmp_path, monkeypatch):
    monkeypatch.setattr("chunkcal.plots.reading.MAX_WATERFALL", (5, 2))
    write_h5(tmp_path / "s.h5")
    amplitude = h5parm.describe(tmp_path / "s.h5").solsets["sol000"][0]
    found = plots.read_waterfalls(tmp_path / "s.h5", "sol000", amplitude)
    assert found.values.shape == (4, 2, 4, 2)
    np.testing.assert_array_equal(found.times, 1005 + 30.0 * np.arange(4))
    assert found.interval_s == 30.0
    assert found.note == "one of 3 times, one of 2 frequencies"
