"""What a chunk job makes of the answers that it gets, and of products that are not there."""

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chunkcal.cluster import chunks, state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that the test owns; it has no cluster."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    settings = {"cluster": {"backend": "local"}, "dp3": {"command": "DP3"}}
    folder = state.create(settings, tmp_path / "cluster.log", tmp_path / "results")
    monkeypatch.setenv(state.RUN_VARIABLE, str(folder))


def test_a_product_that_only_another_host_sees(run, tmp_path):
    output = tmp_path / "scratch/obs/preprocess/t0000.ms"
    result = {"product": f"{output}.tmp-12/out.ms", "record": {"host": "node7"}}
    with pytest.raises(state.ClusterError, match="made on node7 .* scratch_dir must be on file systems that all hosts"):
        chunks._commit([(result, str(output), str(tmp_path / "t0000.json"))])
    assert not (tmp_path / "t0000.json").exists()


@pytest.fixture
def starving(run, tmp_path, monkeypatch):
    """A task that has enough memory only in so many pieces; gives the tasks that were submitted."""
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
    asked = []

    def starve(enough):
        def submit(task):
            asked.append(task)
            n = len(task["pieces"]["runs"]) if "pieces" in task else 1
            if n < enough:
                message = f"{task['name']}: DP3 ended (out of memory): bad; log: /a; log: b.log\n    bad"
                raise chunks.OutOfMemory(message, [{"n_pieces": n}])
            return {"record": {"attempts": [{"n_pieces": n}]} if n == 4 else {}}

        monkeypatch.setattr(chunks, "submit", submit)
        output = str(tmp_path / "results/a/calibrate/t0000")
        return chunks._submit({"name": "calibrate a t0000", "output": output, "expect": {"kind": "h5parms"}})

    return starve, asked


def test_chunk_without_memory_is_asked_for_in_smaller_and_smaller_pieces(starving, capsys):
    starve, asked = starving
    result = starve(4)
    assert ["pieces" in task for task in asked] == [False, True, True]
    # What the client knows, then what the supervisor has told of the last one: it went to a worker with more.
    assert [attempt["n_pieces"] for attempt in result["record"]["attempts"]] == [1, 2, 4]
    assert capsys.readouterr().err.splitlines() == [
        "chunkcal: calibrate a t0000: out of memory; DP3 runs again on 2 pieces of it",
        "chunkcal: calibrate a t0000: out of memory; DP3 runs again on 4 pieces of it",
    ]


def test_chunk_that_has_enough_memory_is_not_cut(starving):
    starve, asked = starving
    assert starve(1) == {"record": {}}
    assert len(asked) == 1


def test_chunk_that_cannot_be_cut_further_fails_with_the_remedy_and_is_not_flagged(starving, tmp_path):
    starve, asked = starving
    with pytest.raises(state.ClusterError) as caught:
        starve(5)
    assert not isinstance(caught.value, chunks.BadChunk)
    assert len(asked) == 3
    first, *lines = str(caught.value).splitlines()
    assert first == (
        "calibrate a t0000: DP3 ended (out of memory): bad; log: /a; it cannot be cut into smaller pieces, because the"
        " shortest chunk of this plan has 1 slot; give each slot more memory (fewer slots on a machine;"
        " cluster.job.memory_gb of batch jobs), fewer threads or a shorter solint_s; log: b.log"
    )
    assert lines == ["    bad"]
    assert not list(tmp_path.rglob("*.tmp-failed"))


def test_answer_about_memory_is_told_apart(run, monkeypatch):
    answer = {"error": "no memory", "bad_chunk": False, "out_of_memory": True, "attempts": [1]}
    ours, theirs = socket.socketpair()
    theirs.sendall(json.dumps(answer).encode() + b"\n")
    monkeypatch.setattr(chunks, "_connection", lambda: ours)
    with pytest.raises(chunks.OutOfMemory, match="no memory") as caught:
        chunks.submit({"name": "calibrate a t0000"})
    assert caught.value.attempts == [1]
    theirs.close()


def test_a_pass_without_memory_goes_on_stage_by_stage(run, monkeypatch):
    asked = []

    def submit(task):
        asked.append(task)
        if "stages" in task:
            raise chunks.OutOfMemory("no memory", [{"n_pieces": 1}])
        return {"product": f"{task['output']}.tmp-12/product", "record": {}}

    monkeypatch.setattr(chunks, "submit", submit)
    stages = {
        "preprocess": {"run": {"links": {"in.ms": "/raw.ms"}}, "expect": {"kind": "ms"}, "output": "/a/t0000.ms"},
        "calibrate": {"run": {"links": {"in.ms": "/a/t0000.ms"}}, "expect": {"kind": "h5parms"}, "output": "/b/t0000"},
    }
    made = chunks._submit_pass({"name": "calibrate a t0000", "log": "log", "output": "/a/t0000.ms", "stages": stages})
    assert [task["output"] for task in asked] == ["/a/t0000.ms", "/a/t0000.ms", "/b/t0000"]
    # The solve reads what has just been made, and is told in the record by the name that this will have.
    assert (
        asked[2]["run"]["links"] == {"in.ms": made["preprocess"]["product"]} == {"in.ms": "/a/t0000.ms.tmp-12/product"}
    )
    assert made["calibrate"]["record"] == {"links": {"in.ms": "/a/t0000.ms"}, "attempts": [{"n_pieces": 1}]}


