"""A year later: what a finished run says of itself, and each of its chunks made again from that."""

import hashlib
import json
import shutil
import warnings

import casacore.tables as ct
import h5py
import pytest
from rocrate.rocrate import ROCrate

from chunkcal.cli import main
from chunkcal.lineage import contents
from chunkcal.lineage.crate import PROFILES
from chunkcal.simulate import Simulation, simulate
from pipeline import dp3_of_any_version, must_run

CHUNKS = ("t0000", "t0001")
SETTINGS = Simulation("lofar", n_stations=4, n_slots=16, n_channels=4, rfi=0.0, n_nan_rows=3)


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    return simulate(SETTINGS, tmp_path_factory.mktemp("data") / "obs.ms").ms


@pytest.fixture(scope="module")
def results(ms, tmp_path_factory):
    """A finished run that has been moved since."""
    config = {
        "input": [str(ms)],
        "preprocess": {"steps": [{"PreFlagger": {"baseline": "*&&&"}}, {"Averager": {"timestep": 2}}]},
        "calibrate": {"sky_model": "{ms_dir}/{obs}.skymodel", "solves": [{"mode": "scalarphase", "solint_s": 16}]},
        "chunks": {"n_slots": 8},
        "cluster": {"n_slots": 2},
        "provenance": {"digest": "full"},
    }
    folder = tmp_path_factory.mktemp("run")
    must_run(folder, config)
    return shutil.move(folder / "results", folder / "archived")


@pytest.fixture
def edited(results, tmp_path):
    """A copy of the results whose provenance a test may edit."""

    def edit(change):
        path = shutil.copytree(results, tmp_path / "results") / "obs/provenance.json"
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))
        return tmp_path / "results"

    return edit


@pytest.fixture
def damaged(ms):
    """The raw data with one bit flipped, in a visibility of the first chunk that is used."""
    with ct.table(str(ms), ack=False) as table:
        antenna1, antenna2 = table.getcol("ANTENNA1"), table.getcol("ANTENNA2")
        row = next(i for i in range(table.nrows()) if antenna1[i] != antenna2[i] and not table.getcell("FLAG", i).any())
        value = table.getcell("DATA", row).tobytes()
    (file,) = (path for path in ms.glob("table.f*") if value in path.read_bytes())
    before = file.read_bytes()
    place = before.index(value) + 2
    file.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    yield
    file.write_bytes(before)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_every_chunk_is_made_again_bit_for_bit(results, chunk, capsys):
    assert main(["replay", "obs", chunk, "--results", str(results)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "DP3 6.6.0, as then" in lines
    for stage in ("preprocess", "calibrate", "apply"):
        assert any(line.startswith(f"{stage} {chunk}: same bits in all") for line in lines), lines


def test_one_stage_makes_what_is_gone_first(results, capsys):
    assert main(["replay", "obs", "t0001", "--stage", "apply", "--results", str(results)]) == 0
    verdicts = [line for line in capsys.readouterr().out.splitlines() if ": " in line and "t0001" in line]
    assert [line.split()[0] for line in verdicts] == ["apply"]


def test_changed_input_is_refused_before_anything_runs(results, ms, damaged, capsys):
    assert main(["replay", "obs", "t0000", "--results", str(results)]) == 1
    caught = capsys.readouterr()
    assert f"input {ms} has CHANGED since the run (tree_sha256 differ); nothing was run" in caught.err
    assert "preprocess" not in caught.out


def test_changed_byte_shows_in_the_product_where_inputs_were_digested_by_metadata_only(edited, damaged, capsys):
    def forget(found):
        found["config"]["provenance"]["digest"] = "metadata"
        for known in found["inputs"].values():
            known.pop("tree_sha256", None)

    results = str(edited(forget))
    assert main(["replay", "obs", "t0000", "--stage", "preprocess", "--results", results]) == 1
    assert "preprocess t0000: DIFFERS in DATA" in capsys.readouterr().out.splitlines()
    assert main(["replay", "obs", "t0001", "--stage", "preprocess", "--results", results]) == 0  # another chunk


def test_changed_solutions_are_refused(edited, capsys):
    results = edited(lambda found: None)
    with h5py.File(results / "obs/solutions/gain.h5", "r+") as file:
        file["sol000/phase000/val"][0] += 1e-9
    assert main(["replay", "obs", "t0000", "--stage", "apply", "--results", str(results)]) == 1
    assert "gain.h5 has CHANGED since the run (sol000/phase000/val differ)" in capsys.readouterr().err


def test_other_dp3_is_told_and_the_bits_decide(edited, tmp_path, capsys):
    command = dp3_of_any_version(tmp_path)
    (tmp_path / "version").write_text("6.6.1")
    results = edited(lambda found: found["config"]["dp3"].update(command=command))
    assert main(["replay", "obs", "t0000", "--stage", "calibrate", "--results", str(results)]) == 0
    assert "DP3 is 6.6.1 here, it was 6.6.0 then" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["abs", "t0000"], "there are obs"),
        (["obs", "t0002"], "obs has no chunk t0002; there are t0000 to t0001"),
    ],
)
def test_what_is_not_there_gets_one_line(results, arguments, words, capsys):
    assert main(["replay", *arguments, "--results", str(results)]) == 1
    assert words in capsys.readouterr().err


