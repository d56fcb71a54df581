"""Chunked against unchunked, with real DP3 runs: the plan's promises, and that its units are not larger than needed.

The references are DP3 runs over whole MeasurementSets, with parsets written by hand.
"""

import shutil
from pathlib import Path

import casacore.tables as ct
import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal import dp3
from chunkcal.planning import requests
from chunkcal.planning.plan import make_plan
from chunkcal.planning.solves import MODES
from pipeline import run_chunks, run_request

LOFAR_INTERVAL = 10.0139008  # not exact in binary
SHARED = Path(__file__).parents[2].parent / "shared" / "data"
STRATEGY = dp3.strategies_dir() / "lofar-default.lua"
COLUMNS = ("TIME", "TIME_CENTROID", "UVW", "DATA", "FLAG", "WEIGHT_SPECTRUM", "INTERVAL", "EXPOSURE", "ANTENNA1")


# ---- running ---------------------------------------------------------------------------------------------


def plan_for(ms, steps, chunks, sky=None, solve=None, interpolation="nearest"):
    sections = {
        "chunks": chunks,
        "preprocess": {"steps": steps},
        "calibrate": {"sky_model": str(sky), "solves": [solve]} if solve else None,
        "apply": {"interpolation": interpolation},
        "extra_inputs_dir": str(Path(ms).parent),
    }
    return make_plan([{"obs": "a", "ms": str(ms), "sky_model": str(sky) if sky else None}], sections).observations["a"]


def whole(folder, ms, **keys):
    """One plain DP3 run over a whole MeasurementSet."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny_ms.run_dp3(folder, {"msin": ms} | {key.replace("__", "."): value for key, value in keys.items()})


# ---- comparing -------------------------------------------------------------------------------------------


def differences(one, other, columns=COLUMNS):
    """Name the columns whose bytes differ."""
    with ct.table(str(one), ack=False) as a, ct.table(str(other), ack=False) as b:
        assert a.nrows() == b.nrows()
        return [name for name in columns if a.getcol(name).tobytes() != b.getcol(name).tobytes()]


def same_solutions(one, other):
    with h5py.File(one) as a, h5py.File(other) as b:
        names = [name for name in a["sol000"] if isinstance(a["sol000"][name], h5py.Group)]
        assert names == [name for name in b["sol000"] if isinstance(b["sol000"][name], h5py.Group)]
        for name in names:
            for dataset in ("val", "weight", "time"):
                left, right = (f["sol000"][name][dataset][:] for f in (a, b))
                assert left.shape == right.shape
                assert left.tobytes() == right.tobytes(), (name, dataset)


# ---- everything at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "interpolation", "missing"),
    [
        (4.0, "linear", ()),
        (LOFAR_INTERVAL, "nearest", ()),
        (4.0, "nearest", (*range(11, 27), 30)),
    ],
)
def test_flag_average_solve_apply_join(tmp_path, interval, interpolation, missing):
    ms = tiny_ms.make_ms(tmp_path / "my obs.ms", n_slots=62, interval_s=interval, missing=missing, n_channels=8)
    sky = tiny_ms.write_sky_model(tmp_path / "it's.txt", n_patches=2)
    reference = tmp_path / "whole"
    whole(
        reference,
        ms,
        msout="pre.ms",
        steps="[p,f,a]",
        p__type="preflagger",
        p__corrtype="auto",
        f__type="aoflagger",
        f__strategy=STRATEGY,
        f__timewindow=12,
        f__overlapperc=0,
        a__type="averager",
        a__timestep=3,
        a__freqstep=2,
    )
    (reference / "sky.txt").symlink_to(sky)
    whole(
        reference,
        "pre.ms",
        msout="",
        steps="[c]",
        c__type="ddecal",
        c__sourcedb="sky.txt",
        c__h5parm="s.h5",
        c__directions="[[p0,p1]]",
        c__solint=2,
        c__nchan=2,
        c__mode="diagonal",
    )
    whole(
        reference,
        "pre.ms",
        msout="out.ms",
        steps="[z]",
        z__type="applycal",
        z__parmdb="s.h5",
        z__steps="[amp,phase]",
        z__amp__correction="amplitude000",
        z__amp__interpolation=interpolation,
        z__phase__correction="phase000",
        z__phase__interpolation=interpolation,
    )

    steps = [
        {"PreFlagger": {"corrtype": "auto"}},
        {"AOFlagger": {"timewindow": 12}},
        {"Averager": {"timestep": 3, "freqstep": 2}},
    ]
    solve = {"mode": "diagonal", "solint_s": 6 * interval, "solution_bandwidth_hz": 4 * 195312.5}
    # The 2 slots that are left of 62 are fewer than are averaged. One chunk of 12 slots has no data in the gap.
    for n_slots, n_chunks in ((12, 4 if missing else 5), (36, 2)):
        plan = plan_for(ms, steps, {"n_slots": n_slots}, sky, solve, interpolation)
        assert plan["unit"]["n_slots"] == 12
        assert len(plan["chunks"]) == n_chunks
        joined, merged = run_chunks(tmp_path / f"chunks {n_slots}", plan)
        same_solutions(merged["gain"], reference / "s.h5")
        # Slots that DP3 inserts into gaps get UVW from casacore, which rounds differently in each run.
        found = differences(joined, reference / "out.ms")
        assert [name for name in found if not (missing and name == "UVW")] == []


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
def test_the_real_lofar_observation(tmp_path):
    shutil.unpack_archive(SHARED / "tNDPPP-generic.MS.tgz", tmp_path, filter="data")
    sky = SHARED / "tNDPPP-generic-skymodel.txt"
    steps = [{"AOFlagger": {"timewindow": 2}}, {"Averager": {"timestep": 2, "freqstep": 4}}]
    solve = {"mode": "scalarphase", "solint_s": 20, "maxiter": 20}
    results = []
    for count in (1, 3):
        plan = plan_for(tmp_path / "tNDPPP-generic.MS", steps, {"count": count}, sky, solve)
        assert len(plan["chunks"]) == count
        results.append(run_chunks(tmp_path / str(count), plan))
    (one, merged_one), (three, merged_three) = results
    assert differences(one, three) == []
    same_solutions(merged_one["gain"], merged_three["gain"])


# ---- single rules ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An observation of 26 slots whose sky rotates fast enough for each rule to show."""
    folder = tmp_path_factory.mktemp("small")
    tiny_ms.make_ms(folder / "in.ms", n_slots=26, interval_s=4.0, n_stations=4, n_channels=8, noise=1.0)
    tiny_ms.write_sky_model(folder / "sky.skymodel", n_patches=2)
    return folder / "in.ms"


