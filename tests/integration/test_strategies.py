"""The shipped presets in time chunks: solutions and corrected data are bit for bit those of plain DP3.

Intervals and bandwidths are scaled to small observations; the references are parsets written by hand.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import yaml

from chunkcal.config import load_schema, validate
from chunkcal.planning.plan import make_plan
from chunkcal.simulate import Simulation, simulate
from pipeline import ROOT, assert_same_bits, columns, plain_dp3, run_chunks, solutions

OBSERVATIONS = {
    # Every chunk length below leaves a short tail, and the last solution intervals are short as well.
    "tail": Simulation("lofar", n_stations=6, n_slots=43, n_channels=8, n_patches=3, n_sources=6, peak_jy=200.0),
    "gaps": Simulation(
        "lofar", n_stations=5, n_slots=36, n_channels=8, n_patches=3, n_sources=3, missing_slots=((2, 4), (11, 20))
    ),
    "dead": Simulation("meerkat", n_stations=6, n_slots=32, n_channels=8, n_patches=3, n_sources=3, dead_stations=(2,)),
}
LENGTHS = (4, 8, 12, 28)
CASES = [("tail", length) for length in LENGTHS] + [("gaps", 8), ("dead", 12)]
# Solution interval in slots and channels per solution of each solve; DP3's keys as they follow from the presets.
RAPTHOR = {"maxiter": 150, "stepsize": 0.02, "tolerance": 5e-3}
DP3 = {"maxiter": 150, "stepsize": 0.2, "tolerance": 1e-4}
SMOOTH = {"smoothnessconstraint": 3e6, "smoothnessreffrequency": 144e6}
DIRECTIONS = {"uvlambdamin": 30, "solveralgorithm": "directioniterative"} | SMOOTH
STRATEGIES = {
    "di_gain": {"gain": {"mode": "diagonal", "solint": 2, "nchan": 4} | DP3},
    "bandpass": {
        "phase": {"mode": "scalarphase", "solint": 1, "nchan": 4} | RAPTHOR | SMOOTH,
        "bandpass": {"mode": "diagonal", "solint": 4, "nchan": 1} | DP3,
    },
    "phase_then_gain": {
        "phase": {"mode": "scalarphase", "solint": 1, "nchan": 4} | RAPTHOR | SMOOTH,
        "gain": {"mode": "diagonal", "solint": 4, "nchan": 2} | DP3,
    },
    "dd_facets": {
        "fast_phase": {"mode": "scalarphase", "solint": 1, "nchan": 4} | RAPTHOR | DIRECTIONS,
        "medium_phase": {"mode": "scalarphase", "solint": 2, "nchan": 8} | RAPTHOR | DIRECTIONS,
        "slow_gain": {"mode": "diagonal", "solint": 4, "nchan": 2} | RAPTHOR | DIRECTIONS,
    },
}


def preset(name, interval_s, channel_hz):
    """Load a preset and scale what depends on the size of the observation."""
    config = validate(
        yaml.safe_load((ROOT / f"config/presets/{name}.yaml").read_text()),
        load_schema(ROOT / "workflow/schemas/config.schema.yaml"),
    )
    for solve in config["calibrate"]["solves"]:
        wanted = STRATEGIES[name][solve["name"]]
        solve["solint_s"] = wanted["solint"] * interval_s
        solve["solution_bandwidth_hz"] = wanted["nchan"] * channel_hz
        if solve["min_uv_lambda"]:
            solve["min_uv_lambda"] = wanted["uvlambdamin"]
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    files = {name: simulate(settings, folder / f"{name}.ms") for name, settings in OBSERVATIONS.items()}
    return folder, files


@pytest.fixture(scope="module", params=STRATEGIES)
def reference(request, data):
    """What plain DP3 makes of each observation: all solves in one run, then all tables, the last solve's first."""
    folder, files = data
    name = request.param
    solves = STRATEGIES[name]
    first, *others = solves
    directional = name == "dd_facets"
    keys = {"msin": "raw.ms", "msout": "", "steps": f"[{','.join(solves)}]"}
    for solve, values in solves.items():
        keys |= {f"{solve}.{key}": value for key, value in values.items()}
        keys |= {f"{solve}.type": "ddecal", f"{solve}.h5parm": f"{solve}.h5"}
        keys |= {f"{solve}.keepmodel": "true"} if solve != list(solves)[-1] else {}
    keys |= {f"{first}.sourcedb": "sky.skymodel"}
    keys |= {f"{first}.directions": "[[patch0],[patch1],[patch2]]" if directional else "[[patch0,patch1,patch2]]"}
    keys |= {f"{solve}.reusemodel": f"[{first}.*]" for solve in others}
    tables = [
        (solve, table)
        for solve in reversed(solves)
        for table in (("phase000",) if solves[solve]["mode"] == "scalarphase" else ("amplitude000", "phase000"))
    ]
    apply = {"msin": "raw.ms", "msout": "calibrated.ms", "steps": "[apply]", "apply.type": "applycal"}
    apply["apply.steps"] = "[" + ",".join(f"a{i}" for i in range(len(tables))) + "]"
    for i, (solve, table) in enumerate(tables):
        apply |= {f"apply.a{i}.parmdb": f"{solve}.h5", f"apply.a{i}.correction": table}
        apply |= {f"apply.a{i}.interpolation": "nearest"}
        apply |= {f"apply.a{i}.direction": "[patch1]"} if directional else {}
    for observation in OBSERVATIONS:
        work = folder / f"plain {name} {observation}"
        work.mkdir()
        (work / "raw.ms").symlink_to(files[observation].ms)
        (work / "sky.skymodel").symlink_to(files[observation].sky_model)
        plain_dp3(work, keys, apply)
    return name, folder


