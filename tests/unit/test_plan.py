import json

import pandas as pd
import pytest

import tiny_ms
from chunkcal import dp3
from chunkcal.errors import UserError
from chunkcal.planning import plan, requests
from chunkcal.planning.plan import make_plan

INTERVAL = 10.0139008


@pytest.fixture(scope="module")
def entry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my data")
    tiny_ms.make_ms(folder / "an obs.ms", n_slots=50, n_stations=3, missing=range(20, 33))
    tiny_ms.write_sky_model(folder / "sky.txt", n_patches=2)
    return {"obs": "an_obs", "ms": str(folder / "an obs.ms"), "sky_model": str(folder / "sky.txt")}


def sections(steps=(), chunks=None, solve=None, **changes):
    calibrate = {"sky_model": "sky.txt", "solves": [{"mode": "diagonal", "solint_s": 40, **(solve or {})}]}
    return {
        "chunks": chunks or {"n_slots": 10},
        "preprocess": {"steps": list(steps)},
        "calibrate": None if solve is None else calibrate,
        "apply": {"interpolation": "linear"},
        "extra_inputs_dir": None,
    } | changes


def one(entry, *args, **options):
    return make_plan([entry], sections(*args, **options)).observations["an_obs"]


def test_a_whole_plan(entry):
    found = one(entry, [{"Averager": {"timestep": 2, "freqstep": 2}}], solve={})
    assert (found["unit"]["n_slots"], found["chunk_length"], found["exact"]) == (4, 12, True)
    assert [(c["start_slot"], c["n_slots"]) for c in found["chunks"]] == [
        (0, 12),
        (12, 12),
        (24, 12),
        (36, 12),
        (48, 2),
    ]
    assert [c["n_rows"] for c in found["chunks"]] == [72, 48, 18, 72, 12]
    assert found["time_factor"] == 2
    data = found["data"]
    assert (data["interval_s"], data["n_slots"], data["n_channels"]) == (2 * INTERVAL, 25, 2)
    assert data["first_time"] == pytest.approx(tiny_ms.START + INTERVAL / 2, abs=1e-6)
    assert found["solves"]["gain"]["solint"] == 2
    assert found["solves"]["gain"]["start_s"] == pytest.approx(tiny_ms.START - INTERVAL / 2, abs=1e-6)
    assert set(found["runs"]) == set(found["memory_mb"]) == set(requests.STAGES)
    assert found["runs"]["calibrate"]["parsets"][0]["solve_gain.directions"] == "[[p0,p1]]"
    assert found["runs"]["calibrate"]["links"]["sky.skymodel"] == entry["sky_model"]
    assert any("rounded up to 12 slots" in note for note in found["notes"])
    assert any("gaps" in text for text in found["unit"]["rounding"])
    assert any("linear interpolation" in text for text in found["unit"]["rounding"])


def test_preprocessing_only(entry):
    found = one(entry)
    assert found["solves"] == {}
    assert [stage for stage, run in found["runs"].items() if run] == ["preprocess"]
    assert list(found["memory_mb"]) == ["preprocess"]


def test_files(entry, tmp_path):
    planned = make_plan([entry, entry | {"obs": "b"}], sections(solve={}))
    planned.write(tmp_path / "plan" / "chunks.tsv", tmp_path / "plan" / "observations.json")
    table = pd.read_csv(tmp_path / "plan" / "chunks.tsv", sep="\t")
    assert list(table.columns) == ("obs chunk start_slot n_slots start_time row_start n_rows n_gain exact".split())
    assert list(table["obs"].unique()) == ["an_obs", "b"]
    assert table["n_rows"].sum() == 2 * 37 * 6
    assert requests.load_plan(tmp_path / "plan" / "observations.json") == json.loads(json.dumps(planned.observations))
    text = (tmp_path / "plan" / "chunks.tsv").read_text()
    assert f"{tiny_ms.START:.9f}" in text


def test_the_plan_is_the_same_everywhere(entry, monkeypatch):
    steps = ["AOFlagger", {"Averager": {"timestep": 2}}]
    before = one(entry, steps, chunks={"length": "auto"}, solve={})
    monkeypatch.setattr("os.cpu_count", lambda: 1000)
    assert one(entry, steps, chunks={"length": "auto"}, solve={}) == before


def test_the_window_knows_the_solve(entry):
    # 50 slots are shorter than a window of 64, so the window is the observation, and there is one chunk.
    found = one(entry, ["AOFlagger"], solve={})
    assert found["runs"]["preprocess"]["parsets"][0]["aoflagger1.timewindow"] == "50"
    assert len(found["chunks"]) == 1


