"""The table of step parameters against the DP3 that runs, which says what no reader of its own has asked for."""

import re
import subprocess
import sys

import casacore.tables as ct
import pytest

import tiny_ms
from chunkcal import dp3
from chunkcal.planning.parameters import value_text
from chunkcal.planning.steps import REFUSED
from chunkcal.planning.stepschemas import table

# What a step must be given to start, and values without which it would not look at others.
BEAM = {"usebeammodel": True, "beamproximitylimit": 60}
SKY = {"sourcedb": "sky.skymodel"}
NEEDED = {
    "aoflagger": {"strategy": "flag.lua"},
    "applybeam": {"beammode": "array_factor"},
    "applycal": {"parmdb": "one.h5", "correction": "phase000", "solset": "sol000"},
    "clipper": SKY | BEAM,
    "columnreader": {"column": "DATA"},
    "combine": {"buffername": "model"},
    "ddecal": SKY | BEAM | {"h5parm": "out.h5", "directions": [["p0"], ["p1"]], "initialsolutions.h5parm": "two.h5"},
    "demixer": {"skymodel": "sky.skymodel", "subtractsources": ["p0"], "demixtimestep": 2, "demixfreqstep": 2},
    "flagtransfer": {"source_ms": "in.ms"},
    "gaincal": SKY | BEAM | {"parmdb": "gains.h5", "caltype": "diagonal"},
    "h5parmpredict": SKY | BEAM | {"applycal.parmdb": "two.h5", "applycal.correction": "phase000"},
    "madflagger": {"threshold": 5},
    "phaseshifter": {"phasecenter": ["0.5rad", "0.9rad"]},
    "predict": SKY | BEAM,
    "setbeam": {"direction": ["0.5rad", "0.9rad"]},
    "stationadder": {"stations": {"NEW": ["ST000", "ST001"]}},
    "transfer": {"source_ms": "in.ms", "data": True},
}
# Steps before that a step needs.
BEFORE = {"combine": {"type": "transfer", "source_ms": "in.ms", "data": True, "outputbuffername": "model"}}
# Parts that this build of DP3 does not have, or that need what no tiny data have; the Python step reads what it likes.
NOT_TRIED = {"idgpredict", "python", "sagecalpredict", "wgridderpredict", "null", *REFUSED}
# Parameters that DP3 asks for only beside others.
SELDOM = {
    "*": {"usefastpredict"},  # a build option
    "aoflagger": {"memorymax", "memoryperc"},
    "applycal": {"steps", "direction", "usemodeldata", "soltab"},
    "ddecal": {
        *("approxchunksize", "approximatetec", "approxtolerance", "maxapproxiter", "phasereference"),
        *("max_tec_delay_wraps", "faradaydiagonalmode", "faradaylimit", "rotationdiagonalmode", "rotationreference"),
        *("aterms", "savefacets", "idg.images", "idg.regions", "sagecalpredict", "smoothnessrefantenna", "usegpu"),
        *("modelnextsteps", "usemodelcolumn", "reusemodel", "modeldatacolumns", "lra.iterations"),
        "lra.power_iterations",
        *(f"solverlbfgs.{key}" for key in ("dof", "iter", "history", "minibatches", "min_solution", "max_solution")),
    },
    "demixer": {"targetsource", "instrumentmodel", "demixtimeresolution", "demixfreqresolution", "ntimechunk"},
    "gaincal": {
        *("applybeamtomodelcolumn", "modelcolumn", "usemodelcolumn", "reusemodel", "timeslotsperparmupdate"),
        *("direction", "invert", "skipstations", "updateweights", "usemodeldata"),  # of the beam on a model column
    },
    "msin": {"name", "missingdata", "modelcolumn", "baseline", "starttime", "starttimeslot", "endtime", "ntimes"}
    | {"weightcolumn", "flagcolumn", "extradatacolumns"},
    "msout": {"name", "overwrite", "storagemanager", "storagemanager.name", "clusterdesc", "vdsdir", "chunkduration"}
    | {f"storagemanager.{key}" for key in ("predict_level", "deflate_level", "sisco_mode")}
    | {f"storagemanager.{key}" for key in ("databitrate", "weightbitrate", "distribution", "disttruncation")}
    | {"storagemanager.normalization", "copycorrecteddata", "copymodeldata"},
}
# Further runs for those: step type, and what is given; None takes away what is needed otherwise.
RUNS = [
    (
        "ddecal",
        {"mode": "tec", "approximatetec": True, "approxchunksize": 1, "approxtolerance": 1e-3, "maxapproxiter": 2},
    ),
    ("ddecal", {"mode": "tec+phase", "phasereference": False, "maxiter": 2}),
    ("ddecal", {"mode": "tec+delay", "max_tec_delay_wraps": 2, "maxiter": 2}),
    ("ddecal", {"mode": "faradayrotation", "faradaydiagonalmode": "scalar", "faradaylimit": 1.0, "maxiter": 2}),
    ("ddecal", {"mode": "rotation+diagonal", "rotationdiagonalmode": "scalar", "rotationreference": True}),
    ("ddecal", {"smoothnessconstraint": 1e6, "smoothnessrefdistance": 1.0, "smoothnessrefantenna": "ST000"}),
    ("ddecal", {"solveralgorithm": "lowrank", "lra.iterations": 2, "lra.power_iterations": 2}),
    ("applycal", {"correction": "fulljones", "soltab": ["amplitude000", "phase000"], "direction": "[p0,p1]"}),
    (
        "applycal",
        {
            "correction": None,
            "steps": ["a", "p"],
            "a.correction": "amplitude000",
            "p.correction": "phase000",
            "invert": False,
        },
    ),
    ("preflagger", {"expr": "a or not b", "a.baseline": "ST000", "b.chan": [0, 1], "b.expr": "c", "b.c.blmin": 1.0}),
    ("predict", {"applycal.parmdb": "one.h5", "applycal.steps": ["a"], "applycal.a.correction": "phase000"}),
    ("demixer", {"othersources": ["p1"], "p1.phasecenter": ["0.6rad", "0.9rad"], "targetsource": ""}),
    ("gaincal", dict.fromkeys([*SKY, *BEAM]) | {"usemodelcolumn": True, "modelcolumn": "DATA"}),
    ("uvwflagger", {"uvlambdarange": ["0..10"], "wmmax": 1.0, "count.save": False, "phasecenter": "Moon"}),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dp3")
    tiny_ms.make_ms(folder / "in.ms", n_slots=4)
    with ct.table(str(folder / "in.ms/OBSERVATION"), readonly=False, ack=False) as table_:
        table_.putcol("TELESCOPE_NAME", ["MeerKAT"])  # a beam that needs neither coefficients nor subtables
    tiny_ms.write_sky_model(folder / "sky.skymodel", n_patches=2)
    (folder / "flag.lua").symlink_to(dp3.strategy_file("MeerKAT"))
    for name, directions in (("one.h5", "[[p0,p1]]"), ("two.h5", "[[p0],[p1]]")):
        run = {"msin": "in.ms", "msout": "", "steps": "[d]", "d.type": "ddecal", "d.sourcedb": "sky.skymodel"}
        tiny_ms.run_dp3(folder, run | {"d.h5parm": name, "d.directions": directions, "d.maxiter": 2})
    return folder


def not_asked_for(folder, step_type, given):
    """Run DP3 with one step and list the parameters that no reader asked for."""
    keys = {"msin": "in.ms", "msout": "out.ms", "msout.overwrite": True, "steps": []}
    if step_type in ("msin", "msout"):
        keys |= {f"{step_type}.{key}": value for key, value in given.items()}
    else:
        keys |= {"steps": ["x"], "x.type": step_type} | {f"x.{key}": value for key, value in given.items()}
    if step_type in BEFORE:
        keys |= {"steps": ["b", "x"]} | {f"b.{key}": value for key, value in BEFORE[step_type].items()}
    parset = folder / "dp3.parset"
    lines = [f"{key}={value_text(key, value)}\n" for key, value in keys.items()]
    parset.write_text("".join(lines) + "numthreads=1\ncheckparset=1\n")
    done = subprocess.run(
        [sys.executable, str(tiny_ms.DP3), parset.name],
        cwd=folder,
        env=tiny_ms.dp3_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    output = done.stdout + done.stderr
    unused = re.findall(r"^ +- (\S+)$", output, re.MULTILINE)
    # It says so after all steps have been made and set up; what happens to the data then is not asked here.
    assert done.returncode == 0 or unused or "Processing 4 time slots" in output, output[-1500:]
    return {key.partition(".")[2] for key in unused}


def defaults(step_type):
    seldom = SELDOM["*"] | SELDOM.get(step_type, set())
    words = {"bool": False, "channels": 0, "list": [], "text": "", "value": "", "number": 1.0, "count": 1, "integer": 1}
    return {
        name: spec.get("default", spec.get("values", [words.get(spec.get("type"))])[0])
        for name, spec in table()[step_type].items()
        if "type" in spec and name not in seldom
    } | NEEDED.get(step_type, {})


@pytest.mark.parametrize("step_type", sorted(set(table()) - NOT_TRIED))
def test_dp3_asks_for_what_the_table_has(folder, step_type):
    assert not_asked_for(folder, step_type, defaults(step_type)) == set()


@pytest.mark.parametrize(("step_type", "given"), RUNS)
def test_dp3_asks_for_the_rest_beside_others(folder, step_type, given):
    given = NEEDED.get(step_type, {}) | given
    assert not_asked_for(folder, step_type, {key: value for key, value in given.items() if value is not None}) == set()


@pytest.mark.parametrize(
    ("step_type", "names"),
    [
        ("aoflagger", {"pulsar", "pedantic"}),
        ("applybeam", {"beamproximitylimit", "onebeamperpatch"}),
        ("ddecal", {"idg.buffersize", "grouppredict", "sources"}),
        ("gaincal", {"minblperant"}),
        ("uvwflagger", {"beammode"}),
        ("msin", {"orderms"}),
    ],
)
def test_dp3_refuses_what_its_schemas_have_but_the_table_has_not(folder, step_type, names):
    given = NEEDED.get(step_type, {}) | dict.fromkeys(names, 1)
    assert not_asked_for(folder, step_type, given) == names
    assert not names & set(table()[step_type])
