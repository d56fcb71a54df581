import json

import h5py
import pytest
from test_requests import make_plan

from chunkcal.errors import UserError
from chunkcal.lineage import provenance

CONFIG = {"provenance": {"digest": "metadata"}, "dp3": {"command": "auto"}}


@pytest.fixture
def run(tmp_path):
    """A run of three chunks, of which DP3 has failed on one, and its input; chunks were in a folder that is gone."""
    raw, out = tmp_path / "raw.ms", tmp_path / "out"
    for folder in (raw, out / "a/a.ms", out / "plan", out / "a/solutions"):
        folder.mkdir(parents=True)
        (folder / "table.dat").write_text("table")
    plan = make_plan(dp3_version="6.6.0")
    plan["runs"]["preprocess"]["links"] = {"in.ms": str(raw)}
    (out / "plan/observations.json").write_text(json.dumps({"a": plan}))
    (out / "cluster.json").write_text('{"n_slots": 2}')
    with h5py.File(out / "a/solutions/gain.h5", "w") as file:
        file["sol000/phase000/val"] = [1.0]
    for stage in ("preprocess", "calibrate", "apply"):
        (out / "a" / stage).mkdir()
        source = str(raw) if stage == "preprocess" else str(tmp_path / "scratch/a/preprocess/t0000.ms")
        for chunk in ("t0000", "t0001", "t0002"):
            record = {"argv": [["DP3"]], "links": {"in.ms": source}, "verified": {"digest": {"DATA": stage + chunk}}}
            if (stage, chunk) == ("calibrate", "t0001"):
                record = {"name": "calibrate a t0001", "failed": "no such luck"}
            (out / f"a/{stage}/{chunk}.json").write_text(json.dumps(record))
    return raw, out


def write(out, output=None):
    provenance.write_provenance(
        plan=out / "plan/observations.json",
        records=sorted(out.glob("a/*/t*.json")),
        solutions=[out / "a/solutions/gain.h5"],
        ms=out / "a/a.ms",
        cluster=out / "cluster.json",
        config=CONFIG,
        output=out / "a/provenance.json",
    )
    return provenance.load_provenance(out, "a")


def test_everything_is_in_its_place(run):
    raw, out = run
    found = write(out)
    assert set(found["inputs"]) == {str(raw)}  # a product of the run is no input, wherever it lies
    assert found["products"]["ms"]["path"] == "a/a.ms"
    assert set(found["products"]["solutions"]["gain"]["digest"]) == {"sol000/phase000/val"}
    assert found["config"] == CONFIG | {"cluster": {"n_slots": 2}}
    assert found["chunks"]["apply"]["t0002"]["digest"] == {"DATA": "applyt0002"}
    assert found["chunks"]["apply"]["t0002"]["expect"]["n_slots"] == 6
    failed = found["chunks"]["calibrate"]["t0001"]
    assert (failed["failed"], failed["links"], failed["digest"]) == ("no such luck", {}, None)


def test_one_line_per_chunk(run):
    write(run[1])
    lines = (run[1] / "a/provenance.json").read_text().splitlines()
    assert sum(line.startswith('   "t000') for line in lines) == 9


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "there are b"), ("{", "cannot be read"), ('{"format": 99}', "has format 99")],
)
def test_what_cannot_be_loaded(tmp_path, text, words):
    for obs, content in (("a", text), ("b", "{}")):
        (tmp_path / obs).mkdir()
        if content is not None:
            (tmp_path / obs / "provenance.json").write_text(content)
    with pytest.raises(UserError, match=words):
        provenance.load_provenance(tmp_path, "a")
