import asyncio
import os
import signal
import time
from types import SimpleNamespace

import pytest

from chunkcal.cluster import dp3run, task
from chunkcal.cluster.state import start_time


def test_worker_whose_slot_is_taken_refuses(tmp_path, monkeypatch):
    """Should dask ever send two tasks to one slot, the second one runs nothing and says so."""
    worker = SimpleNamespace(name="w1", get_current_task=lambda: "key")
    monkeypatch.setattr(task, "get_worker", lambda: worker)
    request = {"name": "preprocess a t0000", "output": str(tmp_path / "t0000.ms"), "log": str(tmp_path / "log")}
    with task._LEASE:
        result = task.run_dp3(request, {})
    assert result == {"error": "preprocess a t0000: the slot of worker w1 is taken by another DP3; nothing was run"}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a task with a DP3 that is a line of shell."""
    state = SimpleNamespace(tasks={"key": SimpleNamespace(state="executing")}, nthreads=1, total_resources={})
    worker = SimpleNamespace(name="w1", get_current_task=lambda: "key", state=state, status=task.Status.running)
    monkeypatch.setattr(task, "get_worker", lambda: worker)

    def run(line, **request):
        dp3 = tmp_path / "DP3"
        dp3.write_text(f"#!/bin/sh\n{line}\n")
        dp3.chmod(0o755)
        request = {
            "name": "preprocess a t0000",
            "output": str(tmp_path / "t0000.ms"),
            "log": str(tmp_path / "log"),
            "run": {"parsets": [{"msin": "in.ms"}], "links": {}, "product": "out.ms"},
            "expect": {"kind": "ms"},
        } | request
        settings = {"command": str(dp3), "measures_dir": None, "task_timeout_s": None}
        found = task.run_dp3(request, settings)
        if "unverified" in found:
            found = asyncio.run(task.verify_dp3(request, settings, found["unverified"]))
        assert not list(tmp_path.glob("*.tmp-*"))
        return found

    return run


def test_dp3_does_not_inherit_how_its_worker_gives_memory_back(run, monkeypatch):
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.setenv(name, "65536")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    line = "echo $MALLOC_ARENA_MAX ${MALLOC_TRIM_THRESHOLD_-nothing} ${MALLOC_MMAP_THRESHOLD_-nothing}; exit 1"
    assert "exit status 1: 2 nothing nothing;" in run(line)["error"]


def test_a_worker_uses_its_guard_again_unless_that_is_gone(run):
    def guard():
        found = run("echo $PPID; exit 1")["error"]
        return int(found.partition("exit status 1: ")[2].partition(";")[0])

    parents = [guard(), guard()]
    assert parents[0] == parents[1]
    os.kill(parents[0], signal.SIGKILL)
    while start_time(parents[0]):
        time.sleep(0.01)
    assert guard() not in parents
    killed = run("kill -9 $PPID; sleep 60")
    assert killed["killed"]
    assert "killed by SIGKILL" in killed["error"]
    assert guard() not in parents


def test_what_is_no_product_is_said_and_removed(run):
    found = run('case "$1" in -v) echo DP3 6.6.0;; *) mkdir out.ms;; esac')
    assert found["bad_chunk"]
    assert "is not a table" in found["error"]


def test_kernel_that_runs_out_of_memory_is_told_apart(run, monkeypatch):
    """A DP3 that somebody has killed is worth another attempt; one that had no memory is not."""
    killed = run("kill -9 $$")
    assert killed["killed"]
    assert "out_of_memory" not in killed
    assert "killed by SIGKILL" in killed["error"]
    kills = iter(range(10))
    monkeypatch.setattr(dp3run, "_memory_kills", lambda: next(kills))
    starved = run("kill -9 $$")
    assert (starved["killed"], starved["bad_chunk"], starved["out_of_memory"]) == (False, False, True)
    assert "out of memory" in starved["error"]
    # The kernel has killed something else: this DP3 has failed on its own.
    failed = run("echo no such column; exit 1")
    assert (failed["bad_chunk"], failed.get("out_of_memory")) == (True, None)


@pytest.mark.parametrize(
    "line",
    [
        "echo MemoryError: std::bad_alloc; exit 1",
        """echo "terminate called after throwing an instance of 'std::bad_alloc'"; kill -ABRT $$""",
        "echo 'fork: Cannot allocate memory'; exit 1",
    ],
)
def test_dp3_without_memory_is_no_bad_chunk(run, line):
    found = run(line)
    assert (found["killed"], found["bad_chunk"], found["out_of_memory"]) == (False, False, True)
    attempt = found["attempt"]
    assert (attempt["worker"], attempt["n_pieces"]) == ("w1", 1)
    assert "(out of memory)" in attempt["error"]
    assert "\n" not in attempt["error"]


def test_an_earlier_attempt_that_had_no_memory_does_not_count(run):
    assert run("echo std::bad_alloc; exit 1")["out_of_memory"]
    assert "out_of_memory" not in run("exit 1")


def test_attempt_on_pieces_says_how_many(run):
    pieces = {"n_units": 1, "runs": [{"select": {"msin.ntimes": n}, "expect": {}} for n in "123"]}
    found = run('grep -q ntimes=1 "$1" || { echo std::bad_alloc; exit 1; }', pieces=pieces)
    assert found["attempt"]["n_pieces"] == 3


def test_memory_limit_is_the_least_of_a_workers_and_its_machines(monkeypatch):
    monkeypatch.setattr(task.system, "memory_limit", lambda: 8)
    for own, limit in ((None, 8), (0, 8), (4, 4), (16, 8)):
        assert task.memory_limit(SimpleNamespace(memory_manager=SimpleNamespace(memory_limit=own))) == limit


def test_threads_are_those_that_the_slot_grants():
    by_hand = SimpleNamespace(total_resources={"subprocess_slots": 1.0}, nthreads=4)
    in_a_job = SimpleNamespace(total_resources={"subprocess_slots": 1.0, "dp3_threads": 8.0}, nthreads=1)
    assert (task._threads(by_hand), task._threads(in_a_job)) == (4, 8)
