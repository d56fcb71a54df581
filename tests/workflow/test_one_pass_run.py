"""Pre-processing and solving as one task: the same products as from two, also where one DP3 process cannot be had."""

import json
import shutil
import sys

import casacore.tables as ct
import numpy as np
import pytest

from chunkcal.simulate import Simulation, simulate
from pipeline import assert_same_bits, columns, jobs_of, must_run, snakemake, solutions
from tiny_ms import DP3

SETTINGS = Simulation("lofar", n_stations=5, n_slots=16, n_channels=8, rfi=0.0)
N_CHUNKS = 2


def config(ms, **changes):
    return {
        "input": [str(ms)],
        "preprocess": {"steps": [{"Averager": {"timestep": 2}}]},
        "calibrate": {"sky_model": "{ms_dir}/obs.skymodel", "solves": [{"mode": "diagonal", "solint_s": 8}]},
        "chunks": {"n_slots": 8},
        "cluster": {"n_slots": 2},
    } | changes


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    return simulate(SETTINGS, tmp_path_factory.mktemp("data") / "obs.ms").ms


@pytest.fixture(scope="module")
def in_two_tasks(ms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    jobs = jobs_of(must_run(folder, config(ms, keep_chunks=True)))
    assert (jobs["preprocess_chunk"], jobs["calibrate_chunk"]) == (N_CHUNKS, N_CHUNKS)
    return folder


def products(folder):
    return columns(folder / "results/obs/obs.ms") | solutions(folder / "results/obs/solutions/gain.h5")


def record(folder, stage, chunk="t0001"):
    return json.loads((folder / f"results/obs/{stage}/{chunk}.json").read_text())


def test_one_task_makes_the_same_bits_in_one_dp3_process(ms, in_two_tasks, tmp_path):
    jobs = jobs_of(must_run(tmp_path, config(ms)))
    assert "preprocess_chunk" not in jobs
    assert jobs["calibrate_chunk"] == N_CHUNKS
    assert_same_bits(products(tmp_path), products(in_two_tasks))
    for stage in ("preprocess", "calibrate"):
        one, two = record(tmp_path, stage), record(in_two_tasks, stage)
        assert one["parsets"] == two["parsets"]
        assert one["verified"]["digest"] == two["verified"]["digest"]
        assert [parset["steps"] for parset in one["one_pass"]] == ["[averager1,preprocessed,solve_gain,null]"]
    # One process: what it has used is told once, when it ran by both.
    assert "cpu_s" in record(tmp_path, "calibrate")
    assert "cpu_s" not in record(tmp_path, "preprocess")
    provenance = json.loads((tmp_path / "results/obs/provenance.json").read_text())["chunks"]
    assert provenance["preprocess"]["t0001"]["start"] == provenance["calibrate"]["t0001"]["start"]
    assert "calibrate includes pre-processing, in the same DP3" in (tmp_path / "results/report.html").read_text()
    assert (tmp_path / "logs/calibrate_chunk/obs.t0001.log").read_text().count("# calibrate obs t0001 on worker") == 1
    assert not list(tmp_path.glob("results/obs/*/*.ms"))


def test_chunks_that_were_kept_are_used(ms, in_two_tasks, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(in_two_tasks, folder, symlinks=True)
    jobs = jobs_of(must_run(folder, config(ms)))
    assert jobs == {"plan_chunks": 1, "write_provenance": 1, "write_crate": 1, "all": 1}  # which note the setting


def test_weights_are_settled_before_the_solve(tmp_path):
    """The data that a solve gets are then not those that pre-processing has made, so there is no one process."""
    ms = simulate(SETTINGS, tmp_path / "obs.ms").ms
    with ct.table(str(ms), readonly=False, ack=False) as table:
        weights = table.getcell("WEIGHT_SPECTRUM", table.nrows() - 1)
        table.putcell("WEIGHT_SPECTRUM", table.nrows() - 1, np.full_like(weights, np.nan))
    as_they_are = {"preprocess": {"steps": []}}
    must_run(tmp_path / "one", config(ms, **as_they_are))
    must_run(tmp_path / "two", config(ms, **as_they_are, keep_chunks=True))
    assert_same_bits(products(tmp_path / "one"), products(tmp_path / "two"))
    for chunk, n in (("t0000", None), ("t0001", weights.size)):
        settled = record(tmp_path / "one", "preprocess", chunk)
        assert settled["verified"].get("n_nan_weights") == n
        assert ("one_pass" in settled) == (n is None)


@pytest.fixture
def short_of_memory(tmp_path):
    """DP3 that has no room for two stages at once."""
    script = tmp_path / "dp3.sh"
    script.write_text(
        'if grep -q preprocessed "$1"; then echo "std::bad_alloc" >&2; exit 1; fi\n'
        f'exec "{sys.executable}" "{DP3}" "$@"\n'
    )
    return {"command": ["/bin/sh", str(script)]}


def test_stages_follow_each_other_where_one_process_fails(ms, in_two_tasks, short_of_memory, tmp_path):
    must_run(tmp_path / "run", config(ms, dp3=short_of_memory))
    assert_same_bits(products(tmp_path / "run"), products(in_two_tasks))
    assert "one_pass" not in record(tmp_path / "run", "calibrate")
    log = (tmp_path / "run/logs/calibrate_chunk/obs.t0001.log").read_text()
    assert "# stage by stage, because in one pass: DP3 ended with exit status 1 (out of memory)" in log


def test_a_chunk_that_cannot_be_solved_keeps_its_data(ms, in_two_tasks, tmp_path):
    """It is flagged if that is wanted; without, it stops the run and leaves nothing of the chunk."""
    script = tmp_path / "dp3.sh"
    script.write_text(
        'case "$(grep -l ddecal "$1"):$PWD" in parset*:*t0001*) echo "did not work" >&2; exit 3;; esac\n'
        f'exec "{sys.executable}" "{DP3}" "$@"\n'
    )
    changes = config(ms, dp3={"command": ["/bin/sh", str(script)]}, quality={"on_quality_fail": "continue"})
    done = snakemake(tmp_path / "run", changes)
    assert done.returncode != 0
    assert "chunkcal: calibrate obs t0001: DP3 ended with exit status 3: did not work" in done.stdout
    assert not list(tmp_path.glob("run/results/obs/*/t0001*"))
    changes["calibrate"]["on_bad_chunk"] = "flag"
    must_run(tmp_path / "run", changes)
    assert "failed" in record(tmp_path / "run", "calibrate")
    assert record(tmp_path / "run", "preprocess")["verified"] == record(in_two_tasks, "preprocess")["verified"]
