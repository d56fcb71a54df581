"""However a run ends, no job of it stays in the queue."""

import json
import os
import signal
import stat

import pytest
from slurm_run import with_job

from strangers import RAW, ask, state_folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_to_snakemake(make_run, number):
    run = make_run(slow_s=20).start()
    run.wait_for_chunk_on()
    run.process.send_signal(number)
    assert run.process.wait(60) != 0
    run.must_have_cleaned_up()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_while_jobs_are_pending(make_run, number):
    run = make_run(cluster=with_job(extra_directives=["--begin=now+2hours"])).start()
    run.wait(run.jobs, 180, "nothing was submitted")
    run.process.send_signal(number)
    assert run.process.wait(60) != 0
    run.must_have_cleaned_up()


def test_snakemake_and_supervisor_killed_together(make_run):
    """Nobody is left who knows the jobs, but the process that only waits for this."""
    run = make_run(slow_s=20).start()
    run.wait_for_chunk_on()
    (key,) = run.results.glob(".chunkcal/*/tls-key.pem")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    scheduler = json.loads((state_folder(run) / "supervisor.json").read_text())["scheduler"]
    place = scheduler.removeprefix("tls://").split(":")
    assert ask(RAW, *place, key.with_name("tls-cert.pem"), key).startswith("let in")
    assert ask(RAW, *place, "none", "none").startswith("refused")
    supervisor = run.find("chunkcal.cluster.supervisor")
    for pid in (*supervisor, run.process.pid):
        os.kill(pid, signal.SIGKILL)
    run.process.wait(60)
    run.queue_must_be_empty()
    run.must_be_gone(30)
    # The next run removes the certificate, and finishes.
    run.call(run.python, "-m", "snakemake", "--profile", "slurm", "--unlock")
    (run.folder / "DP3").write_text((run.folder / "DP3").read_text().replace("sleep 20", "sleep 0"))
    run.start().must_finish()
    run.must_have_cleaned_up()


def test_job_of_a_heavy_rule_goes_with_a_killed_snakemake(make_run):
    run = make_run(slow_s=0, heavy_rules_here=False).start()
    run.wait(lambda: "rule join_chunks" in run.text() and "SLURM jobid" in run.text(), 90, "no join")
    run.process.kill()
    run.process.wait(60)
    run.must_have_cleaned_up()


def test_failed_chunk(make_run):
    run = make_run()
    when_tried = 'case "$PWD" in */chunkcal-check-*) exit 0;; esac'
    (run.folder / "DP3").write_text(f"#!/bin/sh\n{when_tried}\necho no such luck\nexit 3\n")
    run.start("--retries", "0")
    assert run.process.wait(90) != 0
    assert "no such luck" in run.text()
    run.must_have_cleaned_up()
