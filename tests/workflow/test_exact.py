"""Chunked equals unchunked, bit for bit, whatever the chunk length and the number of slots.

The reference is DP3 itself, run by hand once per stage over each whole MeasurementSet: it knows nothing of the plan,
and its parsets are written down here on their own.
"""

import numpy as np
import pytest

from chunkcal import dp3
from chunkcal.simulate import Simulation, simulate
from pipeline import assert_same_bits, columns, must_run, plain_dp3, solutions

WINDOW = 8  # slots that AOFlagger looks at
OBSERVATIONS = {
    # 50 slots: every chunk length below leaves a short tail, and the last solution interval is short as well.
    "lofar": Simulation("lofar", n_stations=6, n_slots=50, n_channels=16, n_sources=3),
    "meerkat": Simulation("meerkat", n_stations=7, n_slots=44, n_channels=12, n_sources=3, dead_stations=(3,), seed=2),
    # A gap inside a chunk, one over a boundary, one longer than the shortest chunk.
    "gaps": Simulation(
        "lofar", n_stations=5, n_slots=60, n_channels=8, missing_slots=((3, 5), (14, 18), (30, 43)), seed=3
    ),
    # One slot more than whole averages: DP3 must not be given it alone.
    "tail": Simulation("lofar", n_stations=4, n_slots=33, n_channels=8, n_nan_rows=5, seed=4),
}
# Chunk length in slots, and the number of DP3s at a time.
RUNS = {"8 slots, 1 at a time": (8, 1), "16, 2": (16, 2), "16, 4": (16, 4), "24, 2": (24, 2), "40, 4": (40, 4)}


def config(folder, length, n_slots):
    return {
        "input": [str(folder / f"{name}.ms") for name in OBSERVATIONS],
        "preprocess": {
            "steps": [
                {"PreFlagger": {"baseline": "*&&&"}},
                {"AOFlagger": {"timewindow": WINDOW}},
                {"Averager": {"timestep": 2, "freqstep": 2}},
            ]
        },
        "calibrate": {
            "sky_model": "{ms_dir}/{obs}.skymodel",
            "solves": [{"mode": "diagonal", "solint_s": 16, "maxiter": 50}],
        },
        "chunks": {"n_slots": length},
        "cluster": {"n_slots": n_slots},
        "keep_chunks": True,
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Simulated observations, and what plain DP3 makes of each."""
    folder = tmp_path_factory.mktemp("exact data")
    for name, settings in OBSERVATIONS.items():
        files = simulate(settings, folder / f"{name}.ms")
        strategy = dp3.strategy_file("LOFAR" if settings.telescope == "lofar" else "MeerKAT")
        work = folder / f"plain {name}"
        work.mkdir()
        for link, target in {"raw.ms": files.ms, "sky.skymodel": files.sky_model, "aoflagger.lua": strategy}.items():
            (work / link).symlink_to(target)
        patches = "[" + ",".join(f"patch{i}" for i in range(settings.n_patches)) + "]"
        plain_dp3(
            work,
            {
                "msin": "raw.ms",
                "msout": "preprocessed.ms",
                "steps": "[pre,aof,avg]",
                "pre.type": "preflagger",
                "pre.baseline": "*&&&",
                "aof.type": "aoflagger",
                "aof.strategy": "aoflagger.lua",
                "aof.timewindow": WINDOW,
                "aof.overlapperc": 0,
                "avg.type": "averager",
                "avg.timestep": 2,
                "avg.freqstep": 2,
            },
            {
                "msin": "preprocessed.ms",
                "msout": "",
                "steps": "[solve]",
                "solve.type": "ddecal",
                "solve.mode": "diagonal",
                "solve.solint": 2 if settings.telescope == "lofar" else 1,  # slots of 8 and 16 s after averaging
                "solve.nchan": 0,
                "solve.sourcedb": "sky.skymodel",
                "solve.directions": f"[{patches}]",
                "solve.h5parm": "solutions.h5",
                "solve.maxiter": 50,
                "solve.tolerance": 1e-4,
                "solve.stepsize": 0.2,
            },
            {
                "msin": "preprocessed.ms",
                "msout": "calibrated.ms",
                "steps": "[apply]",
                "apply.type": "applycal",
                "apply.parmdb": "solutions.h5",
                "apply.steps": "[a,p]",
                "apply.a.correction": "amplitude000",
                "apply.a.interpolation": "linear",
                "apply.p.correction": "phase000",
                "apply.p.interpolation": "linear",
            },
        )
    return folder


@pytest.fixture(scope="module", params=RUNS.values(), ids=RUNS.keys())
def run(request, data, tmp_path_factory):
    """One run of the pipeline over all observations."""
    folder = tmp_path_factory.mktemp("run")
    output = must_run(folder, config(data, *request.param))
    return folder, data, request.param[0], output


@pytest.mark.parametrize("name", ["lofar", "meerkat", "tail"])
def test_every_bit_is_that_of_plain_dp3(run, name):
    folder, data, _, _ = run
    plain = data / f"plain {name}"
    assert_same_bits(solutions(folder / f"results/{name}/solutions/gain.h5"), solutions(plain / "solutions.h5"))
    assert_same_bits(columns(folder / f"results/{name}/{name}.ms"), columns(plain / "calibrated.ms"))


def test_with_gaps_only_rounding_differs(run):
    folder, data, _, _ = run
    plain = data / "plain gaps"
    ours, theirs = columns(folder / "results/gaps/gaps.ms"), columns(plain / "calibrated.ms")
    assert_same_bits({"FLAG": ours["FLAG"], "TIME": ours["TIME"]}, {"FLAG": theirs["FLAG"], "TIME": theirs["TIME"]})
    # UVW of slots that DP3 inserts follow the rounding of their time, 1 us; a 60 km baseline turns by 4 um in that.
    np.testing.assert_allclose(ours["UVW"], theirs["UVW"], rtol=0, atol=1e-5)  # m
    np.testing.assert_array_equal(ours["WEIGHT_SPECTRUM"], theirs["WEIGHT_SPECTRUM"])
    good = ~ours["FLAG"]
    np.testing.assert_allclose(ours["DATA"][good], theirs["DATA"][good], rtol=1e-4, atol=1e-4)  # Jy


def test_there_were_chunks_of_the_length_asked_for(run):
    folder, _, length, _ = run
    rows = [line.split("\t") for line in (folder / "results/plan/chunks.tsv").read_text().splitlines()]
    starts = [int(row[rows[0].index("start_slot")]) for row in rows[1:] if row[0] == "lofar"]
    assert starts == list(range(0, 49, length))


def test_tail_joins_the_chunk_before_it(run):
    folder, _, length, _ = run
    rows = [line.split("\t") for line in (folder / "results/plan/chunks.tsv").read_text().splitlines()]
    counts = [int(row[rows[0].index("n_slots")]) for row in rows[1:] if row[0] == "tail"]
    assert sum(counts) == 33
    assert min(counts) > 1
