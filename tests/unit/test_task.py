from types import SimpleNamespace

from chunkcal.cluster import task


def test_worker_whose_slot_is_taken_refuses(tmp_path, monkeypatch):
    """Should dask ever send two tasks to one slot, the second one runs nothing and says so."""
    worker = SimpleNamespace(name="w1", get_current_task=lambda: "key")
    monkeypatch.setattr(task, "get_worker", lambda: worker)
    request = {"name": "preprocess a t0000", "output": str(tmp_path / "t0000.ms"), "log": str(tmp_path / "log")}
    with task._LEASE:
        result = task.run_dp3(request, {})
    assert result == {"error": "preprocess a t0000: the slot of worker w1 is taken by another DP3; nothing was run"}
    assert list(tmp_path.iterdir()) == []


def test_kernel_that_runs_out_of_memory_is_told_apart(tmp_path, monkeypatch):
    """A DP3 that somebody has killed is worth another attempt; one that had no memory is not."""
    state = SimpleNamespace(tasks={"key": SimpleNamespace(state="executing")}, nthreads=1, total_resources={})
    worker = SimpleNamespace(name="w1", get_current_task=lambda: "key", state=state, status=task.Status.running)
    monkeypatch.setattr(task, "get_worker", lambda: worker)
    dp3 = tmp_path / "DP3"
    dp3.write_text("#!/bin/sh\nkill -9 $$\n")
    dp3.chmod(0o755)
    request = {
        "name": "preprocess a t0000",
        "output": str(tmp_path / "t0000.ms"),
        "log": str(tmp_path / "log"),
        "run": {"parsets": [{"msin": "in.ms"}], "links": {}, "product": "out.ms"},
        "expect": {"kind": "ms"},
    }
    settings = {"command": str(dp3), "measures_dir": None, "task_timeout_s": None}
    killed = task.run_dp3(request, settings)
    assert killed["killed"]
    assert "killed by SIGKILL" in killed["error"]
    kills = iter(range(10))
    monkeypatch.setattr(task, "_memory_kills", lambda: next(kills))
    starved = task.run_dp3(request, settings)
    assert not starved["killed"]
    assert "out of memory" in starved["error"]
    assert not list(tmp_path.glob("*.tmp-*"))


def test_threads_are_those_that_the_slot_grants():
    by_hand = SimpleNamespace(total_resources={"subprocess_slots": 1.0}, nthreads=4)
    in_a_job = SimpleNamespace(total_resources={"subprocess_slots": 1.0, "dp3_threads": 8.0}, nthreads=1)
    assert (task._threads(by_hand), task._threads(in_a_job)) == (4, 8)
