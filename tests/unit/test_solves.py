import pytest

from chunkcal import dp3
from chunkcal.chunkrules import Unit
from chunkcal.errors import UserError
from chunkcal.skymodel import SkyModel
from chunkcal.solves import MODES, SolveInput, apply_run, calibrate_run, corrections, model_run, resolve_solve

GIVEN = SolveInput(interval_s=8.0, n_slots=100, channel_width_hz=50e3, n_channels=40, stations=("A", "B", "C"))
SKY = SkyModel(("p1", "0002.2+3139"), 5)
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


def solve(mode="diagonal", solint_s=40, **values):
    return resolve_solve({**DEFAULTS, "mode": mode, "solint_s": solint_s, **values}, GIVEN)


def test_the_whole_parset_of_a_solve():
    done = calibrate_run(
        solve(
            solution_bandwidth_hz=200e3,
            smoothness_hz=2e6,
            min_uv_lambda=80,
            antenna_constraint=[["A", "B"]],
            solver_algorithm="directioniterative",
            extra={"usebeammodel": True, "uvmmax": 5000, "solverlbfgs": {"dof": 2}},
        ),
        "/data/my sky.txt",
        SKY,
    )
    assert done == {
        "parset": {
            "msin": "in.ms",
            "msout": "",
            "steps": "[solve1]",
            "solve1.type": "ddecal",
            "solve1.sourcedb": "sky.skymodel",
            "solve1.directions": "[[p1,0002.2+3139]]",
            "solve1.h5parm": "solutions.h5",
            "solve1.mode": "diagonal",
            "solve1.solint": "5",
            "solve1.nchan": "4",
            "solve1.maxiter": "150",
            "solve1.tolerance": "0.0001",
            "solve1.stepsize": "0.2",
            "solve1.solveralgorithm": "directioniterative",
            "solve1.smoothnessconstraint": "2000000.0",
            "solve1.uvlambdamin": "80",
            "solve1.antennaconstraint": "[[A,B]]",
            "solve1.usebeammodel": "true",
            "solve1.uvmmax": "5000",
            "solve1.solverlbfgs.dof": "2",
        },
        "links": {"sky.skymodel": "/data/my sky.txt"},
        "product": "solutions.h5",
    }
    dp3.parset_text(done["parset"])


def test_unset_keys_are_left_to_dp3():
    keys = calibrate_run(solve(), "/s.txt", SKY)["parset"]
    for key in ("smoothnessconstraint", "uvlambdamin", "antennaconstraint", "solveralgorithm"):
        assert f"solve1.{key}" not in keys


@pytest.mark.parametrize(
    ("solint_s", "slots", "noted"), [(40, 5, False), (39.9, 5, False), (36, 5, True), (35.9, 4, True), (1, 1, True)]
)
def test_intervals_are_whole_slots(solint_s, slots, noted):
    done = solve(solint_s=solint_s)
    assert done.solint == done.parameters["solint"] == slots
    assert bool(done.notes) == noted


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
        ({"extra": {"subtract": True}}, "write into the chunk"),
        ({"extra": {"modelnextsteps.p1": "x"}}, "modelnextsteps.p1 cannot"),
        ({"antenna_constraint": [["A", "D"]]}, "names D"),
        ({"antenna_constraint": [["A"]]}, "two stations"),
    ],
)
def test_solves_that_cannot_be_meant(values, words):
    with pytest.raises(UserError, match=words):
        solve(**values)


def test_files_in_extra(tmp_path):
    (tmp_path / "start values.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    extra = {"initialsolutions": {"h5parm": "start values.h5"}}
    done = calibrate_run(solve(extra=extra), "/s.txt", SKY, str(tmp_path))
    name = done["parset"]["solve1.initialsolutions.h5parm"]
    assert done["links"][name] == str(tmp_path / "start values.h5")


def test_units():
    before = Unit(n_slots=4, time_factors=(4,))
    assert solve().unit(before, GIVEN).n_slots == 20
    assert "starts from the one before" in solve(extra={"propagatesolutions": True}).unit(before, GIVEN).inexact[0]
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


def test_apply_one_table():
    assert apply_run(solve("scalarphase"), "nearest")["parset"] == {
        "msin": "in.ms",
        "msout": "out.ms",
        "steps": "[apply1]",
        "apply1.type": "applycal",
        "apply1.parmdb": "solutions.h5",
        "apply1.correction": "phase000",
        "apply1.interpolation": "nearest",
    }


def test_apply_several_tables():
    parset = apply_run(solve("tec+phase"), "linear")["parset"]
    assert parset["apply1.steps"] == "[tec,phase]"
    assert "apply1.interpolation" not in parset  # an unused key beside sub-steps
    for name in ("tec", "phase"):
        assert parset[f"apply1.{name}.correction"] == f"{name}000"
        assert parset[f"apply1.{name}.interpolation"] == "linear"


def test_apply_full_jones():
    parset = apply_run(solve("fulljones"))["parset"]
    assert (parset["apply1.correction"], parset["apply1.soltab"]) == ("fulljones", "[amplitude000,phase000]")


def test_model_is_that_of_the_solve():
    done = model_run(solve(extra={"usebeammodel": True, "uvmmax": 5000}), "/s.txt", SKY)
    assert done["parset"]["predict1.sources"] == "[p1,0002.2+3139]"
    assert done["parset"]["predict1.usebeammodel"] == "true"
    assert "predict1.uvmmax" not in done["parset"]
    assert done["links"] == {"sky.skymodel": "/s.txt"}


def test_every_mode_has_its_tables():
    for mode in set(MODES) - {"leakageamplitude"}:
        assert corrections(solve(mode))
