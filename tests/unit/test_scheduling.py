"""What chunkcal.scheduling changes in Snakemake is still needed, and does what it says; the unknown it leaves alone."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from chunkcal import scheduling

N_CHUNKS = 30
SNAKEFILE = """
import json
from chunkcal import scheduling

rule all:
    input: expand("second{n}", n=range(%d)), expand("third{n}", n=config.get("watched", []))

rule first:
    output: touch("first{n}")
    priority: 1 if config.get("early") else 0
    threads: 0
    resources: inflight=1

rule second:
    input: "first{n}"
    output: touch("second{n}")
    threads: 0
    resources: inflight=1

rule third:
    input: "first{n}", "second{n}"
    output: touch("third{n}")
    threads: 0
    resources: inflight=1

seen = {"offered": 0, "remaining": 0, "started": [], "names": []}

onstart:
    scheduler = workflow.scheduler
    seen["bound"] = scheduling.bound(workflow) if config["bound"] else {}
    select = scheduler._job_selector

    def look(jobs, remaining, *rest):
        chosen = select(jobs, remaining, *rest)
        seen["offered"] = max(seen["offered"], len(jobs))
        scheduler.running.add(None)  # while any job runs
        seen["remaining"] = max(seen["remaining"], len(scheduler.remaining_jobs))
        scheduler.running.remove(None)
        seen["started"] += [job.rule.name for job in chosen or []]  # None from a solver that was too slow
        seen["names"] += [str(job.output[0]) for job in chosen or [] if job.output]
        return chosen

    scheduler._job_selector = look

onsuccess:
    seen["sizes"] = len(workflow.scheduler._input_sizes)
    seen["limiter"] = workflow.scheduler.job_rate_limiter is not None
    seen["threads"] = workflow.scheduler._executor.pool._max_workers
    print(json.dumps(seen), file=open("seen.json", "w"))
"""


def run(folder, *, bound, scheduler="greedy", inflight=3, early=False, watched=()):
    (folder / "Snakefile").write_text(SNAKEFILE % N_CHUNKS)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--scheduler", scheduler, "--quiet", "all"]
    command += ["--resources", f"inflight={inflight}", "--config", f"bound={bound}", f"early={early}"]
    command += [f"watched={list(watched)}"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert all((folder / f"second{n}").exists() for n in range(N_CHUNKS))
    return json.loads((folder / "seen.json").read_text())


def test_snakemake_still_needs_it(tmp_path):
    # What fails here can go from chunkcal.scheduling: this Snakemake does it itself.
    seen = run(tmp_path, bound=False, inflight=20)
    assert seen["offered"] >= N_CHUNKS
    assert seen["remaining"] >= N_CHUNKS
    assert seen["sizes"] >= N_CHUNKS
    assert seen["limiter"]
    assert seen["threads"] < 20


def test_a_step_looks_only_at_jobs_that_can_start(tmp_path):
    seen = run(tmp_path, bound=True)
    assert seen["bound"] == {"timers": True, "rounds": True, "threads": True}
    assert seen["offered"] <= 3 + 1  # and the target
    assert seen["remaining"] == 0
    assert seen["sizes"] == 0
    assert not seen["limiter"]
    # A chunk goes on before another begins, so that no more than those in flight wait on the disk.
    begun = [seen["started"][:number].count("first") for number in range(len(seen["started"]))]
    ended = [seen["started"][:number].count("second") for number in range(len(seen["started"]))]
    assert max(first - second for first, second in zip(begun, ended, strict=True)) <= 2 * 3


def test_rules_of_a_higher_priority_come_first(tmp_path):
    seen = run(tmp_path, bound=True, early=True)
    assert seen["started"].index("second") >= N_CHUNKS - 3


def test_chunks_that_more_waits_for_come_first(tmp_path):
    watched = (7, 19, 28)
    seen = run(tmp_path, bound=True, watched=watched)
    assert set(seen["names"][:3]) == {f"first{n}" for n in watched}
    # A chunk goes on before another begins, so all that is made of these is there early.
    assert max(seen["names"].index(f"third{n}") for n in watched) < 3 * 3 + 2 * 3


def test_as_many_run_as_are_in_flight(tmp_path):
    assert run(tmp_path, bound=True, inflight=40)["threads"] >= 40


def test_another_scheduler_is_left_alone(tmp_path):
    pytest.importorskip("pulp")
    seen = run(tmp_path, bound=True, scheduler="ilp")
    assert not seen["bound"]["rounds"]


@pytest.mark.parametrize(
    "scheduler", [None, SimpleNamespace(), SimpleNamespace(resources={"inflight": 3}, running=set())]
)
def test_an_unknown_snakemake_is_left_alone(scheduler):
    found = scheduling.bound(SimpleNamespace(scheduler=scheduler, rules=[]))
    assert not any(found.values())
