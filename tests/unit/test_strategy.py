import pytest

from chunkcal import dp3
from chunkcal.errors import UserError
from chunkcal.planning.skymodel import SkyModel
from chunkcal.planning.solves import SolveInput
from chunkcal.planning.strategy import apply_run, calibrate_run, fit_run, resolve_strategy

GIVEN = SolveInput(interval_s=8.0, n_slots=100, channel_width_hz=50e3, n_channels=40, stations=("A", "B", "C"))
SKY = SkyModel(("p1", "p2", "p3"), 5)


def strategy(*solves):
    filled = [{"name": f"s{i}", "solint_s": 8.0, **solve} for i, solve in enumerate(solves)]
    return resolve_strategy({"solves": filled}, "/data/my sky.txt", SKY, GIVEN)


PHASE = {"mode": "scalarphase"}
GAIN = {"mode": "diagonal", "solint_s": 80}
PATCHES = {"directions": "patches"}


def test_one_solve():
    run = calibrate_run(strategy(GAIN))
    assert run == {
        "parsets": [
            {
                "msin": "in.ms",
                "steps": "[solve_s0,null]",
                "solve_s0.type": "ddecal",
                "solve_s0.h5parm": "solutions/s0.h5",
                "solve_s0.mode": "diagonal",
                "solve_s0.solint": "10",
                "solve_s0.nchan": "0",
                "solve_s0.sourcedb": "sky.skymodel",
                "solve_s0.directions": "[[p1,p2,p3]]",
                "null.type": "null",
            }
        ],
        "links": {"sky.skymodel": "/data/my sky.txt"},
        "product": "solutions",
    }


def test_solves_of_the_same_directions_share_one_pass():
    (parset,) = calibrate_run(strategy(PHASE | PATCHES, PHASE | PATCHES, GAIN | PATCHES))["parsets"]
    assert parset["steps"] == "[solve_s0,solve_s1,solve_s2,null]"
    assert parset["solve_s0.directions"] == "[[p1],[p2],[p3]]"
    # Each hands the model on with its solutions; all take it under the names of the one that predicted it.
    assert [parset.get(f"solve_s{i}.keepmodel") for i in range(3)] == ["true", "true", None]
    assert [parset.get(f"solve_s{i}.reusemodel") for i in range(3)] == [None, "[solve_s0.*]", "[solve_s0.*]"]
    assert "solve_s1.sourcedb" not in parset


def test_a_change_of_directions_begins_a_pass_on_corrected_data():
    run = calibrate_run(strategy(PHASE, {"mode": "rotation+diagonal"}, GAIN | PATCHES))
    first, second = run["parsets"]
    assert first["steps"] == "[solve_s0,solve_s1,null]"
    assert second["steps"] == "[apply1,solve_s2,null]"
    steps = second["apply1.steps"].strip("[]").split(",")
    # The last solve is undone first, the diagonal before the rotation; nearest, as only that is the same in chunks.
    assert [(second[f"apply1.{s}.parmdb"], second[f"apply1.{s}.correction"]) for s in steps] == [
        ("solutions/s1.h5", "amplitude000"),
        ("solutions/s1.h5", "phase000"),
        ("solutions/s1.h5", "rotation000"),
        ("solutions/s0.h5", "phase000"),
    ]
    assert {second[f"apply1.{s}.interpolation"] for s in steps} == {"nearest"}
    for parset in run["parsets"]:
        dp3.parset_text(parset)


def test_solves_whose_bits_depend_on_threads_get_one():
    iterative = {"solver_algorithm": "directioniterative"}
    assert calibrate_run(strategy(PHASE | PATCHES, GAIN | PATCHES | iterative))["threads"] == 1
    assert "threads" not in calibrate_run(strategy(PHASE | PATCHES | iterative, GAIN | PATCHES))


def test_another_model_begins_a_pass():
    assert len(strategy(PHASE, GAIN | {"extra": {"usebeammodel": True}}).passes) == 2
    assert len(strategy(PHASE, GAIN | {"extra": {"uvmmax": 5000}}).passes) == 1


