"""The few lines that end a run."""

import json

import pytest

from chunkcal.cli import main
from chunkcal.errors import UserError
from chunkcal.reporting import summary
from flag_counts import flag_counts


def make_run(out, fit, calibrated=True, exact=True):
    plan = {
        "solves": {"gain": {}} if calibrated else {},
        "exact": exact,
        "unit": {"inexact": [] if exact else ["demixer: no rule"]},
        "chunks": [{"name": "t0000", "n_rows": 10}],
    }
    (out / "plan").mkdir(parents=True)
    (out / "plan" / "observations.json").write_text(json.dumps({"my obs": plan}))
    for stage in ("preprocess", "fit"):
        (out / "my obs" / stage).mkdir(parents=True)
    flags = {f"flagged_{when}": flag_counts(f, {}) for when, f in (("before", 0.02), ("after", 0.05))}
    record = {"verified": {"n_rows": 10} | flags}
    (out / "my obs" / "preprocess" / "t0000.json").write_text(json.dumps(record))
    if fit:
        (out / "my obs" / "fit" / "t0000.fit.json").write_text(json.dumps(fit))
    (out / "my obs" / "my obs.ms").mkdir()
    (out / "my obs" / "solutions").mkdir()
    (out / "my obs" / "solutions" / "gain.h5").touch()
    (out / "report.html").touch()
    return out


FIT = {"rms_raw_jy": 6.0, "rms_corrected_jy": 1.5, "n_visibilities": 9}


def test_names_paths_gain_and_report(tmp_path, capsys):
    out = make_run(tmp_path / "res ults", FIT)
    assert main(["summary", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"calibrated data: {out / 'my obs' / 'my obs.ms'}" in text
    assert str(out / "my obs" / "solutions" / "gain.h5") in text
    assert "4.0 times better than the raw data (rms 6 Jy before, 1.5 Jy after)" in text
    assert "2.0 % before" in text
    assert (out / "report.html").as_uri() in text
    assert "incomplete" not in text


def test_preprocess_only_has_no_solutions(tmp_path):
    text = summary.summarise(str(make_run(tmp_path / "r", None, calibrated=False)))
    assert "nothing was calibrated" in text
    assert "solutions:" not in text
    assert "2.0 % before, 5.0 % after" in text


def test_all_flagged_and_approximate(tmp_path):
    fit = {"rms_raw_jy": None, "rms_corrected_jy": None, "n_visibilities": 0}
    text = summary.summarise(str(make_run(tmp_path / "r", fit, exact=False)))
    assert "not measurable: all flagged" in text
    assert "APPROXIMATE: demixer: no rule" in text


def test_missing_data_are_said(tmp_path):
    out = make_run(tmp_path / "r", FIT)
    (out / "my obs" / "my obs.ms").rmdir()
    text = summary.summarise(str(out))
    assert "calibrated data: missing" in text
    assert "incomplete; run snakemake again" in text


def test_no_run_and_no_report_are_the_users_errors(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        summary.summarise(str(tmp_path))
    out = make_run(tmp_path / "r", FIT)
    (out / "report.html").unlink()
    with pytest.raises(UserError, match="not finished"):
        summary.summarise(str(out))


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.0, "0.0 %"), (0.00123, "0.12 %"), (0.5, "50.0 %")])
def test_percent(value, text):
    assert summary.percent(value) == text
