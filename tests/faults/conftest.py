"""Repeats, and the table of what was tried.

``CHUNKCAL_FAULT_REPEATS=full`` gives the counts of docs/faults.md (``make test-faults``); the default, a few of each
fault, is what ``make test`` runs.
"""

import os
import random
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from background import Run, wait_until
from chunkcal.cluster import state
from pipeline import columns, must_run
from tiny_ms import make_ms

DASK = str(Path(sys.executable).with_name("dask"))
FULL = os.environ.get("CHUNKCAL_FAULT_REPEATS") == "full"
TABLE: dict[str, dict[str, float]] = {}


def pytest_generate_tests(metafunc):
    """Repeat a test that is marked ``repeat(full, few)``."""
    mark = metafunc.definition.get_closest_marker("repeat")
    if mark:
        metafunc.parametrize("repeat", range(mark.args[0] if FULL else mark.args[1]))


def pytest_configure(config):
    config.addinivalue_line("markers", "repeat(full, few): how often a fault is tried")


def pytest_terminal_summary(terminalreporter):
    if TABLE:
        terminalreporter.section("faults")
        terminalreporter.line(f"{'fault':44} tried recovered   seconds (median, max)")
    for fault, row in TABLE.items():
        seconds = sorted(row["seconds"])
        times = f"{seconds[len(seconds) // 2]:9.1f} {seconds[-1]:9.1f}" if seconds else ""
        terminalreporter.line(f"{fault:44} {row['tried']:5} {row['recovered']:9}   {times}")


@pytest.fixture
def count():
    """Count a fault as tried, and as recovered with the seconds that took if the block raises nothing."""

    @contextmanager
    def counted(fault, n=1):
        row = TABLE.setdefault(fault, {"tried": 0, "recovered": 0, "seconds": []})
        row["tried"] += n
        began = time.monotonic()
        yield
        row["recovered"] += n
        row["seconds"].append(time.monotonic() - began)

    return counted


@pytest.fixture
def dice(request):
    """Random numbers that are the same whenever this test runs."""
    return random.Random(request.node.name)


@pytest.fixture(scope="session")
def ms(tmp_path_factory):
    """A MeasurementSet of eight chunks."""
    return make_ms(tmp_path_factory.mktemp("input") / "a.ms", n_slots=16)


@pytest.fixture(scope="session")
def clean(ms, tmp_path_factory):
    """What an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("clean")
    must_run(folder, {"input": [str(ms)], "chunks": {"n_slots": 2}})
    return columns(folder / "results/a/a.ms")


@pytest.fixture
def make_run(ms, tmp_path):
    """Start runs that are ended with the test."""
    runs = []

    def make(name="run", **changes):
        runs.append(Run(tmp_path / name, ms, **changes))
        return runs[-1]

    yield make
    for run in runs:
        run.close()


@pytest.fixture
def cluster(tmp_path):
    """Start a scheduler by hand; the result starts workers and has the address."""
    processes = []

    def start(*words, **environment):
        log = open(tmp_path / f"dask{len(processes)}.log", "wb")  # noqa: SIM115
        command = [DASK, *words, "--dashboard-address", "127.0.0.1:0"]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment))
        log.close()
        return processes[-1]

    file = tmp_path / "scheduler.json"
    start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    found = wait_until(lambda: file.exists() and state.read_json(file), 30, "no scheduler")

    class Cluster:
        address = found["address"]
        scheduler_file = str(file)

        @staticmethod
        def start_worker(*words, **environment):
            words = ("worker", found["address"], "--nworkers", "1", "--nthreads", "1", "--no-nanny", *words)
            return start(*words, **environment)

    yield Cluster
    for process in processes:
        process.kill()
        process.wait()
