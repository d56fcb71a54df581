import io
import json
import os
import time

import pytest
from rich.console import Console

from chunkcal.cluster import client, state
from chunkcal.reporting import progress, watch
from chunkcal.reporting.progress import Cell, Snapshot, Task, Watcher


@pytest.fixture
def going(tmp_path, monkeypatch):
    """A run of two observations that has made two chunks of six, and found one of an earlier run."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    results = tmp_path / "results"
    runs = {"preprocess": {}, "calibrate": {}, "apply": None}
    plan = {obs: {"runs": runs, "chunks": [{"name": f"t000{i}"} for i in range(3)]} for obs in ("a", "b")}
    (results / "plan").mkdir(parents=True)
    (results / "plan/observations.json").write_text(json.dumps(plan))
    (results / "a/preprocess").mkdir(parents=True)
    for chunk in range(3):
        (results / f"a/preprocess/t000{chunk}.json").touch()
    os.utime(results / "a/preprocess/t0000.json", (1e9, 1e9))
    folder = state.create({}, tmp_path / "log", results)
    began = time.time() - 120
    os.utime(folder / "run.json", (began, began))
    log = tmp_path / "dp3.log"
    log.write_text("Processing 8 time slots ...\n0%....10....20.")
    status = {
        "n_slots": 2,
        "dashboard": "http://127.0.0.1:1/status",
        "running": [{"name": "calibrate a t0001", "log": str(log), "seconds": 12.0}],
        "waiting": [{"name": "calibrate a t0002", "log": "/no such log", "seconds": 1.0}],
        "finished": {"preprocess": [2, 20.0]},
    }
    monkeypatch.setattr(client, "status", lambda _: status)
    return results, status


def test_snapshot(going):
    results, status = going
    snapshot = Watcher(results).look()
    assert snapshot.cells["a", "preprocess"] == Cell(total=3, made=2, kept=1)
    assert snapshot.cells["a", "calibrate"] == Cell(total=3, running=1, waiting=1)
    assert snapshot.cells["b", "preprocess"] == Cell(total=3)
    assert snapshot.stages == ["preprocess", "calibrate"]
    assert snapshot.tasks == [Task("calibrate a t0001", 12.0, 20)]
    assert snapshot.per_minute == pytest.approx(1.0, rel=0.1)
    assert snapshot.remaining_s is None  # no chunk was calibrated yet
    status["finished"]["calibrate"] = [1, 30.0]
    assert Watcher(results).look().remaining_s == (3 * 10 + 6 * 30) / 2
    text = progress.line(snapshot)
    assert text.startswith(
        "preprocess 3/6, calibrate 0/6 chunks; 1 of 2 slots busy, 1 waiting; 1.0 chunks/min; end not"
    )


def test_records_are_not_looked_at_again_before_it_is_cheap(going, monkeypatch):
    watcher = Watcher(going[0])
    watcher.look()
    monkeypatch.setattr(progress, "_record_times", lambda folder: pytest.fail("looked again"))
    watcher._look_again = time.monotonic() + 60
    assert watcher.look().cells["a", "preprocess"].done == 3


def test_no_run_and_a_run_that_is_still_planning(going, tmp_path):
    assert Watcher(tmp_path / "elsewhere").look() is None
    assert Watcher(tmp_path / "elsewhere").last() is None
    (going[0] / "plan/observations.json").unlink()
    assert progress.line(Watcher(going[0]).look()) == "planning, since 120 s"


@pytest.mark.parametrize(
    ("tail", "percent"),
    [
        ("0%....10....20....30....40....50....60....70....80....90....100%\nTotal\n", None),
        ("text\n0%....10....20", 20),
        ("text\n0%", 0),
        ("[0%, 0%, 0%, 0%]", None),
        ("", None),
    ],
)
def test_progress_of_dp3(tmp_path, tail, percent):
    log = tmp_path / "log"
    log.write_text(tail)
    assert progress._percent(str(log)) == percent


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "end not known yet"), (30, "a minute"), (600, "10 min"), (7200, "2.0 h")]
)
def test_end(seconds, words):
    assert words in progress.end_text(Snapshot(remaining_s=seconds))


def text_of(snapshot, height):
    console = Console(file=io.StringIO(), width=100, height=height)
    console.print(watch.view(snapshot, height))
    return console.file.getvalue()


def test_last_picture_of_a_run_shows_nothing_at_work(going):
    results, status = going
    folder = state.find(results)
    watcher = Watcher(results, folder)
    assert watcher.look().total().running == 1
    (results / "a/preprocess/t0000.json").touch()  # made between the last look and the end
    (folder / "run.json").unlink()
    assert watcher.look() is None
    last = watcher.last()
    assert last.cells["a", "preprocess"] == Cell(total=3, made=3)
    assert (last.total().running, last.total().waiting, last.tasks, last.dashboard) == (0, 0, [], None)
    text = progress.line(last)
    assert text.startswith("preprocess 3/6, calibrate 0/6 chunks; 1.5 chunks/min; ")
    assert text.endswith("; the run has ended before all chunks were done")


def test_view_of_many_observations_fits_the_terminal_and_shows_those_at_work():
    cells = {(f"obs{i}", "preprocess"): Cell(total=9, made=9) for i in range(100)}
    cells["obs77", "preprocess"] = Cell(total=9, made=3, running=2, waiting=1)
    tasks = [Task("preprocess obs77 t0003", 5.0, 40)]
    text = text_of(Snapshot(cells, tasks, n_slots=2, dashboard="http://x"), 20)
    assert len(text.splitlines()) <= 20
    assert "3/9 (2 running, 1 waiting)" in text
    assert "preprocess obs77 t0003: 5 s, 40 %" in text
    assert "894/900" in text
    assert "87 not shown" in text


def test_reporter_tells_the_dashboard_once_then_lines_until_the_run_ends(going, monkeypatch):
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    monkeypatch.setattr(progress, "PERIOD_S", 0.01)
    snapshots = iter([Snapshot(elapsed_s=31), Snapshot(elapsed_s=61), None])
    monkeypatch.setattr(Watcher, "look", lambda self: next(snapshots))
    folder = state.find(going[0])
    state.write_json(folder / "supervisor.json", {"dashboard": "http://127.0.0.1:1/status"})
    told = []
    progress._report(Watcher(going[0], folder), told.append, progress.threading.Event())
    assert [text for text in told if "dashboard" in text] == [
        f"the cluster's dashboard is http://127.0.0.1:1/status; watch the run with: chunkcal watch {going[0]}"
    ]
    assert {"planning, since 31 s", "planning, since 61 s"} <= set(told)


def test_fault_of_the_reporter_is_told_and_goes_no_further(going, monkeypatch):
    monkeypatch.setattr(progress, "POLL_S", 0.01)
    monkeypatch.setattr(progress, "PERIOD_S", 0.0)
    monkeypatch.setattr(Watcher, "look", lambda self: 1 / 0)
    told = []
    watcher = Watcher(going[0], state.find(going[0]))
    progress._report(watcher, told.append, progress.threading.Event())
    assert told == ["progress is not reported any more: ZeroDivisionError('division by zero')"]