@pytest.fixture(scope="module")
def chunked(reference, data, tmp_path_factory):
    """All cases of a strategy, two at a time."""
    name, _ = reference
    _, files = data

    def run(case):
        observation, length = case
        settings = OBSERVATIONS[observation].complete()
        sections = preset(name, settings.interval_s, settings.channel_width_hz) | {"chunks": {"n_slots": length}}
        sections["apply"] = {"interpolation": "nearest", "direction": "patch1" if name == "dd_facets" else None}
        entry = {"obs": observation, "ms": str(files[observation].ms), "sky_model": str(files[observation].sky_model)}
        plan = make_plan([entry], sections).observations[observation]
        return plan, *run_chunks(tmp_path_factory.mktemp(f"{name} {observation} {length}"), plan)

    with ThreadPoolExecutor(2) as pool:
        return name, dict(zip(CASES, pool.map(run, CASES), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_every_bit_is_that_of_plain_dp3(chunked, reference, case):
    name, results = chunked
    plain = reference[1] / f"plain {name} {case[0]}"
    plan, ms, merged = results[case]
    assert plan["exact"]
    assert len(plan["chunks"]) >= 2
    assert list(merged) == list(STRATEGIES[name])
    for solve, path in merged.items():
        ours, theirs = solutions(path), solutions(plain / f"{solve}.h5")
        assert_same_bits(ours, theirs)
        assert np.isfinite(ours["sol000/phase000/val"]).any()
    ours, theirs = columns(ms), columns(plain / "calibrated.ms")
    if case[0] == "gaps":  # UVW of slots that DP3 inserts follow the rounding of their time
        np.testing.assert_allclose(ours.pop("UVW"), theirs.pop("UVW"), rtol=0, atol=1e-5)
    assert_same_bits(ours, theirs)


def test_two_passes_are_those_of_plain_dp3(data, tmp_path):
    """First all patches together, then each by itself on corrected data; in the end one patch is subtracted."""
    _, files = data
    settings = OBSERVATIONS["tail"].complete()
    fast = {"mode": "scalarphase", "solint": 1, "nchan": 0} | RAPTHOR
    slow = {"mode": "diagonal", "solint": 4, "nchan": 0, "solveralgorithm": "directioniterative"} | DP3
    entry = {"obs": "a", "ms": str(files["tail"].ms), "sky_model": str(files["tail"].sky_model)}
    solves = [{"name": "fast", "mode": "scalarphase", "solint_s": settings.interval_s} | RAPTHOR]
    solves += [{"name": "slow", "mode": "diagonal", "solint_s": 4 * settings.interval_s, "directions": "patches"} | DP3]
    solves[1]["solver_algorithm"] = "directioniterative"
    sections = {
        "chunks": {"n_slots": 8},
        "preprocess": {"steps": []},
        "calibrate": {"sky_model": "", "solves": solves},
        "apply": {"interpolation": "nearest", "subtract": ["patch2"]},
    }
    plan = make_plan([entry], sections).observations["a"]
    ms, merged = run_chunks(tmp_path / "chunks", plan)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/raw.ms").symlink_to(files["tail"].ms)
    (tmp_path / "plain/sky.skymodel").symlink_to(files["tail"].sky_model)

    def solve(name, ms, directions, values):
        keys = {"type": "ddecal", "h5parm": f"{name}.h5", "sourcedb": "sky.skymodel", "directions": directions} | values
        return {"msin": ms, "msout": "", "steps": "[s]"} | {f"s.{key}": value for key, value in keys.items()}

    corrupt = {"a.parmdb": "slow.h5", "a.correction": "amplitude000", "p.parmdb": "slow.h5", "p.correction": "phase000"}
    plain_dp3(
        tmp_path / "plain",
        solve("fast", "raw.ms", "[[patch0,patch1,patch2]]", fast),
        {"msin": "raw.ms", "msout": "corrected.ms", "steps": "[a]", "a.type": "applycal", "a.parmdb": "fast.h5"}
        | {"a.correction": "phase000", "a.interpolation": "nearest"},
        solve("slow", "corrected.ms", "[[patch0],[patch1],[patch2]]", slow),
        {"msin": "corrected.ms", "msout": "residual.ms", "steps": "[h]", "h.type": "h5parmpredict"}
        | {"h.sourcedb": "sky.skymodel", "h.directions": "[[patch2]]", "h.operation": "subtract"}
        | {"h.applycal.parmdb": "slow.h5", "h.applycal.correction": "amplitude000", "h.applycal.steps": "[p,a]"}
        | {f"h.applycal.{key}": value for key, value in corrupt.items()},
    )
    for name in ("fast", "slow"):
        assert_same_bits(solutions(merged[name]), solutions(tmp_path / f"plain/{name}.h5"))
    assert_same_bits(columns(ms), columns(tmp_path / "plain/residual.ms"))


def test_every_preset_with_several_solves_is_tried_here():
    """The others are one solve of a mode that test_chunk_rules tries."""
    shipped = {path.stem: yaml.safe_load(path.read_text()) for path in Path(ROOT / "config/presets").glob("*.yaml")}
    assert {name for name, config in shipped.items() if len(config["calibrate"]["solves"]) > 1} <= set(STRATEGIES)
    for name, solves in STRATEGIES.items():
        assert [solve["name"] for solve in shipped[name]["calibrate"]["solves"]] == list(solves)
