"""The pipeline inside one SLURM job, with a worker for each CPU of all its nodes."""

import os
import shlex
import signal
import subprocess

import pytest

from background import DP3_AT_WORK, GUARD, Run, wait_until
from chunkcal.cluster import state
from elsewhere import CALIBRATE, TARGETS, local_products, observation, products
from pipeline import assert_same_bits


class Job(Run):
    """A run whose snakemake is the batch script of a SLURM job with two nodes of two CPUs."""

    def __init__(self, folder, ms, slurm, slow_s, **allocation):
        super().__init__(folder, ms, slow_s)
        self.slurm = slurm
        self.config["cluster"] = {
            "backend": "allocation",
            "start_timeout_s": 180,
            "allocation": {"interface": "lo"} | allocation,
        }
        self.config["calibrate"] = CALIBRATE
        self.targets = TARGETS

    def start(self):
        """Submit the job; do not wait."""
        self.write_config()
        (self.folder / "job").write_text(f"#!/bin/sh\n{shlex.join(self.command(cores=4))}\necho $? >status\n")
        submitted = subprocess.run(
            # Memory is given, because a job without --mem has all of the partition's default for each CPU.
            ["sbatch", "--parsable", "-N2", "--ntasks-per-node=1", "-c2", "--mem=2000", "-t5", "-o", "output", "job"],
            cwd=self.folder,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            timeout=20,
            env=self.slurm.env | {"CHUNKCAL_TEST_RUN": str(self.folder)},
        )
        self.job = submitted.stdout.strip()
        # sbatch --wait would look only every 32 s.
        wait = f"while squeue --noheader --job {self.job} | grep -q .; do sleep 0.2; done; exit $(cat status || echo 1)"
        self.process = subprocess.Popen(
            ["sh", "-c", wait], cwd=self.folder, env=self.slurm.env, stderr=subprocess.DEVNULL
        )
        return self

    def text(self):
        """Return what snakemake has printed, if the job has begun."""
        return super().text() if (self.folder / "output").exists() else ""

    def must_be_gone(self, seconds=15):
        """No process of the run, and no job or step of it in the queue."""
        super().must_be_gone(seconds)
        for what in ((), ("--steps",)):
            queue = ["squeue", *what, "--noheader", "--job", self.job]
            done = subprocess.run(queue, env=self.slurm.env, capture_output=True, text=True, timeout=20)
            assert not done.stdout

    def close(self):
        """End the job, whatever it does."""
        if self.process:
            subprocess.run(["scancel", "--quiet", self.job], env=self.slurm.env, timeout=20)
        super().close()


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    return observation(tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def clean(ms, tmp_path_factory):
    """What a run on this machine alone makes of it."""
    return local_products(tmp_path_factory.mktemp("clean"), ms)


@pytest.fixture
def make_job(ms, slurm, tmp_path):
    """Make jobs that are ended with the test."""
    jobs = []

    def make(slow_s=0.5, **allocation):
        jobs.append(Job(tmp_path / "run", ms, slurm, slow_s, **allocation))
        return jobs[-1]

    yield make
    for job in jobs:
        job.close()


def test_gives_the_bytes_of_a_local_run_and_leaves_nothing(make_job, clean):
    job = make_job().start()
    most = 0
    while job.process.poll() is None:
        most = max(most, len(job.dp3s()))
    job.must_finish()
    assert most == 4
    job.must_be_gone()
    assert not (job.results / state.SHARED).exists()
    assert_same_bits(products(job.results), clean)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_outlives_snakemake(make_job, number):
    job = make_job(slow_s=30).start()
    job.wait_for(DP3_AT_WORK, 4)
    os.kill(job.find("-m snakemake --snakefile")[0], number)
    assert job.process.wait(30) != 0
    job.must_be_gone()


def test_scancel_leaves_nothing(make_job, slurm):
    job = make_job(slow_s=30).start()
    job.wait_for(DP3_AT_WORK, 4)
    subprocess.run(["scancel", job.job], env=slurm.env, check=True, timeout=20)
    assert job.process.wait(30) != 0
    job.must_be_gone()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_workers_outlive_srun_or_are_started_again(make_job, clean, number):
    job = make_job().start()
    job.wait_for(DP3_AT_WORK, 4)
    for pid in job.find("srun --overlap"):
        os.kill(pid, number)
    most = 0
    while job.process.poll() is None:
        most = max(most, len(job.dp3s()))
    job.must_finish()
    assert most <= 4
    job.must_be_gone()
    assert_same_bits(products(job.results), clean)


def test_killed_supervisor_is_replaced_with_its_workers(make_job):
    job = make_job().start()
    job.wait_for(DP3_AT_WORK, 4)
    old = job.find("distributed.cli.dask_spec") + job.find(GUARD)
    os.kill(job.find("chunkcal.cluster.supervisor")[0], signal.SIGKILL)
    wait_until(lambda: not any(map(state.start_time, old)), 10, "workers have outlived their supervisor by 10 s")
    job.must_finish()
    job.must_be_gone()


@pytest.mark.parametrize(
    ("allocation", "complaint"),
    [
        ({"python": "/no/python"}, "/no/python: No such file or directory"),
        ({"srun_args": ["--nodelist=node77"]}, "Requested node configuration is not available"),
        ({"processes_per_node": 3}, "More processors requested than permitted"),
    ],
    ids=["wrong python", "wrong argument", "too many processes"],
)
def test_step_that_cannot_start_is_said_with_its_reason(make_job, allocation, complaint):
    job = make_job(**allocation).start()
    assert job.process.wait(180) != 0
    lines = [line for line in job.text().splitlines() if "before any worker came up" in line]
    assert lines, job.text()
    assert complaint in lines[0]
    assert "Traceback" not in job.text()
    job.must_be_gone()
