import subprocess
import sys
import time

from chunkcal.cluster import leftovers

OWNER = """
import sys, time
from chunkcal.cluster import leftovers
leftovers.watch(["run-1", "ccal-2"])
print("watched", flush=True)
time.sleep(60)
"""


def test_jobs_are_cancelled_by_name_when_their_owner_is_killed(tmp_path, monkeypatch):
    scancel = tmp_path / "scancel"
    scancel.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    scancel.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "watched\n"
    time.sleep(0.2)
    calls = tmp_path / "calls"
    assert not calls.exists()  # not while it lives
    owner.kill()
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 10
    while not calls.exists() or len(calls.read_text().splitlines()) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert [line.split()[:3] for line in calls.read_text().splitlines()[:2]] == [
        ["--quiet", "--name", "run-1"],
        ["--quiet", "--name", "ccal-2"],
    ]


def test_owner_that_is_gone_already_is_not_waited_for(monkeypatch):
    called = []
    monkeypatch.setattr(leftovers.subprocess, "run", lambda command, **_: called.append(command))
    monkeypatch.setattr(leftovers, "PAUSE_S", 0)
    leftovers.main(1 << 22, ["name"])  # above the kernel's largest pid
    assert len(called) == leftovers.N_TRIES
    assert called[0][:4] == ["scancel", "--quiet", "--name", "name"]