@pytest.mark.parametrize(
    ("solves", "words"),
    [
        ([PHASE | PATCHES, GAIN], "s1: its directions.* differ from those of the direction-dependent solve s0"),
        ([PHASE | PATCHES, GAIN | {"directions": ["p1", "p2"]}], "put it before that one"),
        ([PHASE | {"name": "a"}, GAIN | {"name": "a"}], "two solves are called a"),
        ([{"mode": "leakageamplitude"}], "ApplyCal cannot apply"),
    ],
)
def test_strategies_that_cannot_be(solves, words):
    with pytest.raises(UserError, match=words):
        strategy(*solves)


# ---- applying -----------------------------------------------------------------------------------------------


def applied(one, **settings):
    (parset,) = apply_run(one, {"interpolation": "linear", **settings})["parsets"]
    dp3.parset_text(parset)
    return parset


def test_apply_one_table():
    assert applied(strategy(PHASE)) == {
        "msin": "in.ms",
        "msout": "out.ms",
        "steps": "[apply1]",
        "apply1.type": "applycal",
        "apply1.steps": "[t1]",
        "apply1.t1.parmdb": "s0.h5",
        "apply1.t1.correction": "phase000",
        "apply1.t1.interpolation": "linear",
    }


def test_apply_undoes_the_last_solve_first():
    parset = applied(strategy(PHASE, {"mode": "fulljones"}))
    assert (parset["apply1.t1.parmdb"], parset["apply1.t1.correction"]) == ("s1.h5", "fulljones")
    assert parset["apply1.t1.soltab"] == "[amplitude000,phase000]"
    assert (parset["apply1.t2.parmdb"], parset["apply1.t2.correction"]) == ("s0.h5", "phase000")


def test_directions_are_left_to_the_imager():
    assert applied(strategy(PHASE | PATCHES))["steps"] == "[]"
    assert applied(strategy(PHASE, GAIN | PATCHES))["steps"] == "[apply1]"


def test_apply_one_direction():
    grouped = {"directions": [["p1", "p2"], "p3"]}
    parset = applied(strategy(PHASE | grouped, GAIN | grouped), direction="p2")
    # A solve that was given another one's model names a direction by its first patch.
    assert [parset[f"apply1.t{i}.direction"] for i in (1, 2, 3)] == ["[p1]", "[p1]", "[p1,p2]"]


def test_subtract_and_apply():
    parset = applied(strategy(PHASE | PATCHES, GAIN | PATCHES), direction="p1", subtract=["p2", "p3"])
    assert parset["steps"] == "[subtract,apply2]"
    assert parset["subtract.directions"] == "[[p2],[p3]]"
    # Corrupting is in the order of the solves, undoing in the opposite one.
    corrupt = [parset[f"subtract.applycal.t{i}.parmdb"] for i in (1, 2, 3)]
    assert corrupt == ["s0.h5", "s1.h5", "s1.h5"]
    assert [parset[f"apply2.t{i}.parmdb"] for i in (1, 2, 3)] == corrupt[::-1]


@pytest.mark.parametrize(
    ("solves", "settings", "words"),
    [
        ([PHASE], {"direction": "p1"}, "no solve has directions"),
        ([PHASE | PATCHES], {"direction": "p4"}, "apply.direction names p4.*there are p1, p2, p3"),
        ([PHASE | PATCHES], {"subtract": ["p1", "x"]}, "apply.subtract names x"),
        ([PHASE | {"directions": [["p1", "p2"], "p3"]}], {"subtract": ["p1"]}, "p1, p2 are one direction"),
    ],
)
def test_directions_that_there_are_not(solves, settings, words):
    with pytest.raises(UserError, match=words):
        applied(strategy(*solves), **settings)


def test_fit_of_directions_looks_at_the_residual():
    run = fit_run(strategy(PHASE, GAIN | PATCHES), {"interpolation": "nearest", "direction": "p1"})
    (parset,) = run["parsets"]
    assert parset["steps"] == "[apply1,subtract,residual,predict]"
    assert (parset["residual.type"], parset["residual.name"], parset["msout"]) == ("msout", "residual.ms", "model.ms")
    assert parset["predict.sources"] == "[p1,p2,p3]"
    (parset,) = fit_run(strategy(PHASE, GAIN), {})["parsets"]
    assert (parset["steps"], parset["msout"]) == ("[predict]", "model.ms")
