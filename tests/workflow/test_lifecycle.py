"""However a run ends, nothing of it is left running, and the next run finishes with the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from chunkcal.cluster import state
from pipeline import ROOT, assert_same_bits, columns, must_run, snakemake
from tiny_ms import DP3, dp3_environment, make_ms

N_CHUNKS = 6


def wait_until(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def marked_processes(mark):
    """List the live processes whose environment holds `mark`: Snakemake, scripts, cluster, guards and DP3."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes() and state.start_time(int(process.name)):
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


class Run:
    """A pipeline run in the background whose DP3s take a second longer than they must."""

    def __init__(self, folder, ms, **cluster):
        self.folder = folder
        self.mark = f"LIFECYCLE_TEST={folder}".encode()
        slow = folder / "DP3"
        measures = dp3_environment()["AIPSPATH"]
        slow.write_text(f'#!/bin/sh\nsleep 1\nexport AIPSPATH={measures}\n{sys.executable} {DP3} "$@"\n')
        slow.chmod(0o755)
        self.config = {
            "input": [str(ms)],
            "chunks": {"n_slots": 2},
            "cluster": {"n_slots": 2} | cluster,
            "dp3": {"command": str(slow)},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(self.config))
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        self.output = open(folder / "output", "wb")
        self.process = subprocess.Popen(
            [*command, "--configfile", "config.yaml", "--cores", "2", "--retries", "0"],
            cwd=folder,
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LIFECYCLE_TEST": str(folder)},
        )

    def find(self, words):
        return [pid for pid, line in marked_processes(self.mark).items() if words in line]

    def wait_for_dp3(self):
        wait_until(lambda: len(self.find("guard.py")) == 2, 30, "no DP3 was started")
        time.sleep(0.3)

    def text(self):
        return (self.folder / "output").read_text()

    def close(self):
        for pid in marked_processes(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.output.close()


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Input, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("clean")
    ms = make_ms(folder / "a.ms", n_slots=2 * N_CHUNKS)
    must_run(folder / "run", {"input": [str(ms)], "chunks": {"n_slots": 2}, "cluster": {"n_slots": 2}})
    return ms, columns(folder / "run/results/a/a.ms")


@pytest.fixture
def run(clean, tmp_path):
    started = Run(tmp_path, clean[0])
    started.wait_for_dp3()
    yield started
    started.close()


def assert_finishes(run, clean):
    """A further, undisturbed run in the same folder gives the clean run's bytes."""
    snakemake(run.folder, run.config, "--unlock")
    must_run(run.folder, run.config)
    assert_same_bits(columns(run.folder / "results/a/a.ms"), clean[1])
    assert not list(run.folder.rglob("*.tmp-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_end_of_snakemake_is_the_end_of_everything(run, clean, number):
    run.process.send_signal(number)
    began = time.monotonic()
    run.process.wait(10)
    wait_until(lambda: not marked_processes(run.mark), 10, marked_processes(run.mark))
    assert time.monotonic() - began < 10
    assert run.process.returncode != 0
    assert_finishes(run, clean)


@pytest.mark.parametrize("victim", ["chunkcal.cluster.supervisor", "spawn_main", "guard.py"])
def test_run_survives_the_death_of_a_part(run, clean, victim):
    """The supervisor; a worker or its nanny (dask starts both as multiprocessing children); the guard above DP3."""
    os.kill(run.find(victim)[-1], signal.SIGKILL)
    run.process.wait(60)
    if victim == "guard.py":  # for the worker, its DP3 was killed: the chunk has failed, and a new run makes it again
        assert "SIGKILL" in run.text()
        assert_finishes(run, clean)
    else:
        assert run.process.returncode == 0, run.text()
        assert_same_bits(columns(run.folder / "results/a/a.ms"), clean[1])
    assert not marked_processes(run.mark)
    assert not list(run.folder.rglob("*.tmp-*"))


def test_never_more_dp3_than_slots(run):
    most = 0
    while run.process.poll() is None:
        most = max(most, len(run.find("guard.py")))
        time.sleep(0.02)
    assert run.process.returncode == 0, run.text()
    assert most == 2
    records = [json.loads(path.read_text()) for path in (run.folder / "results/a/preprocess").glob("*.json")]
    assert len(records) == N_CHUNKS
    for worker in {record["worker"] for record in records}:
        spans = sorted((r["start"], r["end"]) for r in records if r["worker"] == worker)
        assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_state_folder_is_private_and_goes_away(run):
    folder = next(
        Path(word.split(b"=", 1)[1].decode())
        for word in Path(f"/proc/{run.find('guard.py')[0]}/environ").read_bytes().split(b"\0")
        if word.startswith(b"CHUNKCAL_RUN=")
    )
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "submit").stat().st_mode & 0o777 == 0o600
    run.process.wait(60)
    assert not folder.exists()
