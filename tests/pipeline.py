"""Run the pipeline as a user does, and plain DP3 as the reference to compare it with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import casacore.tables as ct
import h5py
import numpy as np
import yaml

from tiny_ms import run_dp3

ROOT = Path(__file__).parents[1]
COLUMNS = ("DATA", "FLAG", "WEIGHT_SPECTRUM", "UVW", "TIME")


def snakemake(folder: Path, config: Mapping[str, Any], *arguments: str, cores: int = 2) -> subprocess.CompletedProcess:
    """Run snakemake in `folder` with `config`; standard output and error come back as one text in ``stdout``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", "config.yaml", "--cores", str(cores), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "CHUNKCAL_RUN"}
    return subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600
    )


def must_run(folder: Path, config: Mapping[str, Any], *arguments: str, cores: int = 2) -> str:
    """As `snakemake`, but a failed run fails the test with its output."""
    done = snakemake(folder, config, *arguments, cores=cores)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def jobs_of(output: str) -> dict[str, int]:
    """Count the jobs of each rule that a run has executed, from its output."""
    counts: dict[str, int] = {}
    for line in output.splitlines():
        words = line.strip().rstrip(":").split()
        if len(words) == 2 and words[0] in ("rule", "localrule", "checkpoint", "localcheckpoint"):
            counts[words[1]] = counts.get(words[1], 0) + 1
    return counts


def plain_dp3(folder: Path, *runs: Mapping[str, object]) -> None:
    """Run DP3 without chunks, once per stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        run_dp3(folder, run)


def columns(ms: Path, names: tuple[str, ...] = COLUMNS) -> dict[str, np.ndarray]:
    """Read columns of the main table."""
    with ct.table(str(ms), ack=False) as table:
        return {name: table.getcol(name) for name in names}


def solutions(h5: Path) -> dict[str, np.ndarray]:
    """Read every dataset of an h5parm."""
    found = {}
    with h5py.File(h5) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def assert_same_bits(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """Compare bit for bit; NaN equals the same NaN."""
    assert set(one) == set(other)
    for name in one:
        assert one[name].shape == other[name].shape, name
        assert one[name].dtype == other[name].dtype, name
        differs = np.ascontiguousarray(one[name]).tobytes() != np.ascontiguousarray(other[name]).tobytes()
        assert not differs, f"{name}: {np.mean(one[name] != other[name]):.3g} of the values differ"
