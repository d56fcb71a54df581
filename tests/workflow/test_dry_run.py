"""A dry run shows every job of the run, on a machine without data and without SLURM, and makes nothing."""

import subprocess
import sys

import pytest

from elsewhere import CALIBRATE, observation
from pipeline import ROOT, complaints, jobs_of, must_run, snakemake


def files(folder):
    """List what there is, but for Snakemake's own notes."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if ".snakemake" not in path.parts)


def test_jobs_are_those_of_the_run(tmp_path):
    ms = observation(tmp_path, n_slots=8)
    config = {"input": [str(ms)], "chunks": {"n_slots": 2}, "calibrate": CALIBRATE}
    work = tmp_path / "work"
    dry = must_run(work, config, "--dry-run")
    assert files(work) == ["config.yaml"]
    wanted = jobs_of(must_run(work, config))
    assert wanted["apply_chunk"] == 4
    assert jobs_of(dry) == wanted


@pytest.mark.parametrize("words", [("--cores", "2"), ("--profile", str(ROOT / "slurm"))], ids=["default", "slurm"])
def test_the_demo_without_data(tmp_path, words):
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", *words]
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text((ROOT / "config/config.yaml").read_text())
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:]
    jobs = jobs_of(done.stdout)
    assert (jobs["simulate_demo"], jobs["calibrate_chunk"], jobs["join_chunks"]) == (2, 9, 2)
    assert files(tmp_path) == ["config", "config/config.yaml"]


def test_what_planning_refuses_is_told_by_a_dry_run(tmp_path):
    done = snakemake(tmp_path / "work", {"input": [str(tmp_path / "no.ms")]}, "--dry-run")
    assert done.returncode != 0
    assert [line for line in complaints(done.stdout) if "no.ms does not exist" in line]
    assert "Traceback" not in done.stdout
