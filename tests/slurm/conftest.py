"""A SLURM of four nodes with two CPUs each, and an unprivileged account that submits to it."""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from account import Account
from bed import Bed
from slurm_run import SlurmRun

from pipeline import columns, must_run
from tiny_ms import make_ms


@pytest.fixture(scope="session")
def place():
    """A folder that the account can reach: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="slurmbed-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def bed(place):
    bed = Bed(place / "slurm")
    bed.start()
    yield bed
    bed.stop()


@pytest.fixture(scope="session")
def account(place):
    return Account(place)


@pytest.fixture(scope="session")
def ms(place):
    """A MeasurementSet of six chunks."""
    (place / "input").mkdir()
    return make_ms(place / "input/a.ms", n_slots=12)


@pytest.fixture(scope="session")
def clean(ms, tmp_path_factory):
    """What an undisturbed local run makes of it."""
    folder = tmp_path_factory.mktemp("clean")
    must_run(folder, {"input": [str(ms)], "chunks": {"n_slots": 2}}, "results/a/a.ms")
    return columns(folder / "results/a/a.ms")


@pytest.fixture
def make_run(bed, account, place, ms, request):
    """Start runs that are ended with the test."""
    runs = []

    def make(ms=ms, **changes):
        folder = Path(tempfile.mkdtemp(prefix=f"{request.node.originalname}-", dir=place))
        folder.chmod(0o755)
        runs.append(SlurmRun(bed, account, folder, ms, **changes))
        return runs[-1]

    yield make
    for run in runs:
        run.close()
    for job in bed.queue():
        bed.call("scancel", job[0])


@pytest.fixture
def slurm(bed):
    """The bed's environment, as ``env``, for tests that call SLURM's commands themselves."""
    return SimpleNamespace(env=os.environ | bed.environment)
