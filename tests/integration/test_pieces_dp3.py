"""A chunk that is made in pieces is, bit for bit, the chunk that one DP3 run makes, however long the pieces are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tiny_ms
from chunkcal.cluster import dp3run, task
from chunkcal.planning import requests
from chunkcal.planning.pieces import Uncuttable, halved
from chunkcal.planning.plan import make_plan

CHUNK = "t0001"
LOFAR_INTERVAL = 10.0139008  # not exact in binary
SETTINGS = {"measures_dir": None, "task_timeout_s": 120}
FLAG = [{"PreFlagger": {"corrtype": "auto"}}, {"AOFlagger": {"timewindow": 4}}]
# Several intervals in one DP3 run, then another one that applies these.
SOLVES = [
    {"name": "fast", "mode": "scalarphase", "solint_slots": 1},
    {"name": "slow", "mode": "diagonal", "solint_slots": 2},
    {
        "name": "patches",
        "mode": "diagonal",
        "solint_slots": 2,
        "directions": "patches",
        "solutions_per_direction": [2, 1],
    },
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """MeasurementSets of 46 slots, which end within a unit, by interval; and a sky model of two patches."""
    folder = tmp_path_factory.mktemp("pieces")
    for interval in (4.0, LOFAR_INTERVAL):
        ms = folder / f"{interval}.ms"
        tiny_ms.make_ms(ms, n_slots=46, interval_s=interval, n_stations=4, n_channels=4, noise=1.0)
    tiny_ms.write_sky_model(folder / "a.skymodel", n_patches=2)
    return folder


def plan_for(data, interval, steps, factor=1, interpolation="nearest", solves=SOLVES, chunks=None):
    """Plan two chunks; most tests are about the second one, which begins somewhere in the data."""
    solves = [
        {key: value for key, value in solve.items() if key != "solint_slots"}
        | {"solint_s": solve["solint_slots"] * factor * interval}
        for solve in solves
    ]
    sections = {
        "chunks": chunks or {"n_slots": 24},
        "preprocess": {"steps": steps},
        "calibrate": {"sky_model": "", "solves": solves} if solves else None,
        "apply": {"interpolation": interpolation},
        "extra_inputs_dir": str(data),
    }
    entry = {"obs": "a", "ms": f"{data}/{interval}.ms", "sky_model": str(data / "a.skymodel")}
    return make_plan([entry], sections).observations["a"]


def make(folder, plan, stage, pieces=None, chunk=CHUNK, command="auto", **inputs):
    """Run a stage of the chunk as a worker does; return path of the product, and record."""
    request = requests.chunk_request(plan, stage, chunk)
    links = {name.replace("in_ms", "in.ms"): str(path) for name, path in inputs.items()}
    request["run"]["links"] = request["run"]["links"] | links
    request |= {"name": f"{stage} a {chunk}", "log": str(folder.with_suffix(".log")), "pieces": pieces}
    folder.mkdir(parents=True)
    made = task.run_in(folder, request, SETTINGS | {"command": command}, "test", 1, lambda: True)
    return Path(made["product"]), made["record"]


def same_in_pieces(folder, plan, stage, lengths, **inputs):
    """Make the chunk whole, then in pieces of every length there is, in units; return the product."""
    whole, record = make(folder / stage, plan, stage, **inputs)
    pieces = None
    for n_units in lengths:
        pieces = halved(plan, stage, CHUNK, pieces)
        assert pieces["n_units"] == n_units
        product, again = make(folder / f"{stage} {n_units}", plan, stage, pieces, **inputs)
        assert again["verified"] == record["verified"]  # digests of all columns and datasets, flags, convergence
        assert len(again["argv"]) == len(pieces["runs"]) * len(record["argv"])
        counts = [sum(one["n_flagged"] for one in each["flag_steps"]) for each in (again, record)]
        assert counts[0] == counts[1]
        assert not list(product.parent.glob("piece*/out.ms"))
    with pytest.raises(Uncuttable, match="the shortest chunk of this plan has"):
        halved(plan, stage, CHUNK, pieces)
    return whole


@pytest.mark.parametrize(
    ("interval", "average", "interpolation", "lengths"),
    [
        (4.0, [], "linear", [3, 2, 1]),
        (LOFAR_INTERVAL, [{"Averager": {"timestep": 2, "freqstep": 2}}], "nearest", [3, 2, 1]),
    ],
    ids=["exact grid", "rounded grid"],
)
def test_preprocess_calibrate_and_apply(data, tmp_path, interval, average, interpolation, lengths):
    plan = plan_for(data, interval, FLAG + average, 1 + len(average), interpolation)
    ms = same_in_pieces(tmp_path, plan, "preprocess", lengths)
    solutions = same_in_pieces(tmp_path, plan, "calibrate", lengths, in_ms=ms)
    h5parms = {f"{name}.h5": solutions / f"{name}.h5" for name in plan["solves"]}
    same_in_pieces(tmp_path, plan, "apply", lengths, in_ms=ms, **h5parms)


DEMIX = {"skymodel": "a.skymodel", "subtractsources": "[p1]", "timestep": 2, "demixtimestep": 4, "demixfreqstep": 4}


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [
        # DP3 adds the half intervals of each average on its own.
        ([{"Averager": {"timestep": 2}}, {"Averager": {"timestep": 3}}], [2, 1]),
        ([{"Demixer": DEMIX}], [3, 2, 1]),
    ],
    ids=["two averages", "demixer"],
)
def test_times_of_steps_that_average(data, tmp_path, steps, lengths):
    plan = plan_for(data, LOFAR_INTERVAL, steps, solves=[])
    same_in_pieces(tmp_path, plan, "preprocess", lengths)


def write_dp3(folder, limit_kb):
    """Write a DP3 that may have so much address space and no more."""
    script = folder / "DP3"
    script.write_text(
        f'#!/bin/sh\nexport AIPSPATH={tiny_ms.dp3_environment()["AIPSPATH"]}\n[ "$1" = -v ] || ulimit -v {limit_kb}\n'
        f'exec {sys.executable} {tiny_ms.DP3} "$@"\n'
    )
    script.chmod(0o755)
    return str(script)


def runs_within(folder, limit_kb, keys):
    """Tell whether DP3 has enough memory for a run."""
    (folder / "parset").write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
    command = [write_dp3(folder, limit_kb), "parset", "numthreads=1"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True).returncode == 0


def test_real_dp3_that_has_really_no_memory(tmp_path):
    """With msin.startchan, casacore keeps all that it reads in memory: 70 MB more for 256 slots than for 16."""
    tiny_ms.make_ms(tmp_path / "4.0.ms", n_slots=256, n_stations=16, n_channels=64, interval_s=4.0)
    tiny_ms.write_sky_model(tmp_path / "a.skymodel")
    channels = {"startchan": 16, "nchan": 32}
    small = {"msin": "4.0.ms", "msin.ntimes": 16, "msout": "x.ms", "msout.overwrite": True, "steps": "[]"}
    small |= {f"msin.{key}": value for key, value in channels.items()}
    enough = next(kb for kb in range(260_000, 600_000, 20_000) if runs_within(tmp_path, kb, small))
    plan = plan_for(tmp_path, 4.0, [{"MsIn": channels}], solves=[], chunks={"count": 1})
    limited = {"command": write_dp3(tmp_path, enough)}
    with pytest.raises(dp3run.OutOfMemory, match="bad_alloc"):
        make(tmp_path / "whole", plan, "preprocess", chunk="t0000", **limited)
    pieces, made = None, None
    while made is None:
        pieces = halved(plan, "preprocess", "t0000", pieces)
        try:
            made = make(tmp_path / f"{pieces['n_units']}", plan, "preprocess", pieces, chunk="t0000", **limited)
        except dp3run.OutOfMemory:
            assert pieces["n_units"] > 16
    _, whole = make(tmp_path / "unlimited", plan, "preprocess", chunk="t0000")
    assert made[1]["verified"] == whole["verified"]
    assert made[1]["max_rss_kb"] < whole["max_rss_kb"] - 20_000
