"""The two real MeasurementSets of DP3's own tests, through the whole pipeline. The project carries no copy of them."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from chunkcal import dp3
from chunkcal.planning.plan import make_plan
from pipeline import ROOT, assert_same_bits, columns, must_run, plain_dp3, run_chunks, solutions

SHARED = ROOT.parent / "shared/data"
pytestmark = pytest.mark.skipif(not SHARED.is_dir(), reason="the real MeasurementSets are not there")


def unpack(name: str, folder: Path) -> Path:
    with tarfile.open(SHARED / f"{name}.tgz") as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def test_lofar_hba_equals_plain_dp3(tmp_path):
    """28 baselines, 6 slots of 10.0139 s, an interval that is not exact in binary; 13 patches as one direction."""
    ms = unpack("tNDPPP-generic.MS", tmp_path)
    sky = SHARED / "tNDPPP-generic-skymodel.txt"
    config = {
        "input": [str(ms)],
        "preprocess": {"steps": [{"PreFlagger": {"baseline": "*&&&"}}, {"Averager": {"freqstep": 2}}]},
        "calibrate": {"sky_model": str(sky), "solves": [{"mode": "diagonal", "solint_s": 20.03}]},
        # Linear interpolation follows DP3's rounding of times, see `rounding` in the plan.
        "apply": {"interpolation": "nearest"},
        "chunks": {"n_slots": 2},
    }
    must_run(tmp_path / "run", config)
    patches = [line.split(",")[2].strip() for line in sky.read_text().splitlines() if line.startswith(", ,")]
    work = tmp_path / "plain"
    work.mkdir()
    (work / "raw.ms").symlink_to(ms)
    (work / "sky.txt").symlink_to(sky)
    plain_dp3(
        work,
        {
            "msin": "raw.ms",
            "msout": "preprocessed.ms",
            "steps": "[pre,avg]",
            "pre.type": "preflagger",
            "pre.baseline": "*&&&",
            "avg.type": "averager",
            "avg.freqstep": 2,
        },
        {
            "msin": "preprocessed.ms",
            "msout": "",
            "steps": "[solve]",
            "solve.type": "ddecal",
            "solve.mode": "diagonal",
            "solve.solint": 2,
            "solve.nchan": 0,
            "solve.sourcedb": "sky.txt",
            "solve.directions": f"[[{','.join(patches)}]]",
            "solve.h5parm": "solutions.h5",
            "solve.maxiter": 150,
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
            "apply.p.correction": "phase000",
        },
    )
    results = tmp_path / "run/results/tNDPPP-generic"
    assert_same_bits(solutions(results / "solutions/gain.h5"), solutions(work / "solutions.h5"))
    assert_same_bits(columns(results / "tNDPPP-generic.ms"), columns(work / "calibrated.ms"))


def test_lofar_hba_in_two_passes(tmp_path):
    """First one direction, then three on data with its solutions applied; two patches are subtracted in the end."""
    ms = unpack("tNDPPP-generic.MS", tmp_path)
    sky = str(SHARED / "tNDPPP-generic-skymodel.txt")
    patches = ["0002.2+3139", ["0010.1+3045", "0010.4+3329"], "0013.7+3441"]
    solves = [
        {"name": "phase", "mode": "scalarphase", "solint_s": 10.014},
        {"name": "gain", "mode": "diagonal", "solint_s": 20.03, "directions": patches},
    ]
    found = []
    for count in (3, 1):
        sections = {
            "chunks": {"count": count},
            "preprocess": {"steps": [{"PreFlagger": {"baseline": "*&&&"}}]},
            "calibrate": {"sky_model": sky, "solves": solves},
            "apply": {"interpolation": "nearest", "subtract": ["0002.2+3139", "0013.7+3441"]},
        }
        plan = make_plan([{"obs": "a", "ms": str(ms), "sky_model": sky}], sections).observations["a"]
        assert (len(plan["chunks"]), len(plan["runs"]["calibrate"]["parsets"])) == (count, 2)
        joined, merged = run_chunks(tmp_path / str(count), plan)
        found.append((columns(joined), {name: solutions(path) for name, path in merged.items()}))
    (ours, ours_h5), (whole, whole_h5) = found
    assert_same_bits(ours, whole)
    for name in ("phase", "gain"):
        assert_same_bits(ours_h5[name], whole_h5[name])
        assert np.isfinite(ours_h5[name]["sol000/phase000/val"]).mean() > 0.5  # one station has no data


def test_meerkat(tmp_path):
    """90 baselines, 5 slots of 8 s; all data are flagged, so the flags are cleared first."""
    ms = unpack("tDish.MS", tmp_path)
    ra, dec = 79.957, -45.7788  # deg: close to the phase centre, and what the source is does not matter here
    sky = tmp_path / "sky.txt"
    sky.write_text(f"FORMAT = Name, Type, Ra, Dec, I\nbright, POINT, {ra}deg, {dec}deg, 10.0\n")
    config = {
        "input": [str(ms)],
        "preprocess": {
            "steps": [
                {"PreFlagger": {"mode": "clear", "chan": "[0..nchan-1]"}},
                {"AOFlagger": {"timewindow": 2}},
            ]
        },
        "calibrate": {"sky_model": str(sky), "solves": [{"mode": "scalarphase", "solint_s": 16}]},
        "quality": {"on_quality_fail": "continue"},  # most of its 62 antennas are in no baseline
        "chunks": {"n_slots": 2},
    }
    must_run(tmp_path / "run", config)
    results = tmp_path / "run/results/tDish"
    whole = columns(results / "tDish.ms")
    assert whole["TIME"].size == 450
    assert not whole["FLAG"].all()
    phases = solutions(results / "solutions/gain.h5")["sol000/phase000/val"]
    assert phases.shape[0] == 3
    assert np.isfinite(phases).any()
    assert dp3.strategy_file("MeerKAT").name == "generic-default.lua"


def test_all_flagged_data_run_through(tmp_path):
    """The MeerKAT set as it is: nothing to solve on, and the run says so instead of failing."""
    ms = unpack("tDish.MS", tmp_path)
    sky = tmp_path / "sky.txt"
    sky.write_text("FORMAT = Name, Type, Ra, Dec, I\nbright, POINT, 79.957deg, -45.7788deg, 10.0\n")
    config = {
        "input": [str(ms)],
        "calibrate": {"sky_model": str(sky), "solves": [{"mode": "diagonal", "solint_s": 8}]},
        "quality": {"on_quality_fail": "continue"},
        "chunks": {"count": 3},
    }
    must_run(tmp_path / "run", config)
    results = tmp_path / "run/results/tDish"
    assert columns(results / "tDish.ms")["FLAG"].all()
    tables = solutions(results / "solutions/gain.h5")
    assert not tables["sol000/phase000/weight"].any()