@pytest.fixture
def accepting(run, monkeypatch):
    """A cluster that makes whatever it is asked for, at once; gives what it was asked."""
    asked = []

    def make(output, expect):
        product = Path(f"{output}.tmp-12/product")
        product.mkdir(parents=True)
        return {"product": str(product), "record": {"expect": expect}}

    def submit(task):
        asked.append(task)
        if "stages" in task:
            return {"made": {stage: make(part["output"], part["expect"]) for stage, part in task["stages"].items()}}
        return make(task["output"], task["expect"])

    monkeypatch.setattr(chunks, "submit", submit)
    return asked


def test_a_job_links_its_inputs_and_its_solutions(accepting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    request = {"run": {"links": {"x.h5": "/x.h5"}}, "expect": {"kind": "fit"}, "solutions": {"gain.h5": "o/gain.p.h5"}}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    chunks.main(["fit a t0000", "a b.log", "o/in.ms", "o/out.ms", "o/fit/t0000.fit.json", "o/fit/t0000.json", "", ""])
    assert accepting == [
        {
            "name": "fit a t0000",
            "run": {
                "links": {
                    "x.h5": "/x.h5",
                    "in.ms": f"{tmp_path}/o/in.ms",
                    "corrected.ms": f"{tmp_path}/o/out.ms",
                    "gain.h5": f"{tmp_path}/o/gain.p.h5",
                }
            },
            "expect": {"kind": "fit"},
            "output": f"{tmp_path}/o/fit/t0000.fit.json",
            "log": f"{tmp_path}/a b.log",
        }
    ]
    assert {path.name for path in (tmp_path / "o/fit").iterdir()} == {"t0000.fit.json", "t0000.json"}


def test_a_job_of_two_stages_commits_both_products(accepting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = {stage: {"run": {"links": {}}, "expect": {"kind": stage}} for stage in ("preprocess", "calibrate")}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"stages": stages, "one_pass": None})))
    chunks.main(["calibrate a t0000", "log", "raw.ms", "", "c/t0000", "c/t0000.json", "p/t0000.ms", "p/t0000.json"])
    assert accepting[0]["stages"]["calibrate"]["run"]["links"] == {"in.ms": f"{tmp_path}/p/t0000.ms"}
    made = {path: json.loads((tmp_path / path).read_text()) for path in ("p/t0000.json", "c/t0000.json")}
    assert [record["expect"]["kind"] for record in made.values()] == ["preprocess", "calibrate"]
    assert (tmp_path / "p/t0000.ms").is_dir()
    assert (tmp_path / "c/t0000").is_dir()


def test_the_script_hands_over_what_snakemake_gives_it(tmp_path):
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done; cat\n')
    spy.chmod(0o755)
    # As Snakemake 9.27 declares them.
    arrays = """
        declare -A snakemake=( [rule]=other_apply_chunk )
        declare -A snakemake_wildcards=( [obs]=a [chunk]=t0000 )
        declare -A snakemake_log=( [0]='a log' )
        declare -A snakemake_input=( [ms]='it'"'"'s $HOME.ms' )
        declare -A snakemake_output=( [product]='a  b.ms' [record]=b.json )
        declare -A snakemake_params=( [request]='{"a": "'"'"'$x"}' )
    """
    script = (ROOT / "workflow/scripts/run_chunk.sh").read_text()
    environment = os.environ | {"CHUNKCAL_PYTHON": str(spy)}
    done = subprocess.run(["bash", "-c", arrays + script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *words, request = done.stdout.splitlines()
    assert words[:3] == ["<-P>", "<-c>", "<from chunkcal.cluster.chunks import script; script()>"]
    paths = ["<it's $HOME.ms>", "<>", "<a  b.ms>", "<b.json>", "<>", "<>"]
    assert words[3:] == ["<other_apply a t0000>", "<a log>", *paths]
    assert request == """{"a": "'$x"}"""


@pytest.mark.parametrize(
    ("folder", "module", "slow"),
    [
        ("src/chunkcal/cluster", "guard", {"enum", "json"}),
        ("src", "chunkcal.cluster.chunks", {"typing", "subprocess", "socket", "contextlib"}),
    ],
)
def test_what_starts_with_each_chunk_imports_little(folder, module, slow):
    code = f"import sys; sys.path.append({str(ROOT / folder)!r}); import {module}; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code]  # packages that are installed may have hooks
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert module in modules
    assert not slow & set(modules)
