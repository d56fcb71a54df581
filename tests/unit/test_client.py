"""What a script is told when there is no cluster to be had."""

import fcntl
import json
import socket
import threading
import time
from pathlib import Path

import pytest

from chunkcal.cluster import chunks, client, state


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that the test owns, before its cluster is started; gives the path of the cluster's log."""
    monkeypatch.setattr(state.tempfile, "tempdir", str(tmp_path))
    log = tmp_path / "logs/cluster.log"
    log.parent.mkdir()
    log.write_text("what an earlier cluster wrote\n")
    settings = {"cluster": {"backend": "local", "start_timeout_s": 5}, "dp3": {"command": "DP3"}}
    monkeypatch.setenv(state.RUN_VARIABLE, str(state.create(settings, log, tmp_path / "results")))
    return log


def test_supervisor_that_cannot_be_imported_is_explained_by_its_log(run, tmp_path, monkeypatch):
    (tmp_path / "dask.py").write_text("raise ImportError('libssl.so.3 is not there')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(state.ClusterError) as caught:
        client.ensure_cluster()
    first, *lines = str(caught.value).splitlines()
    assert first == f"the cluster did not start: exit status 1; log: {run}"
    assert lines[-1] == "    ImportError: libssl.so.3 is not there"
    assert all(line.startswith("    ") for line in lines)
    assert "earlier cluster" not in str(caught.value)


@pytest.fixture
def lock(run):
    """The lock of whoever starts the cluster, held by the test."""
    with open(state.folder_of_this_run() / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def test_who_waits_while_another_one_fails_to_start_the_cluster_does_not_try_again(run, lock, monkeypatch):
    monkeypatch.setattr(client, "_start_supervisor", lambda folder: pytest.fail("started"))
    caught = []

    def ask():
        try:
            client.ensure_cluster()
        except state.ClusterError as error:
            caught.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.2)
    (state.folder_of_this_run() / "failure").write_text("no scheduler at tcp://a:1")
    fcntl.flock(lock, fcntl.LOCK_UN)
    asking.join()
    assert caught == [f"the cluster did not start: no scheduler at tcp://a:1; log: {run}"]


def test_an_earlier_failure_is_no_reason_not_to_try_again(run, monkeypatch):
    (state.folder_of_this_run() / "failure").write_text("no scheduler at tcp://a:1")
    time.sleep(0.05)
    monkeypatch.setattr(client, "_start_supervisor", lambda folder: "started")
    assert client.ensure_cluster() == "started"


def test_a_run_ends_only_when_nobody_starts_its_cluster_any_more(run, lock):
    folder = state.folder_of_this_run()
    ending = threading.Thread(target=client.end_run)
    ending.start()
    time.sleep(0.2)
    assert ending.is_alive()
    assert (folder / "aborted").exists()  # so that whoever starts it gives up
    fcntl.flock(lock, fcntl.LOCK_UN)
    ending.join()
    assert not folder.exists()


def test_cluster_that_was_started_ahead_is_there_for_all(run):
    folder = state.folder_of_this_run()
    settings = state.read_json(folder / "run.json")
    settings["settings"]["cluster"] |= {"resource": "subprocess_slots", "n_slots": 1, "threads_per_slot": 1}
    settings["settings"]["cluster"] |= {"dashboard_address": "127.0.0.1:0", "worker_failures": 1, "idle_timeout_s": 60}
    settings["settings"]["cluster"] |= {"start_timeout_s": 60}
    settings["settings"]["dp3"] = {"command": "DP3"}
    state.write_json(folder / "run.json", settings)
    client.start_ahead()
    deadline = time.monotonic() + 60
    while not (folder / "supervisor.json").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        client.ensure_cluster().close()
        assert run.read_text().count("up: pid") == 1
    finally:
        client.end_run()
    assert not Path(folder).exists()


def test_a_product_that_only_another_host_sees(run, tmp_path):
    output = tmp_path / "scratch/obs/preprocess/t0000.ms"
    result = {"product": f"{output}.tmp-12/out.ms", "record": {"host": "node7"}}
    with pytest.raises(state.ClusterError, match="made on node7 .* scratch_dir must be on file systems that all hosts"):
        chunks._commit([(result, str(output), str(tmp_path / "t0000.json"))])
    assert not (tmp_path / "t0000.json").exists()


def test_a_folder_in_scratch_dir_goes_when_no_chunk_is_left(tmp_path):
    own = tmp_path / "scratch/chunkcal-12"
    (own / "obs/preprocess/t0000.ms").mkdir(parents=True)
    (own / "obs/preprocess/t0000.ms/table.dat").touch()
    (own / "obs/apply").mkdir()
    (own / client.OWNER).touch()
    client.leave_scratch(str(own))
    assert {path.name for path in own.iterdir()} == {"obs", client.OWNER}
    assert [path.name for path in (own / "obs").iterdir()] == ["preprocess"]
    (own / "obs/preprocess/t0000.ms/table.dat").unlink()
    client.leave_scratch(str(own))
    assert list((tmp_path / "scratch").iterdir()) == []


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
    monkeypatch.setattr(chunks, "ensure_cluster", lambda: ours)
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
