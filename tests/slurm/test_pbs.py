"""The pbs backend, by the qsub, qstat and qdel that SLURM brings for those who come from PBS."""

import json

from slurm_run import CLUSTER, JOB


def pbs(account, **changes):
    """Give the cluster section; qsub does not take the environment along."""
    environment = [f"export {key}={value}" for key, value in account.environment.items()]
    return CLUSTER | {"backend": "pbs", "job": JOB | {"prologue": environment} | changes}


def test_run_on_pbs(make_run, account, clean):
    run = make_run(cluster=pbs(account, n_processes=2)).start()
    run.wait_for_chunk_on()
    assert {row[1] for row in run.jobs()} == {run.jobs()[0][1]}
    run.must_finish()
    run.must_equal(clean)
    assert {json.loads(path.read_text())["threads"] for path in run.records()} == {1}
    run.must_have_cleaned_up()


def test_jobs_are_deleted_with_the_run(make_run, account):
    run = make_run(slow_s=20, cluster=pbs(account)).start()
    run.wait_for_chunk_on()
    run.process.kill()
    run.process.wait(60)
    run.must_have_cleaned_up()
