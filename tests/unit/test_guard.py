import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chunkcal.cluster import guard
from chunkcal.cluster.state import start_time


def start(folder, *argv):
    return subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(folder / "usage.json"), *argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def alive(pid):
    return start_time(pid) is not None


def wait_until(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -SEGV $$", 128 + 11)])
def test_exit_status_and_usage(tmp_path, script, status):
    process = start(tmp_path, "sh", "-c", script)
    assert process.wait(10) == status
    usage = json.loads((tmp_path / "usage.json").read_text())
    assert usage["max_rss_kb"] > 0


def test_program_that_is_not_there(tmp_path):
    process = start(tmp_path, "/no/such/DP3")
    assert process.wait(10) == 127
    assert "/no/such/DP3: No such file" in process.stdout.read()


# A grandchild that ignores everything, and one that has left the session like a daemon.
FAMILY = """
trap '' TERM INT HUP
sh -c 'trap "" TERM INT HUP; echo $$; sleep 60' &
setsid sh -c 'echo $$; sleep 60' &
echo $$
wait
"""


@pytest.mark.parametrize("how", ["pipe", "parent"])
def test_whole_family_dies_with_the_holder_of_the_pipe(tmp_path, how):
    if how == "pipe":
        process = start(tmp_path, "sh", "-c", FAMILY)
        pids = [int(process.stdout.readline()) for _ in range(3)]
        assert all(map(alive, pids))
        process.stdin.close()
        assert process.wait(5) == guard.STOPPED_BY_US
    else:
        code = "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\ntime.sleep(60)\n"
        argv = [sys.executable, "-I", "-S", guard.__file__, str(tmp_path / "usage.json"), "sh", "-c", FAMILY]
        parent = subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, text=True)
        pids = [int(parent.stdout.readline()) for _ in range(3)]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(map(alive, pids)))
    assert not (tmp_path / "usage.json").exists()


def test_family_of_a_guard_below_dies_too(tmp_path):
    """A worker that runs under a guard runs DP3s under guards of their own."""
    below = f"{sys.executable} -I -S {guard.__file__} /dev/null sh -c 'sh -c \"echo \\$\\$; sleep 60; :\"; :'"
    process = start(tmp_path, "sh", "-c", f"sleep 60 | {below}")
    shell = int(process.stdout.readline())
    child = wait_until(lambda: Path(f"/proc/{shell}/task/{shell}/children").read_text())
    process.stdin.close()
    assert process.wait(5) == guard.STOPPED_BY_US
    assert not alive(shell)
    assert not alive(int(child))


def test_guard_ignores_signals_of_the_terminal(tmp_path):
    process = start(tmp_path, "sh", "-c", "sleep 0.5; echo whole")
    time.sleep(0.2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    assert process.wait(5) == 0
    assert "whole" in process.stdout.read()