def test_inexact_steps(entry):
    steps = [{"MadFlagger": {"timewindow": 5}}]
    with pytest.raises(UserError, match="an_obs: .*MadFlagger"):
        one(entry, steps)
    assert one(entry, steps, chunks={"n_slots": 10, "allow_approximate": True})["exact"] is False
    assert one(entry, steps, chunks={"count": 1})["exact"] is True


@pytest.mark.parametrize(
    ("steps", "solve", "words"),
    [
        ([], {"mode": "leakageamplitude"}, "leakage"),
        ([], {"extra": {"solutions_per_direction": [3]}}, "does not divide"),
        ([{"Averager": {"freqstep": 3}}], {}, "divisor"),
        ([{"ApplyCal": {"parmdb": "none.h5"}}], None, "does not exist"),
        ([{"MsIn": {"datacolumn": "X_DATA"}}], None, "no column X_DATA"),
        ([{"MsIn": {"band": 1}}], None, "spectral window"),
        ([{"MsIn": {"band": "one"}}], None, "whole number"),
    ],
)
def test_mistakes_are_said_here(entry, steps, solve, words):
    with pytest.raises(UserError, match=words):
        one(entry, steps, solve=solve)


def test_no_sky_model(entry):
    with pytest.raises(UserError, match="an_obs: there is no sky model"):
        one(entry | {"sky_model": None}, solve={})


def test_stations_are_known_until_the_steps_change_them(entry):
    group = {"antenna_constraint": [["ST000", "XX001"]]}
    with pytest.raises(UserError, match="XX001"):
        one(entry, solve=group)
    found = one(entry, [{"StationAdder": {"stations": {"XX001": ["ST00[12]"]}}}], solve=group)
    assert found["data"]["n_baselines"] is None
    assert found["runs"]["preprocess"]["parsets"][0]["stationadder1.stations"] == "{XX001:[ST00[12]]}"


def test_memory_follows_the_measured_formulas(entry):
    found = one(entry, [{"AOFlagger": {"timewindow": 10}}], solve={"solint_s": 5 * INTERVAL})
    n = 6 * 4 * 4
    assert found["memory_mb"]["preprocess"] == -(-(plan.DP3_BYTES + 14.2 * 10 * n) // 1e6)
    assert found["memory_mb"]["calibrate"] == -(-(plan.DP3_BYTES + 48 * 5 * n) // 1e6)


def test_a_dp3_of_the_users(entry, tmp_path):
    own = tmp_path / "DP3"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    found = one(entry, ["AOFlagger"], dp3={"command": str(own)})
    assert "aoflagger1.strategy" not in found["runs"]["preprocess"]["parsets"][0]
    assert found["runs"]["preprocess"]["files"] == []


def test_files_of_the_user(entry, tmp_path):
    own = tmp_path / "my strategy.lua"
    own.write_text("")
    found = one(entry, [{"AOFlagger": {"strategy": own.name}}], extra_inputs_dir=str(tmp_path))
    assert found["runs"]["preprocess"]["files"] == [str(own)]
    assert one(entry, ["AOFlagger"])["runs"]["preprocess"]["files"] == []
    dp3.parset_text(found["runs"]["preprocess"]["parsets"][0])


def test_what_is_an_observations_own(entry, tmp_path):
    other = entry | {"obs": "other", "chunk_s": 20 * INTERVAL, "h5parm": str(tmp_path / "cal.h5")}
    plans = make_plan([entry, other], sections(chunks={"n_slots": 10})).observations
    assert (plans["an_obs"]["chunk_length"], plans["other"]["chunk_length"]) == (10, 20)
    with pytest.raises(UserError) as caught:
        make_plan([entry, other], sections([{"ApplyCal": {"parmdb": "{h5parm}"}}]))
    assert "an_obs: the configuration names {h5parm}" in caught.value.lines[0]
    assert f"{tmp_path / 'cal.h5'} does not exist" in caught.value.lines[1]


def test_problems_of_all_observations_at_once(entry, tmp_path):
    bad = {"obs": "bad", "ms": str(tmp_path / "no.ms"), "sky_model": str(tmp_path / "no.txt")}
    worse = {"obs": "worse", "ms": entry["ms"], "sky_model": str(tmp_path / "gone.txt")}
    with pytest.raises(UserError) as caught:
        make_plan([bad, entry, worse], sections(solve={}))
    assert len(caught.value.lines) == 3
    assert ["no.ms" in caught.value.lines[0], "no.txt" in caught.value.lines[1]] == [True, True]
    assert "gone.txt" in caught.value.lines[2]
