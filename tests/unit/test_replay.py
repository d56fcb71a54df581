import json

import pytest
from test_provenance import run, write  # noqa: F401

from chunkcal.errors import UserError
from chunkcal.lineage import replay

CHUNKS = {
    stage: {"t0000": {"links": {"in.ms": f"/gone/{stage}/t0000.ms"}}} for stage in ("preprocess", "calibrate", "apply")
}


@pytest.mark.parametrize(
    ("stage", "stages"),
    [
        ("all", ["preprocess", "calibrate", "apply"]),
        ("preprocess", ["preprocess"]),
        ("apply", ["preprocess", "apply"]),
    ],
)
def test_stages_before_are_run_when_their_products_are_gone(stage, stages):
    assert replay._stages(CHUNKS, "a", "t0000", stage) == stages


def test_product_that_is_there_is_used(tmp_path):
    chunks = CHUNKS | {"calibrate": {"t0000": {"links": {"in.ms": str(tmp_path)}}}}
    assert replay._stages(chunks, "a", "t0000", "calibrate") == ["calibrate"]


def test_stage_that_is_not_there():
    with pytest.raises(UserError, match="a has no stage apply; there are preprocess"):
        replay._stages({"preprocess": CHUNKS["preprocess"]}, "a", "t0000", "apply")


def test_digests_that_differ_are_named():
    before = {"gain": {"val": "1", "time": "2"}, "phase": {"val": "3"}}
    now = {"gain": {"val": "1", "time": "x"}, "phase": {"val": "3", "new": "4"}}
    assert replay._compare("calibrate", before, now).differing == ("gain: time", "phase: new")
    assert replay._compare("calibrate", before, before).differing == ()
    assert replay._compare("calibrate", None, now) is None


def test_input_that_is_missing_or_changed_and_results_that_were_moved(run):  # noqa: F811
    raw, out = run
    write(out)
    moved = out.rename(out.parent / "moved")
    (raw / "table.dat").write_text("tablf")
    with pytest.raises(
        UserError, match=r"raw.ms has CHANGED since the run \(table_dat_sha256 differ\); nothing was run"
    ):
        list(replay.replay("a", "t0000", results=moved, say=lambda _: None))
    raw.rename(raw.with_suffix(".gone"))
    with pytest.raises(UserError, match="raw.ms is missing; nothing was run"):
        list(replay.replay("a", "t0000", results=moved, say=lambda _: None))


def test_links_follow_the_results():
    found = {"output_dir": "/old/results", "chunks": json.loads(json.dumps(CHUNKS))}
    found["chunks"]["apply"]["t0000"]["links"] = {"gain.h5": "/old/results/a/gain.h5", "in.ms": "/old/results2/x"}
    links = replay._moved(found, "/new")["chunks"]["apply"]["t0000"]["links"]
    assert links == {"gain.h5": "/new/a/gain.h5", "in.ms": "/old/results2/x"}