def test_provenance_names_everything(results, ms):
    found = json.loads((results / "obs/provenance.json").read_text())
    assert found["inputs"][str(ms)]["table_dat_sha256"] == hashlib.sha256((ms / "table.dat").read_bytes()).hexdigest()
    sky_model = ms.with_suffix(".skymodel")
    assert found["inputs"][str(sky_model)] == {"sha256": hashlib.sha256(sky_model.read_bytes()).hexdigest()}
    assert found["products"]["solutions"]["gain"]["digest"] == contents.of_h5parm(results / "obs/solutions/gain.h5")
    assert found["config"]["calibrate"]["solves"][0]["maxiter"] == 150  # a default
    assert found["config"]["cluster"]["n_slots"] == 2
    assert found["software"]["packages"]["dp3"] == "6.6.0"
    for stage in ("preprocess", "calibrate", "apply"):
        assert list(found["chunks"][stage]) == list(CHUNKS)
        for entry in found["chunks"][stage].values():
            assert entry["argv"][0][-3:] == ["parset1", "numthreads=1", "checkparset=1"]
            assert entry["parsets"][0]["msin"] == "in.ms"
            assert entry["host"]
            assert entry["casacore"].startswith("3.")
            assert "IERSpredict" in entry["measures"]["editions"]
    assert found["chunks"]["preprocess"]["t0001"]["parsets"][0]["msin.ntimes"] == "8"


def test_products_carry_their_history(results):
    with h5py.File(results / "obs/solutions/gain.h5") as file:
        text = file["sol000/phase000/val"].attrs["HISTORY001"].decode()
    assert text.startswith("made by chunkcal 0.1.0")
    assert '"preflagger1.baseline": "*&&&"' in text
    assert '"solve_gain.mode": "scalarphase"' in text
    with ct.table(str(results / "obs/obs.ms/HISTORY"), ack=False) as table:
        last = table[table.nrows() - 1]
    assert last["MESSAGE"].startswith("made by chunkcal 0.1.0")
    assert any(line.startswith("apply: ") for line in last["APP_PARAMS"])
    assert "with DP3 6.6.0" in last["APP_PARAMS"][0]


def test_crate_is_one_of_the_profiles_it_names(results, ms):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what rocrate finds odd
        crate = ROCrate(results)
    assert {each.id for each in crate.root_dataset["conformsTo"]} == set(PROFILES)
    assert "ComputationalWorkflow" in crate.mainEntity.type
    assert (results / crate.mainEntity.id).is_file()
    actions = {action.id: action for action in crate.root_dataset["mentions"]}
    assert actions.keys() == {"#run", "#preprocess/obs", "#calibrate/obs", "#apply/obs"}
    for action in actions.values():
        assert action.type == "CreateAction"
        assert action["startTime"] <= action["endTime"]
        assert action["object"]
        assert action["result"]
    run = actions["#run"]
    assert run["instrument"] == crate.mainEntity
    assert {each.id for each in run["result"]} >= {"obs/obs.ms/", "obs/solutions/gain.h5", "report.html"}
    assert {each.id for each in run["object"]} >= {f"{ms.as_uri()}/", ms.with_suffix(".skymodel").as_uri()}
    assert actions["#apply/obs"]["instrument"]["softwareVersion"] == "6.6.0"
    for each in run["result"]:
        assert (results / each.id).exists()
