"""``snakemake --profile slurm``, as its documentation says."""

import json
import time
from pathlib import Path

import pytest
from slurm_run import preempt, with_job

from chunkcal.simulate import Simulation, simulate
from pipeline import assert_same_bits, columns, jobs_of, must_run, solutions

CALIBRATE = {
    "preprocess": {"steps": [{"PreFlagger": {"baseline": "*&&&"}}, {"Averager": {"timestep": 2}}]},
    "calibrate": {"sky_model": "{ms_dir}/{obs}.skymodel", "solves": [{"mode": "diagonal", "solint_s": 16}]},
    "chunks": {"n_slots": 8},
}


@pytest.fixture(scope="module")
def observation(place):
    settings = Simulation("lofar", n_stations=5, n_slots=32, n_channels=8, rfi=0.0)
    (place / "observation").mkdir()
    return simulate(settings, place / "observation/obs.ms").ms


def test_calibrated_data_have_the_bytes_of_a_local_run(make_run, bed, observation, tmp_path):
    """Also when the job of the first heavy rule is preempted."""
    # Three nodes for workers, and one that is free for heavy rules.
    run = make_run(ms=observation, slow_s=None, heavy_rules_here=False, cluster=with_job(n_jobs=3), **CALIBRATE)
    run.start("--slurm-init-seconds-before-status-checks", "2")
    workers = run.wait_for_chunk_on()[1]

    def heavy_job():
        return next((row for row in run.jobs() if row[1] != workers and row[2] == "RUNNING"), None)

    preempt(bed, *run.wait(heavy_job, 120, "no heavy rule is at work")[::3])
    must_run(tmp_path, {"input": [str(observation)], "cluster": {"n_slots": 2}} | CALIBRATE)
    run.must_finish(400)  # the executor looks after its jobs ever more seldom
    run.must_have_cleaned_up()
    assert "dashboard: ssh -L 8787:127.0.0.1:" in run.text()
    local = tmp_path / "results"
    assert_same_bits(columns(run.results / "obs/obs.ms"), columns(local / "obs/obs.ms"))
    merged = [path.relative_to(local) for path in local.rglob("solutions*/*.h5")] or [Path("obs/solutions.h5")]
    for path in merged:
        assert_same_bits(solutions(run.results / path), solutions(local / path))
    record = json.loads((run.results / "obs/preprocess/t0000.json").read_text())
    assert record["threads"] == 2
    assert "numthreads=2" in record["argv"][0]
    assert (run.folder / "results/cluster.json").stat().st_uid == run.account.user.pw_uid
    assert list((run.folder / "logs/slurm").rglob("*.log")), "heavy rules are jobs of their own"
    heavy = ("merge_solutions", "judge_quality", "join_chunks", "write_report")
    assert run.text().count("SLURM jobid") == sum(jobs_of(run.text()).get(rule, 0) for rule in heavy)


def test_never_more_dp3s_than_slots_while_twenty_chunks_run_on_four(make_run, place):
    from tiny_ms import make_ms

    ms = make_ms(place / "input/b.ms", n_slots=40)
    run = make_run(ms=ms, slow_s=0.5, cluster=with_job(n_processes=2)).start()
    most = 0
    while run.process.poll() is None:
        most = max(most, len(run.dp3s()))
        time.sleep(0.05)
    run.must_finish()
    assert most == 4
    records = list(run.results.glob("b/preprocess/*.json"))
    assert len(records) == 20
    assert {json.loads(path.read_text())["threads"] for path in records} == {1}
    run.must_have_cleaned_up()
