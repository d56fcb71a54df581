"""A chunk that is made in pieces is, bit for bit, the chunk that one DP3 run makes, however long the pieces are."""

from pathlib import Path

import pytest

import tiny_ms
from chunkcal.cluster import task
from chunkcal.planning import requests
from chunkcal.planning.pieces import Uncuttable, halved
from chunkcal.planning.plan import make_plan

CHUNK = "t0001"
LOFAR_INTERVAL = 10.0139008  # not exact in binary
SETTINGS = {"command": "auto", "measures_dir": None, "task_timeout_s": 120}
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


def plan_for(data, interval, steps, factor=1, interpolation="nearest", solves=SOLVES):
    """Plan two chunks; all tests are about the second one, which begins somewhere in the data."""
    solves = [
        {key: value for key, value in solve.items() if key != "solint_slots"}
        | {"solint_s": solve["solint_slots"] * factor * interval}
        for solve in solves
    ]
    sections = {
        "chunks": {"n_slots": 24},
        "preprocess": {"steps": steps},
        "calibrate": {"sky_model": "", "solves": solves} if solves else None,
        "apply": {"interpolation": interpolation},
        "extra_inputs_dir": str(data),
    }
    entry = {"obs": "a", "ms": f"{data}/{interval}.ms", "sky_model": str(data / "a.skymodel")}
    return make_plan([entry], sections).observations["a"]


def make(folder, plan, stage, pieces=None, **inputs):
    """Run a stage of the chunk as a worker does; return path of the product, and record."""
    request = requests.chunk_request(plan, stage, CHUNK)
    links = {name.replace("in_ms", "in.ms"): str(path) for name, path in inputs.items()}
    request["run"]["links"] = request["run"]["links"] | links
    request |= {"name": f"{stage} a {CHUNK}", "log": str(folder.with_suffix(".log")), "pieces": pieces}
    folder.mkdir(parents=True)
    made = task.run_in(folder, request, SETTINGS, "test", 1, lambda: True)
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
