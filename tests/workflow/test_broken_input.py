"""Broken input of every kind: exit status 1, one clear line with the remedy, no traceback, nothing that looks whole.

What is found when the plan is made is tried without Snakemake, in the way of the rule's own script.
"""

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import casacore.tables as ct
import h5py
import numpy as np
import pytest
import yaml

import tiny_ms
from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError
from chunkcal.inputs import resolve_observations
from chunkcal.logs import rule_log
from chunkcal.planning.plan import make_plan
from pipeline import ROOT, complaints, must_run, snakemake

SCHEMA = load_schema(ROOT / "workflow/schemas/config.schema.yaml")
SOLVE = {"mode": "diagonal", "solint_s": 20}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of input that works; tests break a copy."""
    folder = tmp_path_factory.mktemp("whole")
    tiny_ms.make_ms(folder / "obs.ms", n_slots=8, n_stations=4)
    tiny_ms.write_sky_model(folder / "sky.txt")
    run = {"msin": "obs.ms", "msout": "", "steps": "[d]", "d.type": "ddecal", "d.sourcedb": "sky.txt"}
    tiny_ms.run_dp3(folder, run | {"d.h5parm": "gains.h5", "d.maxiter": 2, "d.directions": "[[p0]]"})
    (folder / "steps.yaml").write_text("steps:\n  - Averager: {timestep: 2}\n")
    (folder / "sheet.tsv").write_text(f"obs\tms\nobs\t{folder / 'obs.ms'}\n")
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy to break, and the current folder."""
    shutil.copytree(whole, tmp_path / "in", symlinks=True)
    return tmp_path / "in"


def config(folder, **changes):
    return {
        "input": [str(folder / "obs.ms")],
        "extra_inputs_dir": str(folder),
        "preprocess": {"steps": [{"Averager": {"timestep": 2}}]},
        "calibrate": {"sky_model": "sky.txt", "solves": [SOLVE]},
        "chunks": {"n_slots": 4},
        "cluster": {"n_slots": 2},
    } | changes


# ---- how to break things --------------------------------------------------------------------------------


def table(folder, name=""):
    return ct.table(str(folder / "obs.ms" / name), readonly=False, ack=False)


def put(column, values, name=""):
    """Change a column of the MeasurementSet: `values` makes the new ones out of the old ones."""

    def change(folder):
        with table(folder, name) as opened:
            opened.putcol(column, values(opened.getcol(column)))

    return change


def text(name, content):
    def change(folder):
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return change


