"""Pre-processing and solving in one DP3 process make the same bits as one after the other, or are not put together."""

import pytest

from chunkcal.lineage import contents
from chunkcal.planning import requests
from chunkcal.planning.plan import make_plan
from chunkcal.simulate import Simulation, simulate
from pipeline import run_request

OBSERVATIONS = {
    "rfi": Simulation("lofar", n_stations=6, n_slots=24, n_channels=16, n_patches=2, n_sources=4),
    "gaps": Simulation("meerkat", n_stations=5, n_slots=22, n_channels=8, n_patches=2, missing_slots=((5, 11),)),
    "dead": Simulation("meerkat", n_stations=6, n_slots=20, n_channels=8, n_patches=2, dead_stations=(2,)),
}
AVERAGER = {"Averager": {"timestep": 2, "freqstep": 2}}
STEPS = {
    "nothing": [],
    "aoflagger": [{"AOFlagger": {"timewindow": 12}}, AVERAGER],
    "averager": [AVERAGER],
    "filter": [{"Filter": {"blrange": "[0,3000]"}}, AVERAGER],
    "filter that removes": [{"Filter": {"baseline": "!*&&&", "remove": True}}],
    "madflagger": [{"MADFlagger": {"timewindow": 1, "freqwindow": 5}}, AVERAGER],
    "phaseshift": [{"PhaseShift": {"phasecenter": "[2h31m49.09, 89d15m50.8]"}}, AVERAGER],
    "preflagger": [{"PreFlagger": {"chan": "[0,1]"}}, AVERAGER],
    "uvwflagger": [{"UVWFlagger": {"uvmrange": "[0..300]"}}, AVERAGER],
}
GAIN = {"name": "gain", "mode": "diagonal", "solint_s": 0, "directions": "patches", "solution_bandwidth_hz": 0}


def plan_of(made, steps, solve=None, **preprocess):
    sections = {
        "chunks": {"n_slots": 12, "allow_approximate": True},
        "preprocess": {"steps": steps} | preprocess,
        "calibrate": {"sky_model": "", "solves": [GAIN | {"solint_s": 4} | (solve or {})]},
        "apply": {},
    }
    entry = {"obs": "a", "ms": str(made.ms), "sky_model": str(made.sky_model)}
    return make_plan([entry], sections).observations["a"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {name: simulate(settings, folder / f"{name}.ms") for name, settings in OBSERVATIONS.items()}


@pytest.mark.parametrize(
    ("steps", "observation"),
    [(steps, observation) for steps in STEPS for observation in ("rfi", "gaps")]
    + [("nothing", "dead"), ("aoflagger", "dead")],
)
def test_one_pass_makes_the_bits_of_two(data, tmp_path, steps, observation):
    plan = plan_of(data[observation], STEPS[steps])
    for chunk in plan["chunks"]:
        found = requests.pass_request(plan, chunk["name"])
        first, second = (found["stages"][stage]["run"] for stage in ("preprocess", "calibrate"))
        ms = run_request(tmp_path / f"preprocess {chunk['name']}", first)
        gains = run_request(tmp_path / f"calibrate {chunk['name']}", second, in_ms=ms)
        both = run_request(tmp_path / f"one pass {chunk['name']}", found["one_pass"])
        assert contents.of_ms(both.parent / first["product"]) == contents.of_ms(ms)
        assert contents.of_h5parm(both / "gain.h5") == contents.of_h5parm(gains / "gain.h5")


def test_every_step_of_one_pass_is_tried(data):
    plans = [plan_of(data["rfi"], steps) for steps in STEPS.values()]
    parsets = [parset for plan in plans for parset in plan["runs"]["preprocess"]["parsets"]]
    tried = {value for parset in parsets for key, value in parset.items() if key.endswith(".type")}
    assert tried == set(requests.ONE_PASS_STEPS)


@pytest.mark.parametrize(
    ("steps", "solve"),
    [
        ([{"ScaleData": {}}], {}),
        ([{"MsOut": {"storagemanager": "dysco"}}], {}),
        ([], {"extra": {"usebeammodel": True}}),
        ([], {"solver_algorithm": "directioniterative"}),
    ],
    ids=["other step", "rounding storage", "beam", "one thread"],
)
def test_what_might_change_bits_runs_one_after_the_other(data, steps, solve):
    plan = plan_of(data["rfi"], steps, solve)
    assert requests.pass_request(plan, "t0000")["one_pass"] is None
