"""What chunk jobs ask for becomes tasks, and those that fail are done another way where there is one."""

import asyncio
import json

import pytest

from chunkcal.cluster import jobs, state


def job_of(task, submit, told=None, **settings):
    async def run(task):
        return submit(task)

    return jobs.Job(task, run, (told if told is not None else []).append, **settings)


def test_a_task_links_the_inputs_and_the_solutions():
    request = {"run": {"links": {"x.h5": "/x.h5"}}, "expect": {"kind": "fit"}, "solutions": {"gain.h5": "o/gain.p.h5"}}
    words = ["fit a t0000", "/w", "a b.log", "o/in.ms", "o/../o/out.ms", "o/fit/t0000.fit.json", ""]
    assert jobs.task_of(*words, json.dumps(request)) == {
        "name": "fit a t0000",
        "run": {
            "links": {
                "x.h5": "/x.h5",
                "in.ms": "/w/o/in.ms",
                "corrected.ms": "/w/o/out.ms",
                "gain.h5": "/w/o/gain.p.h5",
            }
        },
        "expect": {"kind": "fit"},
        "output": "/w/o/fit/t0000.fit.json",
        "log": "/w/a b.log",
    }


def test_a_task_of_two_stages_links_what_it_makes_first():
    stages = {stage: {"run": {"links": {}}, "expect": {"kind": stage}} for stage in ("preprocess", "calibrate")}
    words = ["calibrate a t0000", "/w", "log", "raw.ms", "", "c/t0000", "p/t0000.ms"]
    task = jobs.task_of(*words, json.dumps({"stages": stages, "one_pass": None}))
    assert task["stages"]["preprocess"]["run"]["links"] == {}
    assert task["stages"]["calibrate"]["run"]["links"] == {"in.ms": "/w/p/t0000.ms"}
    assert [part["output"] for part in task["stages"].values()] == ["/w/p/t0000.ms", "/w/c/t0000"]
    assert task["output"] == "/w/p/t0000.ms"


@pytest.fixture
def starving(tmp_path):
    """A task that has enough memory only in so many pieces; gives the tasks that were run, and what was told."""
    plan = {
        "observation": {"name": "a", "first_time": 5e9, "interval_s": 4.0, "n_slots": 4, "n_baselines": 1},
        "unit": {"n_slots": 1, "shortest": 1, "time_factors": [], "whole": [], "inexact": [], "rounding": []},
        "time_factor": 1,
        "data": {"first_time": 5e9, "interval_s": 4.0, "n_slots": 4, "n_baselines": 1, "n_channels": 1},
        "solves": {"gain": {"solint": 1, "solutions_per_interval": 1, "start_s": 5e9 - 2, "interval_s": 4.0}},
        "runs": {"calibrate": {"parsets": [{"msin": "in.ms", "solve_gain.type": "ddecal"}]}},
        "chunks": [{"name": "t0000", "start_slot": 0, "n_slots": 4, "row_start": 0, "n_rows": 4}],
    }
    (tmp_path / "results/plan").mkdir(parents=True)
    (tmp_path / "results/plan/observations.json").write_text(json.dumps({"a": plan}))
    asked, told = [], []

    def starve(enough):
        def submit(task):
            asked.append(task)
            n = len(task["pieces"]["runs"]) if "pieces" in task else 1
            if n < enough:
                message = f"{task['name']}: DP3 ended (out of memory): bad; log: /a; log: b.log\n    bad"
                return {"error": message, "bad_chunk": False, "out_of_memory": True, "attempts": [{"n_pieces": n}]}
            return {"result": {"record": {"attempts": [{"n_pieces": n}]} if n == 4 else {}}}

        output = str(tmp_path / "results/a/calibrate/t0000")
        task = {"name": "calibrate a t0000", "output": output, "expect": {"kind": "h5parms"}}
        job = job_of(task, submit, told, output_dir=str(tmp_path / "results"), on_bad_chunk="flag")
        return asyncio.run(job.make())

    return starve, asked, told


def test_chunk_without_memory_is_asked_for_in_smaller_and_smaller_pieces(starving):
    starve, asked, told = starving
    (result,) = starve(4)
    assert ["pieces" in task for task in asked] == [False, True, True]
    # What the job knows, then what the last attempt has told: it went to a worker with more.
    assert [attempt["n_pieces"] for attempt in result["record"]["attempts"]] == [1, 2, 4]
    assert told == [
        "chunkcal: calibrate a t0000: out of memory; DP3 runs again on 2 pieces of it",
        "chunkcal: calibrate a t0000: out of memory; DP3 runs again on 4 pieces of it",
    ]


def test_chunk_that_has_enough_memory_is_not_cut(starving):
    starve, asked, _ = starving
    assert starve(1) == [{"record": {}}]
    assert len(asked) == 1


