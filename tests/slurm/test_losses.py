"""SLURM takes a worker's job away while a chunk is at work on it: the data come out the same."""

import pytest
from slurm_run import preempt, with_job

from background import wait_until


@pytest.fixture
def up_again(bed):
    """Put every node back into service."""
    yield
    for node in bed.nodes():
        bed.call("scontrol", "update", f"nodename={node}", "state=resume")
    wait_until(lambda: set(bed.states()) == {"idle"}, 30, f"nodes are {bed.states()}")


def cancel(bed, job, node):
    bed.call("scancel", job)


def down(bed, job, node):
    bed.call("scontrol", "update", f"nodename={node}", "state=down", "reason=test")


def test_chunk_of_a_lost_job_runs_again_and_the_job_is_replaced(make_run, bed, clean, up_again):
    run = make_run(slow_s=3).start()
    lost = set()
    for take_away in (cancel, down, preempt):
        job, _, _, node = run.wait_for_chunk_on(other_than=lost)
        take_away(bed, job, node)
        lost.add(job)
    run.must_finish()
    run.must_equal(clean)
    assert run.log().count(" is gone, attempt ") == 3
    for job in lost:
        assert f"job {job} has ended; it is replaced" in run.log()
    run.must_have_cleaned_up()


def test_walltime(make_run, clean):
    """A chunk that is killed at walltime runs again; no chunk is begun that walltime would kill."""
    run = make_run(slow_s=9, cluster=with_job(walltime_min=1))
    dp3 = run.folder / "DP3"
    # The first one never ends, when nothing is known yet of how long a chunk takes.
    dp3.write_text(dp3.read_text().replace("\nsleep", f"\nmkdir {run.folder}/first && sleep 600\nsleep", 1))
    run.start()
    run.must_finish()
    run.must_equal(clean)
    assert run.log().count("attempt 1 of 21") == 1, run.log()
    assert "attempt 2 of 21" not in run.log()
    assert "ends before any waiting chunk would; it is given up" in run.log()
    run.must_have_cleaned_up()


def test_number_of_jobs_follows_the_chunks_that_wait(make_run, clean):
    run = make_run(slow_s=3, cluster=with_job(max_jobs=3)).start()
    run.wait_for_chunk_on()
    run.wait(lambda: len(run.jobs()) == 3, 30, "not three jobs")
    run.must_finish()
    run.must_equal(clean)
    run.must_have_cleaned_up()
