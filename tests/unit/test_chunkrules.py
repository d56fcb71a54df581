import pytest

from chunkcal.errors import UserError
from chunkcal.planning.chunkrules import STEP_TYPES, Input, averaging_steps, combine, effect_of, grid_is_exact

EXACT = Input(interval_s=4.0, n_slots=100)


def unit_of(*steps, given=EXACT):
    return combine([(name, name, values) for name, values in steps], given)


@pytest.mark.parametrize(
    ("step", "values", "unit"),
    [
        ("averager", {"timestep": 4}, 4),
        ("averager", {"timestep": "4"}, 4),
        ("averager", {}, 1),
        ("averager", {"timestep": 3, "timeresolution": 10.1}, 3),  # 10.1 s / 4 s rounds to 3
        ("aoflagger", {"timewindow": 32, "overlapperc": 0}, 32),
        ("clipper", {}, 5),
        ("clipper", {"timestep": 1}, 1),
        ("ddecal", {"solint": 6}, 6),
        ("ddecal", {"solint": 6, "usebeammodel": True, "beam_interval": 16}, 12),
        ("gaincal", {"solint": 6, "propagatesolutions": False}, 6),
        ("demixer", {"timestep": 4, "demixtimestep": 6}, 12),
        ("demixer", {"timestep": 4}, 4),
        ("predict", {"usebeammodel": True, "beam_interval": 10}, 3),
        ("predict", {"beam_interval": 10}, 1),
        ("preflagger", {"baseline": "CS*", "abstime": "[x]"}, 1),
        ("madflagger", {"timewindow": 1, "freqwindow": 15}, 1),
        ("phaseshifter", {}, 1),
        ("applycal", {"parmdb": "x"}, 1),
        ("filter", {}, 1),
    ],
)
def test_units(step, values, unit):
    found = unit_of((step, values))
    assert (found.n_slots, found.inexact, found.whole) == (unit, (), ())
    assert [n for _, n in found.reasons] == ([unit] if unit > 1 else [])


def test_averages_multiply_what_follows():
    found = unit_of(
        ("aoflagger", {"timewindow": 10, "overlapperc": 0}),
        ("averager", {"timestep": 4}),
        ("averager", {"timestep": 3}),
        ("ddecal", {"solint": 5}),
    )
    assert found.n_slots == 60
    assert [n for _, n in found.reasons] == [10, 4, 12, 60]
    assert (found.time_factors, found.time_factor, found.shortest) == ((4, 3), 12, 12)


def test_an_average_over_more_than_there_is():
    found = unit_of(("averager", {"timestep": 60}), ("averager", {"timestep": 60}))
    assert (found.time_factors, found.n_slots) == ((60, 2), 120)


def test_a_resolution_after_an_average():
    # 20 s of slots that are 8 s long by now.
    assert unit_of(("averager", {"timestep": 2}), ("averager", {"timeresolution": 20})).time_factors == (2, 3)


@pytest.mark.parametrize(
    ("step", "values", "words"),
    [
        ("aoflagger", {}, "memory"),
        ("aoflagger", {"timewindow": 32}, "overlap by 1 %"),
        ("aoflagger", {"timewindow": 32, "overlapperc": 1}, "overlap"),
        ("aoflagger", {"timewindow": 32, "overlapperc": 0, "overlapmax": 2}, "overlap"),
        ("ddecal", {"propagatesolutions": True}, "starts from the one before"),
        ("ddecal", {"idg.images": ["x"]}, "IDG"),
        ("clipper", {"usebeammodel": True, "beam_interval": 16}, "not known"),
        ("demixer", {"propagatesolutions": "true"}, "starts from the one before"),
        ("gaincal", {}, "starts from the one before"),
        ("interpolate", {}, "either side"),
        ("madflagger", {"timewindow": 7}, "either side"),
        ("madflagger", {"timewindow": "iif(bl<100,7,1)"}, "either side"),
        ("msout", {"storagemanager": "dysco"}, "dysco"),
        ("msout", {"storagemanager.name": "dysco"}, "dysco"),
        ("python", {"module": "x"}, "Python"),
        ("idgpredict", {}, "not known"),
        ("sagecalpredict", {}, "not known"),
        ("a step of tomorrow", {}, "not known"),
    ],
)
def test_inexact(step, values, words):
    (reason,) = unit_of((step, values)).inexact
    assert words in reason


@pytest.mark.parametrize(
    ("step", "values"),
    [
        ("ddecal", {"solint": 0}),
        ("gaincal", {"solint": 0, "propagatesolutions": False}),
        ("preflagger", {"timeslot": "0..3"}),
        ("preflagger", {"expr": "a or b", "a.reltime": "[0..60s]"}),
        ("flagtransfer", {}),
        ("transfer", {}),
    ],
)
def test_only_in_one_chunk(step, values):
    found = unit_of((step, values))
    assert len(found.whole) == 1
    assert found.inexact == ()


@pytest.mark.parametrize(
    ("step", "values"),
    [
        ("applybeam", {}),
        ("ddecal", {"usebeammodel": True}),
        ("ddecal", {"mode": "scalaramplitude"}),
        ("predict", {"usebeammodel": "yes"}),
        ("uvwflagger", {"phasecenter": "[1deg,2deg]"}),
    ],
)
def test_rounding(step, values):
    found = unit_of((step, values))
    assert len(found.rounding) == 1
    assert (found.inexact, found.whole) == ((), ())


def test_a_beam_interval_that_rounding_decides():
    values = {"usebeammodel": True, "beam_interval": 100.139008}
    sloppy = Input(interval_s=10.0139008, n_slots=100, grid_is_exact=False)
    assert "rounding" in effect_of("predict", values, sloppy).inexact
    assert effect_of("predict", {**values, "beam_interval": 105}, sloppy).unit == 11
    assert effect_of("predict", {**values, "beam_interval": 40}, EXACT).unit == 10


@pytest.mark.parametrize("values", [{"timestep": "two"}, {"timestep": 2.5}, {"timestep": -1}, {"timeresolution": "x"}])
def test_what_is_no_number(values):
    with pytest.raises(UserError, match="number"):
        unit_of(("averager", values))


def test_every_type_of_dp3_is_accounted_for():
    # Those without an effect of their own are inexact; none may fall out of the table by a typing error.
    for step_type in set(STEP_TYPES.values()):
        effect_of(step_type, {}, EXACT)
    assert STEP_TYPES["squash"] == "averager"


@pytest.mark.parametrize(
    ("interval", "exact"), [(4.0, True), (0.5, True), (10.0139008, False), (7.996616972, False), (0.1, False)]
)
def test_exact_grids(interval, exact):
    start = 5217174002.0
    assert grid_is_exact(start, interval, 10_000) == exact
    # What the claim means: counting from a slot in the middle gives the same bits as counting from the first.
    same = all(
        (start + first * interval) + k * interval == start + (first + k) * interval
        for first in range(0, 200, 7)
        for k in range(100)
    )
    assert same == exact


def test_averaging_as_dp3_rounds():
    assert [averaging_steps({"timeresolution": r}, 4.0) for r in (1, 4, 5.9, 6.1, 40)] == [1, 1, 1, 2, 10]
