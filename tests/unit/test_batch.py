import asyncio
import stat

import pytest

from chunkcal.cluster.backends import batch
from chunkcal.cluster.state import ClusterError

SQUEUE = """\
17|PENDING|Priority|1790000000|N/A
18|RUNNING|None|1790000000|1790003600
19|COMPLETING|None|1790000000|1790000100
20_[1-4]|PENDING|Resources|N/A|N/A
"""
QSTAT = """\
Job Id: 21.server
    Job_Name = ccal-x
    job_state = Q
    comment = Not Running: Insufficient amount of resource
\t: ncpus

Job Id: 22.server
    Job_Name = ccal-x
    job_state = R
    Error_Path = host:/a/b = c

Job Id: 23.server
    job_state = C

Job Id:\t24
\tJob_Name = ccal-x
\tjob_state = R
"""


def test_squeue_is_read():
    waiting, running, other = batch.parse_squeue(SQUEUE)
    assert (waiting.id, waiting.reason, waiting.pending, waiting.start) == ("17", "Priority", True, 1790000000)
    assert (running.id, running.running, running.end) == ("18", True, 1790003600)
    assert (other.reason, other.start, other.end) == ("Resources", None, None)


def test_qstat_is_read():
    waiting, running, wrapped = batch.parse_qstat(QSTAT)
    assert (waiting.id, waiting.pending) == ("21.server", True)
    assert waiting.reason == "Not Running: Insufficient amount of resource: ncpus"
    assert (running.id, running.running) == ("22.server", True)
    assert (wrapped.id, wrapped.running) == ("24", True)  # as SLURM's own qstat writes it


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Put a program of one's own on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name, script):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return make


def test_batch_system_that_does_not_answer_says_nothing_about_the_jobs(command):
    command("squeue", "echo Unable to contact slurm controller >&2; exit 1")
    assert asyncio.run(batch.Slurm().jobs("name", [])) is None
    assert asyncio.run(batch.Pbs().jobs("name", ["1"])) is None  # there is no qstat at all


def test_refusal_gives_slurms_words_without_its_marks(command):
    command("sbatch", 'echo "sbatch: error: invalid partition specified: x" >&2; echo "allocation failure" >&2; exit 1')
    assert batch.Slurm().refusal("script") == "invalid partition specified: x; allocation failure"
    command("sbatch", "echo sbatch: Job 3 to start at noon >&2")
    assert batch.Slurm().refusal("script") is None


def test_missing_commands_are_named(command):
    command("sbatch", "")
    with pytest.raises(ClusterError, match="there is no squeue on PATH"):
        batch.require_commands("slurm")


def test_tail_is_that_of_the_jobs_own_error_log(tmp_path):
    (tmp_path / "name-17.out").write_text("fine\n")
    (tmp_path / "name-17.err").write_text("\n".join(f"line {i}" for i in range(30)))
    (tmp_path / "name-18.err").write_text("another job\n")
    lines = batch.log_tail(tmp_path, "17", n_lines=2).splitlines()
    assert lines == [f"; log: {tmp_path / 'name-17.err'}", "    line 28", "    line 29"]
    assert batch.log_tail(tmp_path, "99") == ""