def remove(name):
    def change(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def cut(name, share):
    def change(folder):
        path = folder / name
        os.truncate(path, int(path.stat().st_size * share))

    return change


def rows(condition):
    """Keep the rows that fulfil a TaQL condition."""

    def change(folder):
        with table(folder) as opened, opened.query(condition) as kept:
            kept.copy(str(folder / "some.ms"), deep=True, valuecopy=True).close()
        shutil.rmtree(folder / "obs.ms")
        (folder / "some.ms").rename(folder / "obs.ms")

    return change


def no_data(folder):
    with table(folder) as opened:
        opened.renamecol("DATA", "MODEL_DATA")


def second_row(name):
    """Give a subtable a second row."""

    def change(folder):
        with table(folder, name) as opened:
            opened.addrows(1)
            for column in opened.colnames():
                if opened.iscelldefined(column, 0):
                    opened.putcell(column, 1, opened.getcell(column, 0))

    return change


def two_windows(folder):
    second_row("SPECTRAL_WINDOW")(folder)
    second_row("DATA_DESCRIPTION")(folder)
    put("DATA_DESC_ID", lambda old: np.arange(len(old), dtype=np.int32) % 2)(folder)


def just_a_folder(folder):
    shutil.rmtree(folder / "obs.ms")
    (folder / "obs.ms").mkdir()


def just_a_table(folder):
    shutil.rmtree(folder / "obs.ms")
    ct.table(str(folder / "obs.ms"), ct.maketabdesc([ct.makescacoldesc("TIME", 0.0)]), nrow=3, ack=False).close()


def other_stations(folder):
    with h5py.File(folder / "gains.h5", "r+") as file:
        for soltab in (group for group in file["sol000"].values() if isinstance(group, h5py.Group)):
            if "ant" in soltab:
                soltab["ant"][:] = np.array([f"XX{i:03d}" for i in range(len(soltab["ant"]))], soltab["ant"].dtype)


def no_soltabs(folder):
    with h5py.File(folder / "gains.h5", "r+") as file:
        for name in [key for key, group in file["sol000"].items() if isinstance(group, h5py.Group)]:
            del file["sol000"][name]


def no_axes(folder):
    with h5py.File(folder / "gains.h5", "r+") as file:
        del file["sol000/phase000/val"].attrs["AXES"]


def nothing(folder):
    pass


HEAD = "FORMAT = Name, Type, Patch, Ra, Dec, I\n, , p0, 1:2:3, +4.5.6\n"
APPLY = {"preprocess": {"steps": [{"ApplyCal": {"parmdb": "gains.h5"}}]}}


def steps(*entries):
    return {"preprocess": {"steps": list(entries)}}


def solve(**changes):
    return {"calibrate": {"sky_model": "sky.txt", "solves": [SOLVE | changes]}}


# What is broken, how, what changes in the configuration, and words of the message: what, and the remedy.
AT_THE_PLAN = {
    # the MeasurementSet
    "ms missing": (
        remove("obs.ms"),
        {},
        "obs.ms does not exist, or is not a folder; give the path of a MeasurementSet",
    ),
    "ms is a file": (
        lambda f: (remove("obs.ms")(f), text("obs.ms", "x")(f)),
        {},
        "obs.ms does not exist, or is not a folder",
    ),
    "ms is an empty folder": (just_a_folder, {}, "is not a MeasurementSet: there is no table.dat in it"),
    "table.dat empty": (text("obs.ms/table.dat", ""), {}, "obs.ms cannot be opened"),
    "table.dat garbage": (text("obs.ms/table.dat", bytes(range(256)) * 16), {}, "obs.ms cannot be opened"),
    "table.dat cut short": (cut("obs.ms/table.dat", 0.5), {}, "obs.ms cannot be opened"),
    "column file missing": (remove("obs.ms/table.f0"), {}, "obs.ms cannot be"),
    "subtable missing": (remove("obs.ms/ANTENNA"), {}, "ANTENNA"),
    "subtable cut short": (cut("obs.ms/ANTENNA/table.dat", 0.5), {}, "ANTENNA"),
    "a table, but no ms": (just_a_table, {}, "is a table but not a MeasurementSet: it lacks ANTENNA1"),
    "no rows": (rows("FALSE"), {}, "has no rows"),
    "no data column": (no_data, {}, "has no column DATA, which DP3 needs; it has MODEL_DATA"),
    "other data column": (
        nothing,
        steps({"MsIn": {"datacolumn": "CORRECTED"}}),
        "has no column CORRECTED, which DP3 needs",
    ),
    "TIME is NaN": (
        put("TIME", lambda t: np.where(np.arange(len(t)) == 30, np.nan, t)),
        {},
        "TIME is not a number in row 30",
    ),
    "TIME in days": (put("TIME", lambda t: t / 86400), {}, "do not lie on a regular grid of INTERVAL = 10.0139"),
    "INTERVAL in ms": (put("INTERVAL", lambda t: t * 1000), {}, "do not lie on a regular grid"),
    "INTERVAL zero": (put("INTERVAL", lambda t: t * 0), {}, "INTERVAL is 0.0 s in the first row; it must be positive"),
    "TIME not sorted": (
        put("TIME", lambda t: t[::-1]),
        {},
        "is not sorted by TIME: row 10 is earlier than the one before; sort it first",
    ),
    "TIME off the grid": (
        put("TIME", lambda t: t + 3 * (t > t[40])),
        {},
        "time slot 5 is 3 s off it, and DP3 allows 0.01 s; correct INTERVAL or split it",
    ),
    "baselines missing in a slot": (rows("ROWID() < 77"), {}, "time slot 7 has 7 rows, the first one has 10"),
    "two fields": (second_row("FIELD"), {}, "has 2 fields (centre, centre); DP3 reads only one: split it by field"),
    "two spectral windows": (two_windows, {}, "has 2 spectral windows; choose one with MsIn: {band: N}, or split it"),
    "spectral window that is none": (nothing, steps({"MsIn": {"band": 7}}), "none with number 7; correct MsIn"),
    "no observation": (lambda f: table(f, "OBSERVATION").removerows(0), {}, "the OBSERVATION table is empty"),
    "two of one name": (
        lambda f: shutil.copytree(f / "obs.ms", f / "x/obs.ms"),
        {"input": ["in/obs.ms", "in/x/obs.ms"]},
        "two MeasurementSets are both called 'obs': in/obs.ms and in/x/obs.ms; give them names",
    ),
    "glob without matches": (
        nothing,
        {"input": "in/*.MS"},
        "input: no MeasurementSet matches 'in/*.MS'; check the path",
    ),
    "no input": (nothing, {"input": []}, "no input: set input"),
    # sky models
    "sky model missing": (remove("sky.txt"), {}, "sky.txt cannot be read (No such file or directory)"),
    "sky model empty": (text("sky.txt", ""), {}, "sky.txt has no source"),
    "sky model is a folder": (
        lambda f: (remove("sky.txt")(f), (f / "sky.txt").mkdir()),
        {},
        "cannot be read (Is a directory)",
    ),
    "sky model binary": (text("sky.txt", b"\x89HDF\r\n\x1a\n\xff\xfe"), {}, "sky.txt cannot be read (not a text file)"),
    "sky model garbage": (text("sky.txt", HEAD + "garbage\n"), {}, "sky.txt, line 3: Ra '' is no angle such as"),
    "sky model NaN": (
        text("sky.txt", HEAD + "s, POINT, p0, 1:2:3, +4.5.6, nan\n"),
        {},
        "line 3: i 'nan' is not a number",
    ),
    "sky model wrong unit": (
        text("sky.txt", HEAD + "s, POINT, p0, 1:2:3, 4:5:6, 1\n"),
        {},
        "Dec '4:5:6' is no angle such as +12.34.56.7",
    ),
    "sky model unknown patch": (
        text("sky.txt", HEAD + "s, POINT, p1, 1:2:3, +4.5.6, 1\n"),
        {},
        "patch p1 is used before it is defined",
    ),
    "sky model empty patch": (text("sky.txt", HEAD), {}, "has no source"),
    "sky model of a step": (
        text("sky.txt", HEAD + "garbage\n"),
        steps({"Predict": {"sourcedb": "sky.txt"}}) | {"calibrate": None},
        "sky.txt, line 3",
    ),
    # h5parms
    "h5parm missing": (remove("gains.h5"), APPLY, "ApplyCal: parmdb: "),
    "h5parm empty": (text("gains.h5", ""), APPLY, "gains.h5"),
    "h5parm is text": (text("gains.h5", "solutions\n"), APPLY, "gains.h5"),
    "h5parm cut short": (cut("gains.h5", 0.5), APPLY, "gains.h5 cannot be opened"),
    "h5parm without tables": (no_soltabs, APPLY, "holds no solution tables; make it again or give another file"),
    "h5parm without AXES": (no_axes, APPLY, "val has no attribute AXES; make the file again or give another one"),
    "h5parm of other stations": (
        other_stations,
        APPLY,
        "has no solutions for 4 of the 4 stations (ST000, ...); give the file of this array",
    ),
    "h5parm without that direction": (
        nothing,
        steps({"ApplyCal": {"parmdb": "gains.h5", "direction": "p9"}}),
        "has no direction [p9] but [p0]; correct `direction`",
    ),
    # the configuration
    "unknown key": (nothing, {"chunk": {}}, "chunk: no such key; did you mean chunks?"),
    "wrong type": (nothing, {"keep_chunks": "perhaps"}, "keep_chunks: 'perhaps' is not of type 'boolean'"),
    "NaN": (nothing, solve(solint_s=float("nan")), "calibrate.solves.0.solint_s"),
    "negative length": (nothing, {"chunks": {"duration_s": -1}}, "chunks.duration_s: -1 is less than or equal to"),
    "two lengths": (nothing, {"chunks": {"count": 2, "n_slots": 4}}, "n_slots and count are both given; give one of"),
    "unknown mode": (nothing, solve(mode="diagnal"), "did you mean diagonal?"),
    "unknown station": (nothing, solve(antenna_constraint=[["ST000", "RS999"]]), "RS999"),
    "unknown step": (nothing, steps("Averger"), "did you mean averager?"),
    "unknown parameter": (
        nothing,
        steps({"Averager": {"timestp": 2}}),
        "`timestp`: no such parameter; did you mean timestep?",
    ),
    "parameter of a wrong type": (
        nothing,
        steps({"Averager": {"timestep": "2 s"}}),
        "'2 s' is not a whole number, 0 or more",
    ),
    "channels that do not divide": (
        nothing,
        steps({"Averager": {"freqstep": 3}}),
        "4 channels cannot be averaged by 3",
    ),
    "step not possible": (nothing, steps("BDAAverager"), "not possible in time chunks"),
    "inexact step": (nothing, steps({"MadFlagger": {"timewindow": 5}}), "allow_approximate"),
    "step list missing": (nothing, {"preprocess": {"file": "none.yaml"}}, "none.yaml cannot be read (No such file"),
    "step list garbage": (text("steps.yaml", "{"), {"preprocess": {"file": "in/steps.yaml"}}, "is not valid YAML"),
    "strategy missing": (nothing, steps({"AOFlagger": {"strategy": "no.lua"}}), "relative paths are looked up in"),
    "sheet missing": (
        nothing,
        {"observations": "none.tsv"},
        "none.tsv does not exist; it should be a tab-separated file",
    ),
    "sheet garbage": (text("sheet.tsv", b"\x89HDF\xff"), {"observations": "in/sheet.tsv"}, "sheet.tsv cannot be read"),
    "sheet without ms": (text("sheet.tsv", "obs\ta\n"), {"observations": "in/sheet.tsv"}, "wanted: ms"),
    "no such DP3": (
        nothing,
        {"dp3": {"command": "no-such-dp3"}},
        "dp3.command: 'no-such-dp3' is not an executable file",
    ),
}


def plan(folder, capsys, changes):
    """Make the plan as the pipeline does; give the exit status and what the user sees."""
    os.chdir(folder.parent)
    try:
        given = validate(yaml.safe_load(yaml.safe_dump(config(folder, **changes))), SCHEMA)
        observations = resolve_observations(given)
    except UserError as error:  # as in workflow/rules/common.smk
        return 1, f"chunkcal: {error}"
    try:
        with rule_log("logs/plan_chunks.log"):
            make_plan(observations, given).write("results/plan/chunks.tsv", "results/plan/observations.json")
    except SystemExit as end:
        return end.code, capsys.readouterr().err.strip()
    return 0, ""


@pytest.fixture(autouse=True)
def _back():
    before = Path.cwd()
    yield
    os.chdir(before)


def test_the_whole_input_is_planned(folder, capsys):
    for changes in ({}, APPLY, {"preprocess": {"file": "in/steps.yaml"}}, {"observations": "in/sheet.tsv"}):
        assert plan(folder, capsys, changes) == (0, "")
    assert (folder.parent / "results/plan/chunks.tsv").exists()


@pytest.mark.parametrize("kind", AT_THE_PLAN)
def test_said_when_the_plan_is_made(folder, capsys, kind):
    damage, changes, words = AT_THE_PLAN[kind]
    damage(folder)
    status, message = plan(folder, capsys, changes)
    assert status == 1
    assert words in message
    assert message.startswith("chunkcal: ")
    assert len(message.splitlines()) == 1
    assert "Traceback" not in message
    assert not (folder.parent / "results").exists()


@pytest.fixture
def public(whole):
    """A copy that everyone may read, in a folder that everyone may write to."""
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(whole, Path(name) / "in")
        for path in (Path(name), Path(name) / "in"):
            path.chmod(0o777)
        yield Path(name) / "in"


@pytest.mark.parametrize("name", ["obs.ms", "obs.ms/table.dat", "obs.ms/ANTENNA", "sky.txt", "gains.h5"])
def test_no_permission(public, capsys, name):
    assert plan(public, capsys, APPLY) == (0, "")  # and so everything has been imported
    for made in ("results", "logs"):
        shutil.rmtree(public.parent / made)
    (public / name).chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:  # who may read everything, so nobody has to try
            os.seteuid(65534)
        status, message = plan(public, capsys, APPLY)
    finally:
        if is_root:
            os.seteuid(0)
        (public / name).chmod(0o755)
    assert status == 1
    assert name in message
    assert "ermission" in message
    assert not (public.parent / "results").exists()


# ---- what only a run can tell ---------------------------------------------------------------------------


def assert_nothing_looks_whole(results):
    assert not [path for path in results.rglob("*") if path.suffix in (".ms", ".h5", ".html")]


def test_data_cut_short(folder, tmp_path):
    shutil.rmtree(folder / "obs.ms")
    tiny_ms.make_ms(folder / "obs.ms", n_stations=8, n_channels=32)
    largest = max((path for path in (folder / "obs.ms").iterdir() if path.is_file()), key=lambda p: p.stat().st_size)
    cut(largest.relative_to(folder), 0.5)(folder)
    done = snakemake(tmp_path / "run", config(folder))
    assert done.returncode != 0
    assert "Traceback" not in done.stdout
    assert complaints(done.stdout)
    for line in complaints(done.stdout):
        assert re.match(r"chunkcal: obs: preprocess: DP3 fails on the .* is damaged or incomplete; copy it again", line)
    assert_nothing_looks_whole(tmp_path / "run/results")


def test_a_lock_of_somebody_else_does_not_stop_a_run(folder, tmp_path):
    """Input is only read, so it is no matter that another program means to write to it."""
    with ct.table(str(folder / "obs.ms"), readonly=False, ack=False, lockoptions="permanent"):
        must_run(tmp_path / "run", config(folder, calibrate=None))
    assert (tmp_path / "run/results/obs/obs.ms/table.dat").exists()


def test_ms_missing_in_a_folder_of_another_run(folder, tmp_path):
    must_run(tmp_path, config(folder, calibrate=None))
    done = snakemake(tmp_path, config(folder, calibrate=None, input=str(folder / "none.ms")))
    assert done.returncode != 0
    assert [line for line in complaints(done.stdout) if f"input: {folder / 'none.ms'} does not exist" in line]
    assert "Traceback" not in done.stdout
    (folder / "obs.ms").rename(folder / "none.ms")
    must_run(tmp_path, config(folder, calibrate=None, input=str(folder / "none.ms")))


def test_ms_missing(folder, tmp_path):
    """Another workflow's rule may make it, so it is Snakemake that says that none does."""
    done = snakemake(tmp_path, config(folder, input=str(folder / "none.ms")))
    assert done.returncode != 0
    assert re.search(r"Missing input files for rule plan_chunks:\n.*\n +affected files:\n.*none.ms", done.stdout)
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "results").exists()


