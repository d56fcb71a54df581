import random
import subprocess
import sys

import pytest
from casacore.quanta import quantity

from chunkcal.planning import requests


def make_plan(**changes):
    """The plan of an observation of 103 slots of 4 s, averaged by 4, solved for 2 of those, in chunks of 40 slots."""
    start = 5217174002.0
    chunks = [(0, 40), (40, 40), (80, 23)]
    plan = {
        "observation": {"name": "a", "first_time": start, "interval_s": 4.0, "n_slots": 103},
        "unit": {"time_factors": [4]},
        "time_factor": 4,
        "data": {
            "first_time": start + 6,
            "interval_s": 16.0,
            "n_slots": 26,
            "n_baselines": 28,
            "n_channels": None,
            "n_correlations": 4,
            "max_baselines": 28,
            "max_channels": 8,
        },
        "nan_weights": "flag",
        "solves": {
            "fast": {"solint": 1, "solutions_per_interval": 1, "start_s": start - 2, "interval_s": 16.0},
            "gain": {"solint": 2, "solutions_per_interval": 1, "start_s": start - 2, "interval_s": 32.0},
        },
        "runs": {
            "preprocess": {
                "parsets": [{"msin": "in.ms", "msout": "out.ms", "steps": "[]"}],
                "links": {"in.ms": "/x.ms"},
            },
            "calibrate": {
                "parsets": [{"msin": "in.ms", "msout": ""}],
                "links": {"sky.skymodel": "/s", "pre1.h5": "/p.h5"},
            },
            "apply": {"parsets": [{"msin": "in.ms", "msout": "out.ms"}], "links": {}},
            "fit": {"parsets": [{"msin": "in.ms", "msout": "model.ms"}], "links": {}},
        },
        "chunks": [
            {"name": f"t{i:04d}", "start_slot": s, "n_slots": n, "row_start": 28 * s, "n_rows": 28 * n}
            for i, (s, n) in enumerate(chunks)
        ],
    } | changes
    for stage, run in plan["runs"].items():
        if run:
            run["product"] = {"calibrate": "solutions", "fit": "fit.json"}.get(stage, "out.ms")
    plan["runs"]["preprocess"]["files"] = ["/my.h5"]
    return plan


def test_flagging_steps_save_what_they_flagged_unless_the_user_says_otherwise():
    plan = make_plan()
    steps = {"a.type": "aoflagger", "b.type": "averager", "c.type": "preflagger", "c.count.save": "false"}
    plan["runs"]["preprocess"]["parsets"][0] |= {"steps": "[a,b,c]"} | steps
    parset = requests.chunk_request(plan, "preprocess", "t0000")["run"]["parsets"][0]
    counts = {key: value for key, value in parset.items() if ".count." in key}
    assert counts == {
        "a.count.save": "true",
        "a.count.path": ".",
        "c.count.save": "false",
    }


def test_preprocess():
    request = requests.chunk_request(make_plan(), "preprocess", "t0001")
    assert request == {
        "run": {
            "parsets": [
                {
                    "msin": "in.ms",
                    "msin.starttime": "2024/03/14/23:02:40.000000",  # half a slot before 23:02:42
                    "msin.ntimes": "40",
                    "msout": "out.ms",
                    "steps": "[]",
                }
            ],
            "links": {"in.ms": "/x.ms"},
            "product": "out.ms",
        },
        "expect": {
            "kind": "ms",
            "first_time": 5217174002.0 + 160 + 6,
            "interval_s": 16.0,
            "n_slots": 10,
            "n_baselines": 28,
            "n_channels": None,
            "row_start": 1120,
            "n_rows": 1120,
            "nan_weights": "flag",
        },
    }


def test_the_plan_is_not_changed():
    plan = make_plan()
    requests.chunk_request(plan, "preprocess", "t0001")
    requests.chunk_request(plan, "fit", "t0001")
    assert plan == make_plan()


def test_calibrate():
    request = requests.chunk_request(make_plan(), "calibrate", "t0002")
    assert request["run"]["parsets"] == [{"msin": "in.ms", "msout": ""}]
    # Slots 80 to 102 are 6 averaged ones: 3 solutions, of which the first is number 10.
    assert request["expect"] == {
        "kind": "h5parms",
        "solves": {
            "fast": {"first_time": 5217174000.0 + 20.5 * 16, "interval_s": 16.0, "n_solutions": 6},
            "gain": {"first_time": 5217174000.0 + 10.5 * 32, "interval_s": 32.0, "n_solutions": 3},
        },
    }


def test_several_solutions_per_interval():
    plan = make_plan()
    plan["solves"]["gain"] |= {"solint": 4, "solutions_per_interval": 2, "interval_s": 32.0}
    assert requests.solution_grid(plan, "gain")["counts"] == [5, 5, 3]
    assert requests.first_solution(plan, "gain", plan["chunks"][2]) == 10


