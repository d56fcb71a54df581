"""What a script is told when there is no cluster to be had."""

import fcntl
import threading
import time
from pathlib import Path

import pytest

from chunkcal.cluster import client, state


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that the test owns, before its cluster is started; gives the path of the cluster's log."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
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
    with open(f"{state.folder_of_this_run()}/lock", "w") as file:
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
    Path(state.folder_of_this_run(), "failure").write_text("no scheduler at tcp://a:1")
    fcntl.flock(lock, fcntl.LOCK_UN)
    asking.join()
    assert caught == [f"the cluster did not start: no scheduler at tcp://a:1; log: {run}"]


def test_an_earlier_failure_is_no_reason_not_to_try_again(run, monkeypatch):
    Path(state.folder_of_this_run(), "failure").write_text("no scheduler at tcp://a:1")
    time.sleep(0.05)
    monkeypatch.setattr(client, "_start_supervisor", lambda folder: "started")
    assert client.ensure_cluster() == "started"


def test_a_run_ends_only_when_nobody_starts_its_cluster_any_more(run, lock):
    folder = Path(state.folder_of_this_run())
    ending = threading.Thread(target=client.end_run)
    ending.start()
    time.sleep(0.2)
    assert ending.is_alive()
    assert (folder / "aborted").exists()  # so that whoever starts it gives up
    fcntl.flock(lock, fcntl.LOCK_UN)
    ending.join()
    assert not folder.exists()


def test_cluster_that_was_started_ahead_is_there_for_all(run):
    folder = Path(state.folder_of_this_run())
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
