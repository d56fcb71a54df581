"""What DP3 says of its flagging steps is what they did to the data."""

import numpy as np
import pytest

import tiny_ms
from chunkcal.flagging.flagsteps import FlagSteps, read_steps
from chunkcal.planning.requests import COUNTING_STEPS

KEYS = {
    "msin": "in.ms",
    "msout": "out.ms",
    "steps": "[pre1,uvw2,mad3]",
    "pre1.type": "preflagger",
    "pre1.baseline": "*&&&",
    "uvw2.type": "uvwflagger",
    "uvw2.uvmmax": 500,
    "mad3.type": "madflagger",
    "mad3.threshold": 2,
    "mad3.timewindow": 1,
    "mad3.freqwindow": 9,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A DP3 run with three flagging steps, and what it printed."""
    folder = tmp_path_factory.mktemp("steps")
    tiny_ms.make_ms(folder / "in.ms", n_channels=16, noise=1.0)
    saved = {
        f"{name}.count.{key}": value for name in ("pre1", "uvw2", "mad3") for key, value in (("save", 1), ("path", "."))
    }
    return folder, tiny_ms.run_dp3(folder, KEYS | saved)


def test_steps_add_up_to_the_flags_of_the_product(run):
    folder, log = run
    steps = read_steps(log, folder)
    assert [one["step"] for one in steps] == ["pre1", "uvw2", "mad3"]
    flags = tiny_ms.read(folder / "out.ms", "FLAG")[..., 0]
    assert sum(one["n_flagged"] for one in steps) == flags.sum()
    assert {one["n_total"] for one in steps} == {flags.size}
    assert all(one["n_flagged"] for one in steps)
    by_channel = np.sum([one["channels"] for one in steps], axis=0)
    np.testing.assert_allclose(by_channel, flags.mean(axis=0), atol=1e-6)
    auto = steps[0]["stations"]
    assert auto == pytest.approx(dict.fromkeys(auto, 0.25), abs=1e-6)  # one of four baselines, each station
    assert len(auto) == 4


def test_without_saved_tables_there_are_totals(run, tmp_path):
    _, log = run
    assert [one["stations"] for one in read_steps(log, tmp_path)] == [{}, {}, {}]
    assert read_steps("nothing", tmp_path) == []


def test_chunks_weigh_by_their_visibilities():
    steps = FlagSteps()
    steps.add([{"step": "a", "n_flagged": 10, "n_total": 100, "stations": {"x": 0.1}, "channels": [0.2, 0.0]}])
    steps.add([{"step": "a", "n_flagged": 50, "n_total": 50, "stations": {"x": 1.0}, "channels": [1.0, 1.0]}])
    assert steps.totals == {"a": [60, 150]}
    assert dict(steps.station_fractions("a")) == pytest.approx({"x": 0.4})
    assert steps.channel_fractions("a") == pytest.approx([70 / 150, 50 / 150])


def test_the_steps_that_are_asked_are_those_that_count():
    assert {KEYS[f"{name}.type"] for name in ("pre1", "uvw2", "mad3")} < set(COUNTING_STEPS)
