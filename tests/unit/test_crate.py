import json
import warnings

import pytest
from rocrate.rocrate import ROCrate

from chunkcal.lineage.crate import PROFILES, write_crate


@pytest.fixture
def provenance(tmp_path):
    """Provenance of a run that only pre-processes, in a folder with the products."""
    entry = {"start": 1e9, "end": 1e9 + 60, "dp3_version": "6.6.0", "links": {"in.ms": "/data/my raw.ms"}}
    found = {
        "format": 1,
        "software": {"chunkcal": "0.1.0", "commit": None, "python": "3.11", "packages": {"dp3": "6.6.0"}},
        "config": {"calibrate": None, "preprocess": {"steps": []}},
        "inputs": {"/data/my raw.ms": {"n_bytes": 9, "table_dat_sha256": "ab"}},
        "products": {"solutions": {}, "ms": {"path": "a/a.ms", "n_bytes": 5, "table_dat_sha256": "cd"}},
        "chunks": {"preprocess": {"t0000": entry, "t0001": entry | {"end": 1e9 + 90}}},
    }
    (tmp_path / "a/a.ms").mkdir(parents=True)
    (tmp_path / "a/provenance.json").write_text(json.dumps(found))
    (tmp_path / "flow/workflow/rules").mkdir(parents=True)
    (tmp_path / "flow/Snakefile").write_text('include: "workflow/rules/a.smk"\n')
    (tmp_path / "flow/workflow/rules/a.smk").touch()
    return tmp_path / "a/provenance.json"


def test_crate_of_a_run_that_only_pre_processes(provenance):
    folder = provenance.parents[1]
    write_crate(provenance=[provenance], snakefile=folder / "flow/Snakefile", output=folder / "ro-crate-metadata.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crate = ROCrate(folder)
    assert {each.id for each in crate.root_dataset["conformsTo"]} == set(PROFILES)
    run, stage = crate.root_dataset["mentions"]
    assert run["instrument"] is crate.mainEntity
    assert stage["instrument"]["name"] == "DP3"
    assert [each.id for each in stage["object"]] == ["file:///data/my%20raw.ms/"]
    assert [each.id for each in stage["result"]] == ["a/a.ms/"]
    assert (run["startTime"], run["endTime"]) == ("2001-09-09T01:46:40+00:00", "2001-09-09T01:48:10+00:00")
    settings = {each["name"]: each["value"] for each in run["object"] if each.type == "PropertyValue"}
    assert settings == {"calibrate": "null", "preprocess": '{"steps": []}'}
    assert (folder / "plan/workflow/Snakefile").is_file()
    assert (folder / "plan/workflow/workflow/rules/a.smk").is_file()
