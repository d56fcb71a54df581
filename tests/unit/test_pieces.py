"""Where a chunk that had too little memory is cut, and where it is not."""

import subprocess
import sys

import pytest

from chunkcal.planning.pieces import Uncuttable, halved, remedy
from chunkcal.planning.requests import start_time_text

START = 5217174002.0


def make_plan(n_slots=46, chunk=(0, 46), shortest=1, **changes):
    """A plan of slots of 4 s, averaged by 2, that may be cut every 8 slots; t0001 is the chunk."""
    unit = {"n_slots": 8, "shortest": shortest, "time_factors": [2], "whole": [], "inexact": [], "rounding": []}
    first, length = chunk
    row = {"name": "t0001", "start_slot": first, "n_slots": length, "row_start": 6 * first, "n_rows": 6 * length}
    plan = {
        "observation": {"first_time": START, "interval_s": 4.0, "n_slots": n_slots, "n_baselines": 6},
        "unit": unit | changes.pop("unit", {}),
        "time_factor": 2,
        "data": {
            "first_time": START + 2,
            "interval_s": 8.0,
            "n_slots": n_slots // 2,
            "n_baselines": 6,
            "n_channels": 4,
        },
        "solves": {"gain": {"solint": 4, "solutions_per_interval": 1, "start_s": START - 2, "interval_s": 32.0}},
        "runs": {
            "preprocess": {"parsets": [{"msin": "in.ms", "aof.type": "aoflagger"}]},
            "calibrate": {"parsets": [{"msin": "in.ms", "solve_gain.type": "ddecal"}]},
            "apply": {"parsets": [{"msin": "in.ms", "apply.gain.interpolation": "linear"}]},
        },
        "chunks": [None, row | changes.pop("row", {})],
    }
    return plan | changes


def starts(pieces):
    return [run["select"]["msin.starttime"] for run in pieces["runs"]]


def counts(pieces):
    return [int(run["select"]["msin.ntimes"]) for run in pieces["runs"]]


def test_halves_quarters_and_so_on_to_one_unit():
    plan, pieces, found = make_plan(), None, []
    for _ in range(3):
        pieces = halved(plan, "preprocess", "t0001", pieces)
        found.append(counts(pieces))
    assert found == [[24, 22], [16, 16, 14], [8, 8, 8, 8, 8, 6]]
    with pytest.raises(Uncuttable, match="the shortest chunk of this plan has 8 slots"):
        halved(plan, "preprocess", "t0001", pieces)


def test_pieces_of_raw_data_and_of_averaged_chunks():
    plan = make_plan(n_slots=80, chunk=(40, 40))
    raw, averaged = halved(plan, "preprocess", "t0001"), halved(plan, "apply", "t0001")
    assert (counts(raw), counts(averaged)) == ([24, 16], [12, 8])
    # Half a slot early: of 4 s before 64 of them; of 8 s, whose grid begins 2 s later, before 32.
    assert starts(raw)[1] == start_time_text(START + 64 * 4 - 2)
    assert starts(averaged)[1] == start_time_text(START + 2 + 32 * 8 - 4)
    assert [run["expect"]["n_slots"] for run in raw["runs"]] == [12, 8]
    assert [run["expect"] for run in averaged["runs"]] == [run["expect"] for run in raw["runs"]]
    assert raw["runs"][1]["expect"]["first_time"] == START + 2 + 64 * 4


def test_solutions_of_pieces():
    pieces = halved(make_plan(), "calibrate", "t0001")
    solves = [run["expect"]["solves"]["gain"] for run in pieces["runs"]]
    assert [solve["n_solutions"] for solve in solves] == [3, 3]
    assert solves[1]["first_time"] == START - 2 + 3.5 * 32


@pytest.mark.parametrize(
    ("n_slots", "found"), [(9, []), (17, [[8, 9]]), (25, [[16, 9], [8, 8, 9]]), (26, [[16, 10], [8, 8, 8, 2]])]
)
def test_tail_that_is_shorter_than_what_is_averaged_joins_the_piece_before_it(n_slots, found):
    plan, pieces = make_plan(chunk=(0, n_slots), shortest=2), None
    for wanted in found:
        pieces = halved(plan, "preprocess", "t0001", pieces)
        assert counts(pieces) == wanted
    with pytest.raises(Uncuttable, match="has 8 slots"):
        halved(plan, "preprocess", "t0001", pieces)


BEAM = "solve gain: beams may differ by rounding"


@pytest.mark.parametrize(
    ("changes", "kept_whole"),
    [
        ({"unit": {"inexact": ["MADFlagger1: its running median"]}}, {"preprocess", "calibrate", "apply"}),
        ({"unit": {"rounding": [BEAM]}}, {"calibrate"}),
        ({"unit": {"rounding": ["ApplyBeam1: beams may differ by rounding"]}}, {"preprocess"}),
        # Of all chunks only the one with the gap.
        ({"unit": {"rounding": ["gaps: UVW is calculated afresh"]}}, set()),
        ({"unit": {"rounding": ["gaps: UVW is calculated afresh"]}, "row": {"n_rows": 45 * 6}}, {"preprocess"}),
    ],
)
def test_what_might_have_other_bits_is_not_cut(changes, kept_whole):
    plan = make_plan(**changes)
    for stage in ("preprocess", "calibrate", "apply"):
        if stage in kept_whole:
            with pytest.raises(Uncuttable, match="the pieces might not give the same bits"):
                halved(plan, stage, "t0001")
        else:
            assert len(halved(plan, stage, "t0001")["runs"]) == 2


def test_linear_interpolation_is_cut_only_where_times_are_exact():
    plan = make_plan()
    halved(plan, "apply", "t0001")
    plan["data"]["interval_s"] = 20.0278016
    with pytest.raises(Uncuttable, match="linear interpolation follows the rounding"):
        halved(plan, "apply", "t0001")
    halved(plan, "calibrate", "t0001")


def test_fit_is_not_cut():
    plan = make_plan()
    plan["data"] |= {"max_baselines": 6, "max_channels": 4, "n_correlations": 4}
    with pytest.raises(Uncuttable, match="fit is not made in pieces"):
        halved(plan, "fit", "t0001")


def test_remedy_names_what_the_memory_goes_to():
    plan = make_plan()
    found = {stage: remedy(plan, stage) for stage in plan["runs"]}
    assert found["preprocess"].endswith("fewer threads or a shorter timewindow of AOFlagger")
    assert found["calibrate"].endswith("fewer threads or a shorter solint_s")
    assert found["apply"].endswith("or fewer threads")
    assert all(text.startswith("give each slot more memory") and "\n" not in text for text in found.values())


def test_nothing_slow_is_imported():
    """The scripts of chunks import it."""
    code = "import chunkcal.planning.pieces, sys; print([m for m in ('numpy', 'h5py', 'dask') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