def test_configuration_that_is_no_yaml(tmp_path):
    """Snakemake reads it, so the words are its own."""
    (tmp_path / "broken.yaml").write_text("input: [\n")
    done = snakemake(tmp_path, {}, "--configfile", "broken.yaml")
    assert done.returncode != 0
    assert "Config file is not valid JSON or YAML" in done.stdout
    assert "Traceback" not in done.stdout


def test_output_that_is_a_file(folder, tmp_path):
    (tmp_path / "file").write_text("")
    done = snakemake(tmp_path, config(folder, output_dir="file/results"))
    assert done.returncode != 0
    message = "chunkcal: output_dir: file/results cannot be a folder, because "
    assert complaints(done.stdout) == [f"{message}{tmp_path / 'file'} is none; choose another one"]
    assert "Traceback" not in done.stdout


@pytest.fixture
def mounted(tmp_path):
    """A way to mount small file systems; root only, and who is not root has no say over a disk."""
    folders = []

    def mount(name, options):
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], stderr=subprocess.DEVNULL)
        if done.returncode:
            pytest.skip("only root can mount a file system that is full or read-only")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_output_that_is_read_only(folder, tmp_path, mounted):
    disk = mounted("disk", "ro")
    done = snakemake(tmp_path / "run", config(folder, output_dir=str(disk / "results")))
    assert done.returncode != 0
    assert [line for line in complaints(done.stdout) if f"output_dir: {disk} cannot be written to" in line]
    assert "Traceback" not in done.stdout


def test_a_full_disk(folder, tmp_path, mounted):
    disk = mounted("disk", "size=400k")
    done = snakemake(tmp_path / "run", config(folder, output_dir=str(disk / "results")))
    assert done.returncode != 0
    assert complaints(done.stdout)
    assert all("disk is full" in line or "No space left" in line for line in complaints(done.stdout)), done.stdout[
        -3000:
    ]
    assert "Traceback" not in done.stdout
    assert_nothing_looks_whole(disk)
