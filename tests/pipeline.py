"""Run the pipeline as a user does, or its parts without a cluster; and plain DP3, to compare it with."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import casacore.tables as ct
import h5py
import numpy as np
import yaml

from chunkcal import dp3
from chunkcal.join import dp3_times, join
from chunkcal.planning import requests
from chunkcal.solutions.merge import Grid, merge
from tiny_ms import DP3, dp3_environment, run_dp3

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


def complaints(output: str) -> list[str]:
    """List the lines of a run that are chunkcal's own, but for those about its progress and what it has chosen."""
    told = ("the cluster's dashboard is ", "watch the run ", "planning, since ", r"\w+ \d+/\d+", ".*: auto chose ")
    other = re.compile(f"chunkcal: ({'|'.join(told)})")
    return [line for line in output.splitlines() if line.startswith("chunkcal: ") and not other.match(line)]


def jobs_of(output: str) -> dict[str, int]:
    """Count the jobs of each rule that a run has executed, from its output."""
    counts: dict[str, int] = {}
    for line in output.splitlines():
        words = line.strip().rstrip(":").split()
        if len(words) == 2 and words[0] in ("rule", "localrule", "checkpoint", "localcheckpoint"):
            counts[words[1]] = counts.get(words[1], 0) + 1
    return counts


def dp3_of_any_version(folder: Path) -> str:
    """Make a DP3 that says to be of the version in the file ``version`` beside it."""
    (folder / "version").write_text("6.6.0")
    path = folder / "DP3"
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -v ] && {{ echo "DP3 $(cat {folder}/version)"; exit 0; }}\n'
        f'export AIPSPATH={dp3_environment()["AIPSPATH"]}\nexec {sys.executable} {DP3} "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def plain_dp3(folder: Path, *runs: Mapping[str, object]) -> None:
    """Run DP3 without chunks, once per stage."""
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        run_dp3(folder, run)


def run_request(folder: Path, request: Mapping[str, Any], **inputs: Path) -> Path:
    """Run the DP3 runs of a request in `folder` as a worker does; return the product's path."""
    folder.mkdir(parents=True)
    links = request["links"] | {name.replace("in_ms", "in.ms"): str(path) for name, path in inputs.items()}
    for name, target in links.items():
        (folder / name).symlink_to(target)
    if request["product"] == "solutions":
        (folder / "solutions").mkdir()
    for parset in request["parsets"]:
        (folder / "parset").write_text(dp3.parset_text(parset))
        done = subprocess.run(
            dp3.argv(dp3.find_command("auto"), "parset", 1),
            cwd=folder,
            env={**os.environ, **dp3.environment(1, command_is_users=False)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        if done.returncode:
            raise AssertionError(f"{dp3.describe_failure(done.returncode, done.stdout)}\n{parset}")
    return folder / request["product"]


def run_chunks(folder: Path, plan: dict[str, Any]) -> tuple[Path, dict[str, Path]]:
    """Run all stages of all chunks of a plan; return the joined MeasurementSet and the merged solutions by solve."""

    def stage(stage: str, chunk: str, **inputs: Path) -> Path:
        return run_request(folder / f"{stage}-{chunk}", requests.chunk_request(plan, stage, chunk)["run"], **inputs)

    names = [chunk["name"] for chunk in plan["chunks"]]
    parts = [stage("preprocess", name) for name in names]
    merged = {}
    if plan["solves"]:
        folders = [stage("calibrate", name, in_ms=part) for name, part in zip(names, parts, strict=True)]
        for solve in plan["solves"]:
            merged[solve] = folder / f"{solve}.h5"
            merge(
                [chunk / f"{solve}.h5" for chunk in folders],
                merged[solve],
                Grid.of(**requests.solution_grid(plan, solve)),
            )
        links = {f"{solve}.h5": path for solve, path in merged.items()}
        parts = [stage("apply", name, in_ms=part, **links) for name, part in zip(names, parts, strict=True)]
    times = requests.join_times(plan)
    join(parts, folder / "joined.ms", requests.join_expects(plan), times=times and dp3_times(**times))
    return folder / "joined.ms", merged


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
