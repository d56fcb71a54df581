import marshal
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chunkcal.cluster import guard
from chunkcal.cluster.state import start_time

GUARD = [sys.executable, "-I", "-S", guard.__file__]


def start(*argv):
    return subprocess.Popen(
        [*GUARD, *argv],
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
def test_exit_status(script, status):
    assert start("sh", "-c", script).wait(10) == status


def test_program_that_is_not_there():
    process = start("/no/such/DP3")
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
def test_whole_family_dies_with_the_holder_of_the_pipe(how):
    if how == "pipe":
        process = start("sh", "-c", FAMILY)
        pids = [int(process.stdout.readline()) for _ in range(3)]
        assert all(map(alive, pids))
        process.stdin.close()
        assert process.wait(5) == guard.STOPPED_BY_US
    else:
        code = "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\ntime.sleep(60)\n"
        argv = [*GUARD, "sh", "-c", FAMILY]
        parent = subprocess.Popen([sys.executable, "-c", code, *argv], stdout=subprocess.PIPE, text=True)
        pids = [int(parent.stdout.readline()) for _ in range(3)]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    wait_until(lambda: not any(map(alive, pids)))


def test_family_of_a_guard_below_dies_too():
    """A worker that runs under a guard runs DP3s under guards of their own."""
    below = f"{' '.join(GUARD)} sh -c 'sh -c \"echo \\$\\$; sleep 60; :\"; :'"
    process = start("sh", "-c", f"sleep 60 | {below}")
    shell = int(process.stdout.readline())
    child = wait_until(lambda: Path(f"/proc/{shell}/task/{shell}/children").read_text())
    process.stdin.close()
    assert process.wait(5) == guard.STOPPED_BY_US
    assert not alive(shell)
    assert not alive(int(child))


def test_guard_ignores_signals_of_the_terminal():
    process = start("sh", "-c", "sleep 0.5; echo whole")
    time.sleep(0.2)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(process.pid, number)
    assert process.wait(5) == 0
    assert "whole" in process.stdout.read()


@pytest.fixture
def asked(tmp_path):
    """Ask a guard to run lines of shell; gives the process and the function that asks and takes the answer."""
    process = subprocess.Popen(GUARD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    log = tmp_path / "log"
    log.write_text("before\n")

    def ask(line, wait=True, **changes):
        request = {"argv": ["/bin/sh", "-c", line], "cwd": str(tmp_path), "env": {"A": "b"}, "log": str(log)}
        process.stdin.write(marshal.dumps(request | changes))
        return marshal.load(process.stdout) if wait else None

    yield process, ask, log
    process.stdin.close()
    process.wait(5)
    process.stdout.close()


def test_one_guard_runs_one_program_after_the_other(asked, tmp_path):
    process, ask, log = asked
    status, cpu_s, max_rss_kb = ask("pwd; echo $A; env | wc -l; read x || echo no input")
    assert (status, max_rss_kb > 0) == (0, True)
    assert cpu_s < 1
    assert ask("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done")[1] > cpu_s
    assert ask("echo wrong >&2; exit 7")[0] == 7
    assert ask("kill -SEGV $$")[0] == 128 + 11
    assert ask("", argv=["/no/such/DP3"])[0] == 127
    assert ask("", cwd="/no/such/folder")[0] == 127
    lines = log.read_text().splitlines()
    assert lines[:3] == ["before", str(tmp_path), "b"]
    assert lines[4:6] == ["no input", "wrong"]
    assert lines[6:] == ["/no/such/DP3: No such file or directory", "/bin/sh: No such file or directory"]
    process.stdin.close()
    assert process.wait(5) == 0


def test_a_program_leaves_nothing_to_the_next_one(asked):
    _, ask, log = asked
    ask("setsid sh -c 'echo $$; sleep 60' & sleep 0.3")
    daemon = int(log.read_text().splitlines()[-1])
    assert not alive(daemon)
    assert ask("echo next")[0] == 0


@pytest.mark.parametrize("how", ["pipe", "guard"])
def test_a_program_dies_with_the_pipe_and_with_the_guard(asked, how):
    process, ask, log = asked
    ask("true")
    ask("echo $$; exec sleep 60", wait=False)
    pid = wait_until(lambda: next((int(line) for line in log.read_text().splitlines() if line.isdigit()), None))
    if how == "pipe":
        process.stdin.close()
        assert process.wait(5) == guard.STOPPED_BY_US
    else:
        process.kill()
    wait_until(lambda: not alive(pid))
