"""Whatever part of a run is killed, the data come out the same, and nothing stays behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from background import DP3_AT_WORK, GUARD, parent_of, wait_until
from chunkcal.cluster import state

KILLS_IN_A_RUN = 5


def kill_between_chunks(run, dice, find, after):
    """Kill what `find` gives, `KILLS_IN_A_RUN` times, each time after another chunk has been finished."""
    finished = -1
    for _ in range(KILLS_IN_A_RUN):
        wait_until(lambda n=finished: len(run.records()) > n, 60, run.text())
        finished = len(run.records())
        time.sleep(dice.uniform(0, 0.8))
        victim = wait_until(find, 30, run.text())
        os.kill(victim, signal.SIGKILL)
        after(victim)


@pytest.mark.repeat(4, 1)
def test_dp3(make_run, clean, count, dice, repeat):
    run = make_run().start()

    with count("SIGKILL of DP3", KILLS_IN_A_RUN):
        kill_between_chunks(run, dice, lambda: next(iter(run.dp3s()), None), after=lambda _: None)
        run.must_finish()
        run.must_equal(clean)
        run.must_be_gone()


@pytest.mark.repeat(2, 1)
@pytest.mark.parametrize("part", ["worker", "guard"])
def test_worker_and_guard(make_run, clean, count, dice, part, repeat):
    """A worker's nanny lives in the supervisor, whose death is tried below; a guard is above each DP3."""
    run = make_run().start()
    dp3s = []

    def a_victim():
        """Find a worker (or its guard) that has a DP3, and remember that DP3."""
        for dp3 in run.dp3s():
            guard = parent_of(dp3)
            worker = parent_of(guard) if guard else None
            if worker:
                dp3s[:] = [dp3]
                return worker if part == "worker" else guard
        return None

    def dp3_is_gone(_):
        wait_until(lambda: not any(map(state.start_time, dp3s)), 2, f"DP3 {dp3s} has outlived its {part} by 2 s")

    with count(f"SIGKILL of a {part}", KILLS_IN_A_RUN):
        kill_between_chunks(run, dice, a_victim, dp3_is_gone)
        run.must_finish()
        run.must_equal(clean)
        run.must_be_gone()


@pytest.mark.repeat(5, 1)
def test_supervisor(make_run, clean, count, dice, repeat):
    """It holds the scheduler and the nannies; its workers and their DP3s must go with it."""
    run = make_run().start()
    with count("SIGKILL of the supervisor (scheduler, nannies)", 2):
        for n in (1, 3):
            wait_until(lambda n=n: len(run.records()) >= n, 60, run.text())
            time.sleep(dice.uniform(0, 1))
            old = run.find(GUARD) + run.dp3s()
            os.kill(run.wait_for("chunkcal.cluster.supervisor")[0], signal.SIGKILL)
            wait_until(lambda old=old: not any(map(state.start_time, old)), 2, "a guard has outlived its supervisor")
        run.must_finish()
        run.must_equal(clean)
        run.must_be_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.repeat(10, 1)
def test_snakemake(make_run, clean, count, dice, number, repeat):
    run = make_run().start()
    run.wait_for(DP3_AT_WORK)
    time.sleep(dice.uniform(0, 2))
    with count(f"{number.name} of snakemake: all gone"):
        run.process.send_signal(number)
        assert run.process.wait(10) != 0
        run.must_be_gone(10)
    with count(f"{number.name} of snakemake: next run finishes"):
        run.must_finish_when_run_again(clean)


def test_state_folder_is_private_and_goes_away(make_run):
    run = make_run().start()
    dp3 = run.wait_for(DP3_AT_WORK)[0]
    words = Path(f"/proc/{dp3}/environ").read_bytes().split(b"\0")
    folder = Path(next(word for word in words if word.startswith(b"CHUNKCAL_RUN=")).split(b"=", 1)[1].decode())
    assert folder.stat().st_mode & 0o777 == 0o700
    for name in ("submit", "tls-key.pem", "tls-cert.pem"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
    run.must_finish()
    assert not folder.exists()


def test_chunk_that_kills_every_dp3_is_named(make_run):
    run = make_run(cluster={"n_slots": 2, "worker_failures": 1})
    script = run.folder / "DP3"
    text = script.read_text()
    script.write_text(text.replace("sleep 1.0", 'grep -q "ntimes=2" "$1" && kill -9 $$'))
    run.start()
    assert run.process.wait(60) != 0
    assert "preprocess a t0000: DP3 was killed by SIGKILL" in run.text()
    assert run.text().count("chunkcal: preprocess a t0000") == 1
    run.must_be_gone()


def test_dp3_that_takes_too_long_is_killed(make_run):
    run = make_run(slow_s=60)
    run.config["dp3"]["task_timeout_s"] = 1
    run.start()
    assert run.process.wait(60) != 0
    assert "took longer than dp3.task_timeout_s = 1 s" in run.text()
    run.must_be_gone()


def test_never_more_dp3_than_slots(make_run, clean):
    run = make_run().start()
    most = 0
    while run.process.poll() is None:
        most = max(most, len(run.dp3s()))
        time.sleep(0.02)
    run.must_finish()
    run.must_equal(clean)
    assert most == 2
