import dataclasses

import pytest
from test_steps import OBSERVATION

from chunkcal.errors import UserError
from chunkcal.planning.chunkrules import Unit
from chunkcal.planning.cutting import boundary_unit, choose_length, cut, refuse_inexact
from chunkcal.planning.skymodel import SkyModel
from chunkcal.planning.solves import SolveInput, resolve_solve
from chunkcal.planning.stepdefaults import with_defaults
from chunkcal.planning.steps import parse_steps


def observation(**values):
    return dataclasses.replace(OBSERVATION, **values)


def ranges(chunks):
    return [(chunk.start_slot, chunk.start_slot + chunk.n_slots) for chunk in chunks]


# ---- lengths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "unit", "length", "noted"),
    [
        ({"n_slots": 100}, 10, 100, False),
        ({"n_slots": 95}, 10, 100, True),
        ({"n_slots": 1}, 10, 10, True),
        ({"n_slots": 5000}, 10, 1000, False),
        ({"duration_s": 400}, 10, 100, False),  # 4 s each
        ({"duration_s": 401}, 10, 110, True),
        ({"count": 10}, 10, 100, False),
        ({"count": 3}, 10, 340, True),  # 334 would do
        ({"count": 1}, 10, 1000, False),
        ({"count": 1}, 64, 1024, False),
        ({"count": 5000}, 1, 1, False),
    ],
)
def test_lengths(setting, unit, length, noted):
    found = choose_length(setting, Unit(n_slots=unit), OBSERVATION)
    assert found.n_slots == length
    assert bool(found.note) == noted


def test_a_length_that_is_rounded_is_said():
    note = choose_length({"count": 3}, Unit(n_slots=64), OBSERVATION).note
    for word in ("count 3", "384 slots", "1536 s", "unit of 64", "3 chunks"):
        assert word in note


def test_a_duration_of_whole_slots_but_for_rounding():
    lofar = observation(interval_s=10.0139008)
    assert choose_length({"duration_s": 100 * 10.0139008}, Unit(), lofar).n_slots == 100


@pytest.mark.parametrize(
    ("size", "n_slots", "unit", "length"),
    [
        (250 << 20, 1000, 1, 125),  # eight chunks
        (250 << 20, 1000, 64, 64),  # more, rather than fewer, where the unit does not divide
        (250 << 20, 1000, 400, 400),  # the unit is the least
        (250 << 20, 5, 1, 1),
        (64 << 30, 10_000, 1, 78),  # 512 MB
        (8 << 40, 100_000, 1, 50),  # 2000 chunks
    ],
)
def test_auto_follows_the_size(size, n_slots, unit, length):
    found = choose_length({"length": "auto"}, Unit(n_slots=unit), observation(size_bytes=size, n_slots=n_slots))
    assert found.n_slots == length


# ---- cutting ---------------------------------------------------------------------------------------------


def test_chunks_cover_everything():
    chunks = cut(observation(n_slots=103), Unit(n_slots=10), 20)
    assert ranges(chunks) == [(0, 20), (20, 40), (40, 60), (60, 80), (80, 100), (100, 103)]
    assert [chunk.name for chunk in chunks] == ["t0000", "t0001", "t0002", "t0003", "t0004", "t0005"]
    assert chunks[5].start_time == OBSERVATION.first_time + 400.0
    assert (chunks[1].row_start, chunks[1].n_rows) == (6000, 6000)
    assert chunks[5].n_rows == 900


def test_a_tail_shorter_than_the_average_joins_the_last_chunk():
    unit = Unit(n_slots=8, time_factors=(4,), shortest=4)
    assert ranges(cut(observation(n_slots=19), unit, 8)) == [(0, 8), (8, 19)]
    assert ranges(cut(observation(n_slots=20), unit, 8)) == [(0, 8), (8, 16), (16, 20)]
    assert ranges(cut(observation(n_slots=3), unit, 8)) == [(0, 3)]


def test_a_chunk_without_data_joins_the_one_before():
    gaps = observation(n_slots=60, missing=((12, 41), (55, 57)), n_baselines=2, n_rows=58)
    chunks = cut(gaps, Unit(n_slots=10), 10)
    assert ranges(chunks) == [(0, 10), (10, 40), (40, 50), (50, 60)]
    assert [(chunk.row_start, chunk.n_rows) for chunk in chunks] == [(0, 20), (20, 4), (24, 18), (42, 16)]
    assert sum(chunk.n_rows for chunk in chunks) == 58


def test_many_chunks_keep_their_order():
    chunks = cut(observation(n_slots=12_000), Unit(), 1)
    assert chunks[-1].name == "t11999"
    assert len({chunk.name for chunk in chunks}) == 12_000


def test_a_length_off_the_unit_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="no multiple"):
        cut(OBSERVATION, Unit(n_slots=8), 12)


# ---- units -----------------------------------------------------------------------------------------------


GIVEN = SolveInput(16.0, 250, 10e3, 64, None)


