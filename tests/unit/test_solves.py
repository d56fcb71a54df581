import h5py
import numpy as np
import pytest

from chunkcal.errors import UserError
from chunkcal.planning.chunkrules import Unit
from chunkcal.planning.skymodel import SkyModel
from chunkcal.planning.solves import MODES, SolveInput, corrections, resolve_solve

GIVEN = SolveInput(interval_s=8.0, n_slots=100, channel_width_hz=50e3, n_channels=40, stations=("A", "B", "C"))
SKY = SkyModel(("p1", "0002.2+3139", "p3"), 5)
# As the schema fills it in.
DEFAULTS = {
    "name": "gain",
    "solution_bandwidth_hz": 0,
    "smoothness_hz": 0,
    "min_uv_lambda": 0,
    "antenna_constraint": [],
    "solver_algorithm": None,
    "maxiter": 150,
    "tolerance": 1e-4,
    "stepsize": 0.2,
    "extra": {},
}


def solve(mode="diagonal", solint_s=40, base=None, **values):
    return resolve_solve({**DEFAULTS, "mode": mode, "solint_s": solint_s, **values}, GIVEN, SKY, base)


def test_keys_become_those_of_ddecal():
    done = solve(
        solution_bandwidth_hz=200e3,
        smoothness_hz=2e6,
        smoothness_reference_hz=144e6,
        min_uv_lambda=80,
        antenna_constraint=[["A", "[BC]"]],
        solver_algorithm="directioniterative",
        extra={"usebeammodel": True, "uvmmax": 5000, "solverlbfgs": {"dof": 2}},
    )
    assert done.parameters == {
        "mode": "diagonal",
        "solint": 5,
        "nchan": 4,
        "maxiter": 150,
        "tolerance": 1e-4,
        "stepsize": 0.2,
        "solveralgorithm": "directioniterative",
        "smoothnessconstraint": 2e6,
        "smoothnessreffrequency": 144e6,
        "uvlambdamin": 80,
        "antennaconstraint": [["A", "B", "C"]],
        "usebeammodel": True,
        "uvmmax": 5000,
        "solverlbfgs.dof": 2,
    }
    assert done.model == {"usebeammodel": True}


def test_unset_keys_are_left_to_dp3():
    assert set(solve().parameters) == {"mode", "solint", "nchan", "maxiter", "tolerance", "stepsize"}


@pytest.mark.parametrize(
    ("wanted", "directions"),
    [
        ("independent", (("p1", "0002.2+3139", "p3"),)),
        ("patches", (("p1",), ("0002.2+3139",), ("p3",))),
        (["p3", "p1"], (("p3",), ("p1",))),
        ([["p1", "p3"], "0002.2+3139"], (("p1", "p3"), ("0002.2+3139",))),
    ],
)
def test_directions(wanted, directions):
    done = solve(directions=wanted)
    assert done.directions == directions
    assert done.is_directional == (len(directions) > 1)


@pytest.mark.parametrize(
    ("solint_s", "slots", "noted"), [(40, 5, False), (39.9, 5, False), (36, 5, True), (35.9, 4, True), (1, 1, True)]
)
def test_intervals_are_whole_slots(solint_s, slots, noted):
    done = solve(solint_s=solint_s)
    assert done.solint == done.parameters["solint"] == slots
    assert bool(done.notes) == noted


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"solint_s": 1}, "1 s is rounded to 1 slot of 8 s: 8 s"),
        ({"solint_s": 36}, "36 s is rounded to 5 slots of 8 s: 40 s"),
        ({"solution_bandwidth_hz": 1e3}, "1000 Hz is rounded to 1 channel of "),
    ],
)
def test_rounding_is_told_in_words(values, words):
    (note,) = solve(**values).notes
    assert words in note


