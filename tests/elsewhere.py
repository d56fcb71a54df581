"""Runs whose workers are started by something else than snakemake: what their tests have in common."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from background import Run
from pipeline import ROOT, columns, must_run, solutions
from tiny_ms import make_ms, write_sky_model

CALIBRATE = {
    "sky_model": "{ms_dir}/{obs}.skymodel",
    "solves": [{"name": "gain", "mode": "diagonal", "solint_s": 16, "maxiter": 20}],
}

# What is compared; the report would take longer than these.
TARGETS = ["results/a/a.ms"]


def observation(folder: Path, n_slots: int = 8) -> Path:
    """Write a MeasurementSet of four chunks, and its sky model beside it."""
    ms = make_ms(folder / "a.ms", n_slots=n_slots)
    write_sky_model(folder / "a.skymodel")
    return ms


def local_products(folder: Path, ms: Path) -> dict[str, np.ndarray]:
    """Run on this machine alone, and read what comes out."""
    must_run(folder, {"input": [str(ms)], "chunks": {"n_slots": 2}, "calibrate": CALIBRATE}, *TARGETS)
    return products(folder / "results")


def products(results: Path) -> dict[str, np.ndarray]:
    """Read the calibrated data and all solutions."""
    found = columns(results / "a/a.ms")
    files = sorted(results.rglob("*.h5"))
    assert files
    for file in files:
        found |= {f"{file.relative_to(results)}:{name}": value for name, value in solutions(file).items()}
    return found


def python_of(run: Run) -> str:
    """Python for workers that do not inherit this process's environment: with this checkout and the run's mark."""
    return f"env CHUNKCAL_TEST_RUN={run.folder} PYTHONPATH={ROOT / 'src'} {sys.executable}"
