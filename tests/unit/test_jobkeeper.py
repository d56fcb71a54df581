"""The keeper against a batch system and a dask-jobqueue that do what they are told."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from chunkcal.cluster.backends import jobkeeper
from chunkcal.cluster.backends.batch import BatchJob
from chunkcal.cluster.backends.jobkeeper import JobKeeper, describe
from chunkcal.cluster.state import ClusterError

JOB = {"n_jobs": 2, "min_jobs": 1, "max_jobs": None, "n_processes": 1, "walltime_min": 60}


def running(job, end=None):
    return BatchJob(job, "RUNNING", "None", False, True, None, end)


class FakeCluster:
    """As many jobs as wanted; their numbers go up."""

    def __init__(self):
        self.workers = {}
        self.scheduler = SimpleNamespace(workers={}, remove_worker=self.remove_worker)
        self.removed = []
        self.last = 0
        self.refusal = None

    def scale(self, jobs):
        for name in (f"w{i}" for i in range(jobs)):
            if name not in self.workers:
                self.last += 1
                self.workers[name] = SimpleNamespace(
                    job_id=None if self.refusal else str(self.last), refusal=self.refusal
                )

    def connect(self, name):
        self.scheduler.workers[name] = SimpleNamespace(name=name, address=f"tls://{name}")

    async def remove_worker(self, address, stimulus_id):
        self.removed.append(address)
        del self.scheduler.workers[address.removeprefix("tls://")]


class FakeSystem:
    title = "SLURM"

    def __init__(self):
        self.found = []

    async def jobs(self, name, ids):
        return self.found


@pytest.fixture
def keeper(tmp_path):
    cluster = FakeCluster()
    cluster.scale(2)
    return JobKeeper(cluster, FakeSystem(), "name", tmp_path, JOB)


def look(keeper, *found):
    keeper.system.found = list(found)
    asyncio.run(keeper._look())


def ids(keeper):
    return [job.job_id for job in keeper.cluster.workers.values()]


def test_job_that_has_ended_is_replaced_and_its_silent_worker_is_forgotten(keeper):
    keeper.cluster.connect("w0")
    keeper.cluster.connect("w1")
    look(keeper, running("1"), running("2"))
    assert ids(keeper) == ["1", "2"]
    look(keeper, running("2"))
    assert sorted(ids(keeper)) == ["2", "3"]
    assert keeper.cluster.removed == ["tls://w0"]
    assert not keeper.dead


def test_nothing_is_done_while_the_batch_system_does_not_answer(keeper):
    keeper.system.found = None
    asyncio.run(keeper._look())
    assert ids(keeper) == ["1", "2"]
    assert keeper.waiting() is None


def test_jobs_that_bring_no_worker_are_tried_again_and_then_reported_with_their_log(keeper, tmp_path):
    (tmp_path / "name-3.err").write_text("no module named chunkcal\n")
    look(keeper)
    assert len(keeper.dead) == 2
    assert sorted(ids(keeper)) == ["3", "4"]
    look(keeper, running("4"))
    with pytest.raises(
        ClusterError, match="job 3 ended before its worker came up; log: .*\n    no module named chunkcal"
    ):
        keeper.waiting()


def test_jobs_that_cannot_be_submitted_are_reported(keeper):
    keeper.cluster.workers.clear()
    keeper.cluster.refusal = "too many jobs"
    keeper.cluster.scale(2)
    look(keeper)
    look(keeper)
    with pytest.raises(ClusterError, match="a job could not be submitted: too many jobs"):
        keeper.waiting()


def test_dead_jobs_beside_living_workers_do_not_end_the_run(keeper):
    keeper.cluster.connect("w0")
    for _ in range(5):
        look(keeper, running("1"))
    assert len(keeper.dead) == jobkeeper.MAX_DEAD_IN_A_ROW
    assert "ended before its worker came up" not in (keeper.waiting() or "")
    n_submitted = keeper.cluster.last
    look(keeper, running("1"))
    assert keeper.cluster.last == n_submitted  # not for a while
    keeper.last_death -= jobkeeper.TRY_AGAIN_S
    look(keeper, running("1"))
    assert keeper.cluster.last >= n_submitted


def test_ends_are_the_batch_systems_own_or_reckoned_from_the_start(keeper):
    keeper.cluster.connect("w0")
    keeper.cluster.connect("w1")
    began = time.time()
    look(keeper, running("1", end=12345.0), running("2"))
    ends = keeper.ends()
    assert ends["tls://w0"] == 12345.0
    assert began + 3600 - 2 * jobkeeper.POLL_S < ends["tls://w1"] <= time.time() + 3600


def test_description_gives_numbers_reasons_and_what_is_not_up_yet():
    jobs = [BatchJob("1", "PENDING", "Priority", True, False), BatchJob("2", "PENDING", "Resources", True, False)]
    assert describe("SLURM", jobs, set()) == "SLURM: 2 job(s) pending (Priority, Resources)"
    assert describe("SLURM", [running("3")], set()) == "SLURM: 1 job(s) running whose workers are not up yet"
    assert describe("SLURM", [running("3")], {"3"}) == "SLURM: all jobs run"