def test_the_unit_of_everything():
    pipeline = with_defaults(parse_steps(["AOFlagger", {"Averager": {"timestep": 4}}]), OBSERVATION, solve_unit=24)
    solve = resolve_solve({"mode": "diagonal", "solint_s": 96}, GIVEN, SkyModel(("p",), 1))
    unit = boundary_unit(pipeline, (solve,), GIVEN, OBSERVATION)
    assert unit.n_slots == 72
    assert [(name.partition(":")[0], n) for name, n in unit.reasons] == [
        ("AOFlagger", 72),
        ("Averager", 4),
        ("solve gain", 24),
    ]
    assert boundary_unit(pipeline, (), GIVEN, OBSERVATION).rounding == ()


def test_gaps_are_mentioned():
    unit = boundary_unit(parse_steps([]), (), GIVEN, observation(missing=((3, 5),)))
    assert (unit.n_slots, unit.inexact, unit.whole) == (1, (), ())
    assert "UVW" in unit.rounding[0]


def test_inexact_chunks_are_refused_with_all_reasons():
    unit = Unit(inexact=("A: x", "B: y"))
    with pytest.raises(UserError, match=r"obs1.*A: x; B: y.*count: 1.*allow_approximate: true"):
        refuse_inexact(unit, 2, False, "obs1")
    assert refuse_inexact(unit, 2, True, "obs1") is False
    assert refuse_inexact(unit, 1, False, "obs1") is True  # one chunk is the whole
    assert refuse_inexact(Unit(), 2, False, "obs1") is True


def test_what_needs_everything_cannot_be_allowed():
    unit = Unit(whole=("A: x",), inexact=("B: y",))
    with pytest.raises(UserError, match="A: x; B: y") as caught:
        refuse_inexact(unit, 2, True, "obs1")
    assert "allow_approximate" not in str(caught.value)
    assert refuse_inexact(unit, 1, False, "obs1") is True


@pytest.mark.parametrize(
    ("size_mb", "n_slots", "unit", "slots_each", "length"),
    [
        (12_000, 6000, 10, 8, 250),  # three rounds of eight
        (12_000, 6000, 10, 4, 250),  # the target size asks for 24 chunks
        (1000, 6000, 10, 16, 190),  # 48 chunks would be smaller than is worth a slot: two full rounds
        (1, 100, 10, 4, 10),  # three rounds of one unit, and not two of two
        (12_000, 100, 40, 8, 40),  # the unit is what it is
    ],
)
def test_auto_keeps_all_slots_busy_to_the_end(size_mb, n_slots, unit, slots_each, length):
    found = observation(size_bytes=size_mb << 20, n_slots=n_slots)
    chosen = choose_length({"length": "auto"}, Unit(n_slots=unit), found, slots_each)
    assert chosen.n_slots == length
    assert f"auto chose {length} slots" in chosen.note
    assert f"for {slots_each} slots of the cluster" in chosen.note


@pytest.mark.parametrize(
    ("slot_s", "slots_each", "length", "why"),
    [
        (0.0, 2, 250, "at most 537 MB each"),
        (0.1, 2, 250, "at most 537 MB each"),
        (1.0, 2, 60, "at most about 60 s of work each"),
        (1.0, 50, 40, "at least 3 chunks per slot"),
        (100.0, 50, 10, "the unit leaves no more"),
    ],
)
def test_auto_goes_by_the_time_of_a_task(slot_s, slots_each, length, why):
    found = observation(size_bytes=12_000 << 20, n_slots=6000)
    chosen = choose_length({"length": "auto"}, Unit(n_slots=10), found, slots_each, slot_s=slot_s)
    assert chosen.n_slots == length
    assert chosen.note.endswith(f"; {why}")


@pytest.mark.parametrize(("slot_s", "n_chunks"), [(0.0, 8), (0.5, 24)])
def test_a_small_observation_with_much_work_is_worth_all_slots(slot_s, n_chunks):
    found = observation(size_bytes=20 << 20, n_slots=480)
    chosen = choose_length({"length": "auto"}, Unit(), found, 8, slot_s=slot_s)
    assert -(-480 // chosen.n_slots) == n_chunks


@pytest.mark.parametrize("n_slots", [240, 1000, 6001])
@pytest.mark.parametrize("unit", [1, 4, 10])
@pytest.mark.parametrize("slots_each", [1, 2, 4, 7, 8])
def test_auto_gives_each_slot_three_chunks(n_slots, unit, slots_each):
    found = observation(size_bytes=12_000 << 20, n_slots=n_slots)
    chosen = choose_length({"length": "auto"}, Unit(n_slots=unit), found, slots_each)
    assert -(-n_slots // chosen.n_slots) >= 3 * slots_each


def test_auto_stays_with_what_there_is():
    found = observation(size_bytes=12_000 << 20, n_slots=6000)
    assert choose_length({"length": "auto"}, Unit(n_slots=10), found, 8, previous=500).n_slots == 500
    assert choose_length({"length": "auto"}, Unit(n_slots=30), found, 8, previous=500).n_slots == 210
    assert choose_length({"n_slots": 100}, Unit(n_slots=10), found, 8, previous=500).n_slots == 100
