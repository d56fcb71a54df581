"""What DP3 says of its flagging steps is what they did to the data."""

import numpy as np
import pytest

import tiny_ms
from chunkcal.flagging.flags import LENGTH_EDGES_M
from chunkcal.flagging.flagsteps import FlagSteps, _percents, read_steps
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


def test_lengths_are_means_of_what_dp3_prints_of_each_baseline(run):
    folder, log = run
    positions = tiny_ms.read(folder / "in.ms/ANTENNA", "POSITION")
    first, second = (tiny_ms.read(folder / "in.ms", name) for name in ("ANTENNA1", "ANTENNA2"))
    lengths = np.linalg.norm(positions[first] - positions[second], axis=1)
    flags = tiny_ms.read(folder / "out.ms", "FLAG")[..., 0].mean(axis=1)
    steps = read_steps(log, folder)
    edges = {edge for one in steps for edge in one["lengths_m"]}
    assert edges
    n_baselines = 0
    for edge in edges:
        inside = (first != second) & (
            np.searchsorted(LENGTH_EDGES_M, lengths, "right") - 1 == LENGTH_EDGES_M.index(int(edge))
        )
        flagged = sum(one["lengths_m"][edge][0] / one["lengths_m"][edge][1] for one in steps) / 100
        assert flagged == pytest.approx(flags[inside].mean(), abs=0.005 * len(steps))
        n_baselines += steps[0]["lengths_m"][edge][1]
    assert n_baselines == len({*zip(first[first != second], second[first != second], strict=True)})
    assert all(percents == 0 for percents, _ in steps[0]["lengths_m"].values())  # it flags autocorrelations


def test_matrix_of_more_stations_than_a_line_holds():
    def row(first, cells):
        return f"{first:4} " + "".join("     " if cell is None else f"{cell:4}%" for cell in cells)

    # Stations 0 to 15 and 17, as if 16 had no data; 0 and 1 have no baseline.
    one = [" ant" + "".join(f"{i:5}" for i in range(15)), row(0, [100, None, *[1] * 13]), row(17, [7] * 15), "TOTAL 1%"]
    other = [" ant   15   17", row(0, [100, 3]), row(15, [0, 5]), row(17, [5, 0]), "TOTAL  5%  6%"]
    found = list(_percents("\n".join(["", *one, *other, "", "Percentage of visibilities flagged per channel:"])))
    assert found[:3] == [(0, 0, 100), (0, 2, 1), (0, 3, 1)]
    assert found[-5:] == [(0, 15, 100), (0, 17, 3), (15, 15, 0), (15, 17, 5), (17, 17, 0)]
    assert len(found) == 14 + 5


def test_without_saved_tables_there_are_totals(run, tmp_path):
    _, log = run
    steps = read_steps(log, tmp_path)
    assert [(one["stations"], one["lengths_m"], one["frequencies_hz"]) for one in steps] == [({}, {}, None)] * 3
    added = FlagSteps()
    added.add(steps, 0.0, 10.0)
    assert added.as_flags("uvw2") is None
    assert read_steps("nothing", tmp_path) == []


def test_chunks_weigh_by_their_visibilities():
    steps = FlagSteps()
    one = {"step": "a", "n_total": 100, "frequencies_hz": [1e8, 2e8]}
    later = one | {"n_flagged": 50, "n_total": 50, "stations": {"x": 1.0}, "channels": [1.0, 1.0]}
    steps.add([later | {"lengths_m": {"100": [200, 2]}}], 10.0, 15.0)
    earlier = one | {"n_flagged": 10, "stations": {"x": 0.1}, "channels": [0.2, 0.0]}
    steps.add([earlier | {"lengths_m": {"100": [20, 2], "0": [5, 1]}}], 0.0, 10.0)
    assert steps.totals == {"a": [60, 150]}
    assert dict(steps.station_fractions("a")) == pytest.approx({"x": 0.4})
    assert steps.channel_fractions("a") == pytest.approx([70 / 150, 50 / 150])
    flags = steps.as_flags("a")
    assert (flags.fraction, flags.of("x")) == pytest.approx((60 / 150, 0.4))
    assert {edge: flagged / total for edge, (flagged, total) in flags.lengths_m.items()} == pytest.approx(
        {100: 0.4, 0: 0.05}
    )
    assert flags.channels / flags.channel_total == pytest.approx([70 / 150, 50 / 150])
    assert [part.ravel().tolist() for part in flags.coarse_waterfall().parts] == [
        [0, 10],
        [10, 15],
        [10, 50],
        [100, 50],
    ]


def test_the_steps_that_are_asked_are_those_that_count():
    assert {KEYS[f"{name}.type"] for name in ("pre1", "uvw2", "mad3")} < set(COUNTING_STEPS)


def test_chunk_in_pieces_is_one_chunk():
    """Its pieces count as they are large, and are one place in time."""
    pieces = [
        {"step": "aof", "n_flagged": n, "n_total": total, "stations": {"A": n / total}, "channels": [n / total] * 2}
        | {"frequencies_hz": [1e8, 2e8]}
        for n, total in ((10, 100), (30, 200))
    ]
    found = FlagSteps()
    found.add(pieces, 0.0, 10.0)
    flags = found.as_flags("aof")
    assert (flags.n_flagged, flags.n_total) == (40, 300)
    assert dict(found.station_fractions("aof")) == {"A": pytest.approx(40 / 300)}
    assert found.times["aof"] == [(0.0, 10.0, 40, 300)]