@pytest.mark.parametrize(
    ("values", "n_channels"),
    [
        ({}, 0),
        ({"mode": "tec"}, 1),  # a fit over single channels
        ({"mode": "TECandPhase"}, 1),
        ({"smoothness_hz": 1e6}, 1),
        ({"solution_bandwidth_hz": 100e3}, 2),
        ({"solution_bandwidth_hz": 1e3}, 1),
        ({"mode": "tec", "solution_bandwidth_hz": 100e3}, 2),
    ],
)
def test_bandwidths_are_whole_channels(values, n_channels):
    assert solve(**values).parameters["nchan"] == n_channels


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mode": "diagnoal"}, "did you mean diagonal"),
        ({"mode": "xyz"}, "there are diagonal"),
        ({"mode": "tecscreen"}, "no mode"),
        ({"extra": {"solint": 4}}, "extra.solint cannot be set: set solint_s"),
        ({"extra": {"nchan": 4}}, "set solution_bandwidth_hz"),
        ({"extra": {"sourcedb": "x"}}, "set calibrate.sky_model"),
        ({"extra": {"subtract": True}}, "set apply.subtract"),
        ({"extra": {"initialsolutions": {"h5parm": "x.h5"}}}, "set initial_solutions"),
        ({"solint_s": 900}, "solint_s 900 s is longer than the observation \\(800 s\\)"),
        ({"directions": ["0002.2+3149"]}, "no patch 0002.2.3149; did you mean 0002.2.3139"),
        ({"directions": ["nowhere"]}, "there are p1, 0002"),
        ({"directions": ["p1", ["p3", "p1"]]}, "patch p1 twice"),
        ({"extra": {"modelnextsteps.p1": "x"}}, "modelnextsteps.p1 cannot"),
        ({"antenna_constraint": [["A", "D"]]}, "names D"),
        ({"antenna_constraint": [["A"]]}, "two stations"),
    ],
)
def test_solves_that_cannot_be_meant(values, words):
    with pytest.raises(UserError, match=words):
        solve(**values)


def write_h5parm(path, stations=("A", "B", "C"), tables=("phase", "amplitude")):
    with h5py.File(path, "w") as file:
        for kind in tables:
            group = file.create_group(f"sol000/{kind}000")
            group.attrs["TITLE"] = np.bytes_(kind)
            shape = (2, len(stations))
            for name in ("val", "weight"):
                group.create_dataset(name, data=np.ones(shape)).attrs["AXES"] = np.bytes_("time,ant")
            group["time"], group["ant"] = [4.0, 12.0], np.array(stations, "S")


def test_h5parms_of_the_user(tmp_path):
    write_h5parm(tmp_path / "start values.h5")
    done = solve(initial_solutions="start values.h5", preapply=["start values.h5"], base=tmp_path)
    assert done.parameters["initialsolutions.h5parm"] == str(tmp_path / "start values.h5")
    assert done.parameters["initialsolutions.soltab"] == ["amplitude000", "phase000"]
    assert done.preapply == (str(tmp_path / "start values.h5"),)


@pytest.mark.parametrize("key", ["initial_solutions", "preapply"])
def test_h5parms_that_do_not_fit(tmp_path, key):
    write_h5parm(tmp_path / "other.h5", stations=("A", "C"))
    for name, words in (("other.h5", "no solutions for B in"), ("none.h5", "does not exist")):
        with pytest.raises(UserError, match=f"solve gain: {key}: .*{name}.*{words}|{key}: .*{name} {words}"):
            solve(base=tmp_path, **{key: [name] if key == "preapply" else name})


def test_units():
    before = Unit(n_slots=4, time_factors=(4,))
    assert solve().unit(before, GIVEN).n_slots == 20
    assert "starts from the one before" in solve(extra={"propagatesolutions": True}).unit(before, GIVEN).inexact[0]
    assert solve(solver_algorithm="directioniterative").depends_on_threads
    assert not solve("scalarphase", solver_algorithm="directioniterative").depends_on_threads
    assert not solve().depends_on_threads
    assert "amplitude-only" in solve("scalaramplitude").unit(before, GIVEN).rounding[0]


@pytest.mark.parametrize(
    ("mode", "extra", "tables"),
    [
        ("scalarphase", {}, ("phase000",)),
        ("phaseonly", {}, ("phase000",)),
        ("complexgain", {}, ("amplitude000", "phase000")),
        ("fulljones", {}, ("fulljones",)),
        ("leakage", {}, ("fulljones",)),
        ("tec+phase+delay", {}, ("tec000", "phase000", "delay000")),
        ("rotation+diagonal", {}, ("amplitude000", "phase000", "rotation000")),
        ("rotation+diagonal", {"rotationdiagonalmode": "scalarphase"}, ("phase000", "rotation000")),
        ("faradayrotation", {}, ("rotationmeasure000",)),
        ("faradayrotation", {"faradaydiagonalmode": "scalaramplitude"}, ("amplitude000", "rotationmeasure000")),
    ],
)
def test_corrections(mode, extra, tables):
    assert corrections(solve(mode, extra=extra)) == tables


@pytest.mark.parametrize(
    ("mode", "extra", "words"),
    [
        ("leakageamplitude", {}, "use leakage"),
        ("faradayrotation", {"faradaydiagonalmode": "diagonal"}, "use a scalar one"),
        ("rotation+diagonal", {"rotationdiagonalmode": "x"}, "none of"),
    ],
)
def test_what_applycal_cannot_do(mode, extra, words):
    with pytest.raises(UserError, match=words):
        corrections(solve(mode, extra=extra))


def test_every_mode_has_its_tables():
    for mode in set(MODES) - {"leakageamplitude"}:
        assert corrections(solve(mode))