def test_chunk_that_cannot_be_cut_further_fails_with_the_remedy_and_is_not_flagged(starving, tmp_path):
    starve, asked, _ = starving
    with pytest.raises(state.ClusterError) as caught:
        starve(5)
    assert not isinstance(caught.value, jobs.BadChunk)
    assert len(asked) == 3
    first, *lines = str(caught.value).splitlines()
    assert first == (
        "calibrate a t0000: DP3 ended (out of memory): bad; log: /a; it cannot be cut into smaller pieces, because the"
        " shortest chunk of this plan has 1 slot; give each slot more memory (fewer slots on a machine;"
        " cluster.job.memory_gb of batch jobs), fewer threads or a shorter solint_s; log: b.log"
    )
    assert lines == ["    bad"]
    assert not list(tmp_path.rglob("*.tmp-failed"))


STAGES = {
    "preprocess": {"run": {"links": {"in.ms": "/raw.ms"}}, "expect": {"kind": "ms"}, "output": "/a/t0000.ms"},
    "calibrate": {"run": {"links": {"in.ms": "/a/t0000.ms"}}, "expect": {"kind": "h5parms"}, "output": "/b/t0000"},
}
PASS = {"name": "calibrate a t0000", "log": "log", "output": "/a/t0000.ms", "stages": STAGES}


def test_a_pass_without_memory_goes_on_stage_by_stage():
    asked = []

    def submit(task):
        asked.append(task)
        if "stages" in task:
            return {"error": "no memory", "out_of_memory": True, "attempts": [{"n_pieces": 1}]}
        return {"result": {"product": f"{task['output']}.tmp-12/product", "record": {}}}

    preprocess, calibrate = asyncio.run(job_of(PASS, submit, output_dir="/").make())
    assert [task["output"] for task in asked] == ["/a/t0000.ms", "/a/t0000.ms", "/b/t0000"]
    # The solve reads what has just been made, and is told in the record by the name that this will have.
    assert asked[2]["run"]["links"] == {"in.ms": preprocess["product"]} == {"in.ms": "/a/t0000.ms.tmp-12/product"}
    assert calibrate["record"] == {"links": {"in.ms": "/a/t0000.ms"}, "attempts": [{"n_pieces": 1}]}


def test_a_pass_gives_its_products_in_the_order_of_the_stages():
    made = {stage: {"product": f"/{stage}", "record": {}} for stage in ("calibrate", "preprocess")}
    job = job_of(PASS, lambda task: {"result": {"made": made}}, output_dir="/")
    assert [one["product"] for one in asyncio.run(job.make())] == ["/preprocess", "/calibrate"]


BAD = {"error": "a: DP3 ended (1); log: b\n    bad", "bad_chunk": True}


@pytest.mark.parametrize("in_one_pass", [False, True])
def test_a_bad_chunk_gets_no_solutions_if_that_is_wanted(tmp_path, in_one_pass):
    stages = STAGES | {"calibrate": STAGES["calibrate"] | {"output": str(tmp_path / "t0000")}}
    task = PASS | {"stages": stages} if in_one_pass else {"name": "calibrate a t0000"} | stages["calibrate"]
    first = {"product": "/a/t0000.ms.tmp-12/product", "record": {}}
    answer = BAD | ({"made": {"preprocess": first}} if in_one_pass else {})
    told = []
    made = asyncio.run(job_of(task, lambda task: answer, told, output_dir="/", on_bad_chunk="flag").make())
    assert made[:-1] == ([first] if in_one_pass else [])
    assert made[-1]["record"] == {"name": "calibrate a t0000", "failed": "a: DP3 ended (1); log: b"}
    assert made[-1]["product"] == f"{tmp_path}/t0000.tmp-failed"
    assert (tmp_path / "t0000.tmp-failed" / jobs.FAILED).read_text() == "a: DP3 ended (1); log: b\n    bad\n"
    assert told == [f"chunkcal: {BAD['error']}\nchunkcal: its solutions become NaN (calibrate.on_bad_chunk: flag)"]


@pytest.mark.parametrize(
    ("task", "on_bad_chunk"),
    [
        (STAGES["calibrate"], "stop"),
        (STAGES["preprocess"], "flag"),  # has no solutions that could become NaN
        (PASS, "flag"),  # nor has it any without data
    ],
)
def test_a_bad_chunk_stops_the_run_else(task, on_bad_chunk):
    job = job_of({"name": "calibrate a t0000"} | task, lambda task: BAD, output_dir="/", on_bad_chunk=on_bad_chunk)
    with pytest.raises(jobs.BadChunk, match="DP3 ended"):
        asyncio.run(job.make())


def test_what_the_disk_does_not_take_is_told(tmp_path):
    (tmp_path / "file").touch()
    task = {"name": "calibrate a t0000"} | STAGES["calibrate"] | {"output": f"{tmp_path}/file/t0000"}
    with pytest.raises(state.ClusterError, match="calibrate a t0000: .*Not a directory"):
        asyncio.run(job_of(task, lambda task: BAD, output_dir="/", on_bad_chunk="flag").make())


def test_a_fault_of_ours_is_told_as_one(caplog):
    with pytest.raises(state.ClusterError, match="calibrate a t0000: internal error: KeyError"):
        asyncio.run(job_of({"name": "calibrate a t0000"}, lambda task: {}, output_dir="/").make())
    assert "Traceback" in caplog.text