def test_fit_is_limited():
    plan = make_plan()
    assert requests.chunk_request(plan, "fit", "t0000")["run"]["parsets"][0]["msin.ntimes"] == "10"
    plan["data"]["max_channels"] = 300  # 0.27 MB a slot
    request = requests.chunk_request(plan, "fit", "t0000")
    assert request["run"]["parsets"][0]["msin.ntimes"] == "7"
    assert (request["expect"]["kind"], request["expect"]["n_slots"]) == ("fit", 7)
    plan["data"]["max_channels"] = 5_000  # no fewer slots, because one may be flagged
    assert requests.chunk_request(plan, "fit", "t0000")["expect"]["n_slots"] == requests.FIT_MIN_SLOTS == 4


def test_merge_and_join():
    plan = make_plan()
    assert requests.solution_grid(plan, "gain") == {
        "names": ["t0000", "t0001", "t0002"],
        "counts": [5, 5, 3],
        "start_s": 5217174000.0,
        "interval_s": 32.0,
    }
    assert requests.final_stage(plan) == "apply"
    assert requests.join_times(plan) is None
    assert [expect["n_slots"] for expect in requests.join_expects(plan)] == [10, 10, 6]
    plan["runs"]["apply"] = None
    assert requests.join_times(plan) == {
        "first_time": 5217174002.0,
        "interval_s": 4.0,
        "n_slots": 26,
        "averaging": 4,
    }
    assert requests.step_files(plan, "preprocess") == ["/my.h5"]
    assert requests.step_files(plan, "calibrate") == ["/p.h5"]


def test_unknown_chunk():
    with pytest.raises(KeyError):
        requests.find_chunk(make_plan(), "t001")


@pytest.mark.parametrize(
    ("time", "text"),
    [
        (0.0, "1858/11/17/00:00:00.000000"),
        (4871282393.00695, "2013/03/29/13:59:53.006950"),
        (59.9999997, "1858/11/17/00:01:00.000000"),  # rounds up to a whole minute
        (86399.9999999, "1858/11/18/00:00:00.000000"),  # and to a whole day
    ],
)
def test_start_times(time, text):
    assert requests.start_time_text(time) == text


def test_casacore_reads_start_times():
    """With the reader that DP3 uses; an error of half a slot is what chunks can bear, so 1 us is plenty."""
    rng = random.Random(1)
    for _ in range(2000):
        time = rng.uniform(3.5e9, 7e9)
        assert abs(quantity(requests.start_time_text(time)).get_value("s") - time) < 2e-6


def test_import_is_cheap():
    code = "import sys, chunkcal.planning.requests; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'casacore'", "'numpy'", "'pandas'", "'h5py'", "'chunkcal.ms'"):
        assert heavy not in modules


def test_what_makes_a_chunk_out_of_date_besides_its_parset(tmp_path):
    plan = make_plan(dp3_version="6.6.0")
    for name in ("sky.skymodel", "p.h5", "my.h5"):
        (tmp_path / name).write_text(name)
    (tmp_path / "x.ms").mkdir()
    (tmp_path / "x.ms/table.dat").write_text("x")
    runs = plan["runs"]
    runs["preprocess"] |= {"links": {"in.ms": str(tmp_path / "x.ms")}, "files": [str(tmp_path / "my.h5")]}
    runs["calibrate"]["links"] = {"sky.skymodel": str(tmp_path / "sky.skymodel"), "pre1.h5": str(tmp_path / "p.h5")}
    assert set(requests.contents(plan, "preprocess")) == {str(tmp_path / name) for name in ("x.ms", "my.h5")}
    before = requests.contents(plan, "calibrate")
    assert set(before) == {str(tmp_path / name) for name in ("sky.skymodel", "p.h5")}
    (tmp_path / "sky.skymodel").write_text("sky.skymodem")
    after = requests.contents(plan, "calibrate")
    assert [path for path in after if after[path] != before[path]] == [str(tmp_path / "sky.skymodel")]


def test_history_is_that_of_all_chunks():
    plan = make_plan(dp3_version="6.6.0")
    plan["runs"]["apply"] = None
    found = requests.history(plan, "preprocess", "apply")
    assert found == {"runs": {"preprocess": plan["runs"]["preprocess"]["parsets"]}, "dp3_version": "6.6.0"}


def test_what_was_chosen_is_told_for_the_first_observations():
    plans = {f"o{n}": {"notes": ["MsIn: x", f"{requests.AUTO} {n} slots"]} for n in range(7)} | {"p": {"notes": []}}
    lines = requests.choices(plans)
    assert lines[0] == "o0: chunks: auto chose 0 slots"
    assert lines[5:] == ["and 2 more; the report has them all"]
    assert requests.choices({"p": {"notes": []}}) == []
