"""Whatever part of a run is killed, the data come out the same, and nothing stays behind."""

import os
import signal
import time
from pathlib import Path

import pytest

from background import wait_until
from chunkcal.cluster import state

KILLS_IN_A_RUN = 5


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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

    def a_dp3():
        try:
            return next((child for guard in run.find("usage.json") for child in children(guard)), None)
        except OSError:
            return None

    with count("SIGKILL of DP3", KILLS_IN_A_RUN):
        kill_between_chunks(run, dice, a_dp3, after=lambda _: None)
        run.must_finish()
        run.must_equal(clean)
        run.must_be_gone()


@pytest.mark.repeat(2, 1)
@pytest.mark.parametrize("part", ["worker", "guard"])
def test_worker_and_guard(make_run, clean, count, dice, part, repeat):
    """A worker's nanny lives in the supervisor, whose death is tried below; each DP3 has a guard above it."""
    run = make_run().start()
    dp3s = []

    def a_victim():
        """Find a worker (or its guard) that has a DP3, and remember that DP3."""
        try:
            for guard in run.find("usage.json"):
                worker = int(Path(f"/proc/{guard}/stat").read_text().rsplit(")", 1)[1].split()[1])
                dp3s[:] = children(guard)
                if dp3s:
                    return worker if part == "worker" else guard
        except OSError:
            pass
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
            old = run.find("usage.json")
            os.kill(run.wait_for("chunkcal.cluster.supervisor")[0], signal.SIGKILL)
            wait_until(lambda old=old: not any(map(state.start_time, old)), 2, "a guard has outlived its supervisor")
        run.must_finish()
        run.must_equal(clean)
        run.must_be_gone()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.repeat(10, 1)
def test_snakemake(make_run, clean, count, dice, number, repeat):
    run = make_run().start()
    run.wait_for("usage.json")
    time.sleep(dice.uniform(0, 2))
    with count(f"{number.name} of snakemake: all gone"):
        run.process.send_signal(number)
        assert run.process.wait(10) != 0
        run.must_be_gone(10)
    with count(f"{number.name} of snakemake: next run finishes"):
        run.must_finish_when_run_again(clean)


def test_state_folder_is_private_and_goes_away(make_run):
    run = make_run().start()
    guard = run.wait_for("usage.json")[0]
    words = Path(f"/proc/{guard}/environ").read_bytes().split(b"\0")
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


def parent_of(pid):
    """Parent of a process; None if it is dead."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def test_never_more_dp3_than_slots(make_run, clean):
    run = make_run().start()
    most = 0
    while run.process.poll() is None:
        guards = run.find("usage.json")
        # A guard's child is a guard by name until it has become DP3.
        most = max(most, sum(parent_of(guard) not in guards for guard in guards))
        time.sleep(0.02)
    run.must_finish()
    run.must_equal(clean)
    assert most == 2
