"""A run that is watched: on a terminal, and without one."""

import os
import pty
import re
import resource
import signal
import subprocess
import sys

import pytest

from background import Run, wait_until
from chunkcal.simulate import Simulation, simulate

COMMAND = [sys.executable, "-m", "chunkcal.cli", "watch"]


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    settings = Simulation("lofar", n_stations=3, n_slots=8, n_channels=4, rfi=0.0)
    return simulate(settings, tmp_path_factory.mktemp("data") / "obs.ms").ms


@pytest.fixture
def run(ms, tmp_path):
    """A run of four chunks in two slots, whose DP3s take their time."""
    run = Run(tmp_path / "run", ms, slow_s=2.0)
    yield run.start()
    run.close()


def test_live_view_on_a_terminal_and_lines_without_one(run):
    run.wait_for("guard.py", 2)
    master, slave = pty.openpty()
    live = subprocess.Popen([*COMMAND, "results"], cwd=run.folder, stdout=slave, stderr=slave)
    os.close(slave)
    lines = subprocess.Popen([*COMMAND], cwd=run.folder, stdout=subprocess.PIPE, text=True)
    shown = b""
    while True:
        try:
            piece = os.read(master, 4096)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    assert live.wait(60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert b"\x1b[" in shown  # drawn over what was there
    assert "obs" in text
    assert re.search(r"\d/4 \(2 running", text)
    assert re.search(r"preprocess obs t000\d: \d+ s", text)
    assert "2 of 2 slots busy" in text
    assert "has ended" in text
    plain = lines.communicate(timeout=60)[0]
    assert lines.returncode == 0
    assert "\x1b" not in plain
    assert re.search(r"^dashboard: http://127.0.0.1:\d+/status$", plain, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d preprocess \d/4 chunks; \d of 2 slots busy, \d waiting; ", plain, re.MULTILINE)
    run.must_finish()
    (told,) = [line for line in run.text().splitlines() if "dashboard" in line]
    assert re.fullmatch(
        r"chunkcal: the cluster's dashboard is http://127.0.0.1:\d+/status; watch the run with: chunkcal watch results",
        told,
    )


def test_watching_can_be_interrupted_and_costs_little(run):
    run.wait_for("guard.py", 2)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = subprocess.Popen([*COMMAND, "--quiet"], cwd=run.folder, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: lines.stdout.readline().startswith("dashboard"), 30, "nothing was printed")
    lines.send_signal(signal.SIGINT)
    assert lines.wait(30) == 130
    lines.stdout.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5  # most of it to start Python
    run.must_finish()


def test_nothing_to_watch(tmp_path):
    done = subprocess.run([*COMMAND, "here"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"chunkcal: no run of this machine and user writes to {tmp_path}/here now")