DEMIX = {"skymodel": "sky.skymodel", "subtractsources": "[p1]", "timestep": 2, "demixtimestep": 6, "demixfreqstep": 8}
GAINCAL = {"sourcedb": "sky.skymodel", "caltype": "diagonal", "solint": 5, "applysolution": True, "parmdb": "x.h5"}


@pytest.mark.parametrize(
    ("step", "unit", "wrong"),
    [
        ({"Averager": {"timestep": 4}}, 4, 2),
        ({"AOFlagger": {"timewindow": 8, "strategy": "lofar-default"}}, 8, 4),
        ({"Clipper": {"sourcedb": "sky.skymodel", "timestep": 3, "amplmax": 9}}, 3, None),
        ({"Demixer": DEMIX}, 6, 2),
        ({"GainCal": GAINCAL | {"propagatesolutions": False}}, 5, 3),
        ({"PhaseShift": {"phasecenter": "[28.9deg,51.8deg]"}}, 1, None),
        ({"Predict": {"sourcedb": "sky.skymodel", "operation": "subtract"}}, 1, None),
    ],
)
def test_a_step(small, tmp_path, step, unit, wrong):
    plan = plan_for(small, [step], {"n_slots": 1 if unit > 1 else 7})
    assert (plan["unit"]["n_slots"], plan["exact"]) == (unit, True)
    reference = run_request(tmp_path / "whole", plan["runs"]["preprocess"])
    joined, _ = run_chunks(tmp_path / "right", plan)
    assert differences(joined, reference) == []
    if wrong:
        # Boundaries off the unit do change the result, so the unit is not there for nothing.
        starts = [0, wrong, 13 // wrong * wrong]
        plan["chunks"] = [
            {"name": f"t{i:04d}", "start_slot": start, "n_slots": end - start, "row_start": 0, "n_rows": 0}
            for i, (start, end) in enumerate(zip(starts, [*starts[1:], 26], strict=True))
        ]
        plan["time_factor"] = min(plan["time_factor"], wrong)
        parts = [
            run_request(tmp_path / f"wrong-{i}", requests.chunk_request(plan, "preprocess", f"t{i:04d}")["run"])
            for i in range(len(starts))
        ]
        assert found_elsewhere(parts, reference)


def found_elsewhere(parts, reference):
    """Tell whether chunks, one after the other, differ from the reference in DATA or FLAG."""
    with ct.table(str(reference), ack=False) as table:
        wanted = [table.getcol(name) for name in ("DATA", "FLAG")]
    found = []
    for name in ("DATA", "FLAG"):
        columns = []
        for part in parts:
            with ct.table(str(part), ack=False) as table:
                columns.append(table.getcol(name))
        found.append(np.concatenate(columns))
    return any(a.shape != b.shape or a.tobytes() != b.tobytes() for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    "step",
    [
        {"MadFlagger": {"timewindow": 5, "freqwindow": 3, "threshold": 2}},
        {"GainCal": GAINCAL | {"maxiter": 4}},
        {"Demixer": DEMIX | {"propagatesolutions": True, "maxiter": 3}},
        {"AOFlagger": {"timewindow": 8, "overlapperc": 50, "strategy": "lofar-default"}},
    ],
)
def test_a_step_that_is_inexact(small, tmp_path, step):
    plan = plan_for(small, [step], {"n_slots": 1, "allow_approximate": True})
    assert plan["exact"] is False
    length = max(plan["chunk_length"], 10)
    plan = plan_for(small, [step], {"n_slots": length, "allow_approximate": True})
    reference = run_request(tmp_path / "whole", plan["runs"]["preprocess"])
    joined, _ = run_chunks(tmp_path / "chunks", plan)
    assert found_elsewhere([joined], reference)


@pytest.mark.parametrize("interval", [4.0, LOFAR_INTERVAL])
def test_short_tails_and_two_averages(tmp_path, interval):
    """With 2 x 3 slots averaged, 26 slots in chunks of 12 leave 2: they join the second chunk."""
    ms = tiny_ms.make_ms(tmp_path / "in.ms", n_slots=26, interval_s=interval, n_stations=3)
    steps = [{"Averager": {"timestep": 2}}, {"Averager": {"timestep": 3}}]
    plan = plan_for(ms, steps, {"n_slots": 12})
    assert [chunk["n_slots"] for chunk in plan["chunks"]] == [12, 14]
    joined, _ = run_chunks(tmp_path / "chunks", plan)
    assert differences(joined, run_request(tmp_path / "whole", plan["runs"]["preprocess"])) == []


@pytest.mark.parametrize("interval", [4.0, LOFAR_INTERVAL])
def test_chunks_that_begin_and_end_in_gaps(tmp_path, interval):
    ms = tiny_ms.make_ms(
        tmp_path / "in.ms", n_slots=30, interval_s=interval, n_stations=3, missing=(4, 5, 6, *range(10, 19), 25)
    )
    plan = plan_for(ms, [], {"n_slots": 5})
    assert [chunk["start_slot"] for chunk in plan["chunks"]] == [0, 5, 15, 20, 25]
    joined, _ = run_chunks(tmp_path / "chunks", plan)
    reference = run_request(tmp_path / "whole", plan["runs"]["preprocess"])
    assert [name for name in differences(joined, reference) if name != "UVW"] == []
    with ct.table(str(joined), ack=False) as a, ct.table(str(reference), ack=False) as b:
        assert np.abs(a.getcol("UVW") - b.getcol("UVW")).max() < 1e-4


def test_slots_that_are_off_the_grid(tmp_path):
    """Some milliseconds either way: no slot is lost, none is doubled, and TIME is that of the whole run."""
    ms = tiny_ms.make_ms(tmp_path / "in.ms", n_slots=12, interval_s=4.0, n_stations=3)
    with ct.table(str(ms), readonly=False, ack=False) as table:
        offsets = np.repeat([0, 4e-3, -4e-3, 2e-3] * 3, 6)
        table.putcol("TIME", table.getcol("TIME") + offsets)
    plan = plan_for(ms, [], {"n_slots": 1})
    parts = [
        run_request(tmp_path / chunk["name"], requests.chunk_request(plan, "preprocess", chunk["name"])["run"])
        for chunk in plan["chunks"]
    ]
    reference = run_request(tmp_path / "whole", plan["runs"]["preprocess"])
    assert not found_elsewhere(parts, reference)


# ---- every mode ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"leakageamplitude"}))
def test_every_mode_is_solved_and_applied(small, tmp_path, mode):
    sky = small.parent / "sky.skymodel"
    steps = [{"PreFlagger": {"corrtype": "auto"}}]
    plan = plan_for(small, steps, {"count": 1}, sky, {"mode": mode, "solint_s": 16})
    joined, merged = run_chunks(tmp_path, plan)
    with h5py.File(merged["gain"]) as file:
        tables = [group for group in file["sol000"].values() if isinstance(group, h5py.Group)]
        assert {len(group["time"]) for group in tables} == {7}
    assert requests.solution_grid(plan, "gain")["counts"] == [7]
    with ct.table(str(joined), ack=False) as table, ct.table(str(small), ack=False) as raw:
        good = ~table.getcol("FLAG")
        assert np.isfinite(table.getcol("DATA")[good]).all()
        assert (table.getcol("DATA")[good] != raw.getcol("DATA")[good]).any()
