"""The page: its content, and that missing or hostile pieces never break it."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from chunkcal.errors import UserError
from chunkcal.reporting.report import duration, size, write_report
from chunkcal.reporting.results import Clock, Task, collect, write_flags
from flag_counts import flag_counts
from h5parms import STATIONS, write_h5

PARSET = {"msin": "in.ms", "steps": "[flag1]", "flag1.type": "preflagger", "flag1.baseline": "*&&&"}


def make_plan(name="a", ms="/data/<b>x</b>.ms", calibrated=True):
    run = {"parsets": [PARSET], "links": {"in.ms": ms}, "product": "out.ms"}
    stages = dict.fromkeys(("calibrate", "apply", "fit"), run if calibrated else None)
    grid = {"first_time": 1005.0, "interval_s": 10.0, "n_slots": 12, "n_channels": 8, "channel_width_hz": 1e5}
    return {
        "observation": grid
        | {"name": name, "ms": ms, "telescope": "LOFAR", "missing": [[6, 8]], "stations": STATIONS, "fields": ["F"]}
        | {"size_bytes": 5_000_000, "n_baselines": 6, "n_correlations": 4}
        | {"first_frequency_hz": 120e6, "last_frequency_hz": 121e6},
        "unit": {"n_slots": 4, "reasons": [["solve gain: solves for 4 slots", 4]], "inexact": [], "rounding": []},
        "exact": True,
        "notes": [],
        "data": grid | {"n_baselines": 6, "n_correlations": 4, "max_baselines": 6, "max_channels": 8},
        "solves": {"gain": {}} if calibrated else {},
        "runs": {"preprocess": run} | stages,
        "chunks": [{"name": f"t{k:04d}", "start_slot": 4 * k, "n_slots": 4, "n_rows": 24} for k in range(3)],
    }


def record(k, stage, start, flagged=0.25):
    stations = {name: flagged for name in STATIONS}
    times = {"start": 1000 + 40 * k, "n_slots": 4}
    verified = {"n_rows": 24, "flagged_after": flag_counts(flagged, stations, **times)}
    if stage == "preprocess":
        verified["flagged_before"] = flag_counts(0.125, stations | {STATIONS[0]: 0.0625}, **times)
    return {"worker": str(k % 2), "host": "node<1>", "threads": 1, "start": start, "end": start + 4.0, "cpu_s": 3.5} | {
        "max_rss_kb": 90_000,
        "dp3_version": "6.6.0",
        "verified": {} if stage == "calibrate" else verified,
    }


@pytest.fixture(autouse=True)
def fast(request, monkeypatch):
    """Do not render pictures where a test is about the words around them."""
    if "draws" not in request.node.name:
        monkeypatch.setattr("chunkcal.plots.style.pngs", lambda *_: (b"\x89PNG", b"\x89PNG"))


@pytest.fixture
def folder(tmp_path):
    """A finished run of one calibrated observation, three chunks."""
    return make_run(tmp_path / "results", {"a": make_plan()})


def make_run(out, plans):
    (out / "plan").mkdir(parents=True)
    (out / "plan" / "observations.json").write_text(json.dumps(plans))
    for name, plan in plans.items():
        for i, stage in enumerate(("preprocess", "calibrate", "apply", "fit")):
            if not plan["runs"][stage]:
                continue
            (out / name / stage).mkdir(parents=True)
            for k in range(3):
                path = out / name / stage / f"t{k:04d}.json"
                path.write_text(json.dumps(record(k, stage, 1e9 + 10 * i + 5 * (k // 2))))
                if stage == "fit":
                    fit = {"rms_raw_jy": 8.0, "rms_corrected_jy": 2.0 if k else 4.0, "n_visibilities": 100}
                    path.with_suffix(".fit.json").write_text(json.dumps(fit))
        (out / name / f"{name}.ms").mkdir(parents=True)
        (out / name / f"{name}.ms" / "table.f0").write_bytes(bytes(2_000_000))
        if plan["solves"]:
            (out / name / "solutions").mkdir()
            write_h5(out / name / "solutions" / "gain.h5")
    return out


def page_of(out, **changes):
    given = {
        "plan": out / "plan" / "observations.json",
        "records": [p for p in sorted(out.glob("*/*/t*.json")) if not p.name.endswith(".fit.json")],
        "fits": sorted(out.glob("*/fit/*.fit.json")),
        "solutions": sorted(out.glob("*/solutions/*.h5")),
        "measurement_sets": [out / p.name / f"{p.name}.ms" for p in out.iterdir() if p.name != "plan" and p.is_dir()],
        "settings": {"chunks": {"length": "auto"}, "note": "</pre><script>x</script>"},
        "output": out / "report.html",
    }
    write_report(**(given | changes))
    return (out / "report.html").read_text(encoding="utf-8")


def test_data_that_are_still_being_joined_are_named(folder):
    shutil.rmtree(folder / "a" / "a.ms")
    text = text_of(page_of(folder))
    assert str(folder / "a" / "a.ms") in text
    assert "about 30 kB" in text  # 12 slots, 6 baselines, 8 channels, 4 correlations, 13 bytes
    assert "MeasurementSet is missing" not in text


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_says_what_was_gained_and_what_became_of_the_data(folder):
    text = text_of(page_of(folder))
    # Pooled: raw 8 Jy, corrected sqrt((16 + 4 + 4) / 3) Jy.
    assert "corrected data fit the model 2.8 times better than the raw data" in text
    assert "8 Jy before, 2.83 Jy after calibration" in text
    assert "12.5 % before, 25.0 % after (of all cross-correlations)" in text
    assert "width:50.0%" in page_of(folder)  # 25 % on a scale that ends at 50 %
    assert "exact: chunks give what one run over the whole observation gives, bit for bit" in text
    assert str(folder / "a" / "a.ms") in text
    assert "2 MB" in text
    assert "preflagger (baseline *&amp;&amp;&amp;)" in text
    assert "1 (2 of 12 slots)" in text
    assert "solve gain: solves for 4 slots" in text
    assert "6.6.0" in text
    assert "No solutions at all (1 of 4): RS305" in text


def test_draws_all_into_one_self_contained_file_without_scripts(folder):
    page = page_of(folder)
    tags = Tags(page).found
    assert "script" not in {tag for tag, _ in tags}
    links = [a[key] for _, a in tags for key in ("src", "href", "srcset") if key in a]
    assert links
    ids = {a["id"] for _, a in tags if "id" in a}
    assert all(link.startswith("data:") or link[0] == "#" and link[1:] in ids for link in links)
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    pictures = [a for tag, a in tags if tag == "img"]
    assert len(pictures) == 7  # phase and amplitude, each twice; flags twice; Gantt
    assert all(a["alt"] for a in pictures)
    assert all(base64.b64decode(a["src"].split(",")[1])[:4] == b"\x89PNG" for a in pictures)
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags)
    assert len(page) < 1_000_000


def test_escapes_names_that_are_hostile(folder):
    page = page_of(folder)
    assert "<script" not in page
    assert "<b>x" not in page
    assert "RS&lt;script&gt;" in page


def test_draws_the_same_bytes_again_and_leaves_nothing(folder):
    assert page_of(folder) == page_of(folder)
    assert not list(folder.glob("*.tmp*"))


def test_a_failed_write_leaves_the_old_page(folder, monkeypatch):
    (folder / "report.html").write_text("old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        page_of(folder)
    assert (folder / "report.html").read_text() == "old"
    assert not list(folder.glob("*.tmp*"))


def test_all_flagged_is_not_measurable(folder):
    for path in folder.glob("a/fit/*.fit.json"):
        path.write_text(json.dumps({"rms_raw_jy": None, "rms_corrected_jy": None, "n_visibilities": 0}))
    assert "not measurable: all flagged" in page_of(folder)


def test_worse_data_are_called_worse(folder):
    for path in folder.glob("a/fit/*.fit.json"):
        path.write_text(json.dumps({"rms_raw_jy": 1.0, "rms_corrected_jy": 3.0, "n_visibilities": 5}))
    page = page_of(folder)
    assert "3.0 times WORSE" in page
    assert 'class="card bad"' in page


def test_approximate_chunks_say_why(tmp_path):
    plan = make_plan()
    plan |= {"exact": False, "unit": plan["unit"] | {"inexact": ["demixer: no <rule>"]}}
    text = text_of(page_of(make_run(tmp_path / "r", {"a": plan})))
    assert "APPROXIMATE demixer: no &lt;rule&gt;" in text


def test_preprocess_only(tmp_path):
    text = text_of(page_of(make_run(tmp_path / "r", {"a": make_plan(calibrated=False)})))
    assert "pre-processed only, nothing was calibrated" in text
    assert "12.5 % before, 25.0 % after" in text
    assert "missing" not in text


def test_missing_pieces_are_named(folder):
    (folder / "a" / "preprocess" / "t0001.json").write_text("{")
    missing = folder / "a" / "apply" / "t0009.json"
    text = text_of(page_of(folder, records=[folder / "a/preprocess/t0001.json", missing], fits=[], solutions=[]))
    assert "gain not measured" in text
    assert "preprocess/t0001.json cannot be read (damaged)" in text
    assert "apply/t0009.json cannot be read (No such file or directory)" in text
    assert "The merged solutions of gain are missing" in text
    assert "No record of a DP3 run was found" in text


def test_damaged_solutions_are_named(folder):
    (folder / "a" / "solutions" / "gain.h5").write_bytes(b"not HDF5")
    assert "cannot be drawn" in page_of(folder)


def test_all_solutions_nan(folder):
    write_h5(folder / "a" / "solutions" / "gain.h5", dead=(0, 1, 2, 3))
    assert "No solutions at all (4 of 4)" in page_of(folder)


def test_a_plan_that_cannot_be_read_is_the_users_error(folder):
    (folder / "plan" / "observations.json").write_text("[")
    with pytest.raises(UserError, match="cannot be read"):
        page_of(folder)


def test_flags_are_weighted_by_what_was_counted(tmp_path):
    out = make_run(tmp_path / "r", {"a": make_plan()})
    short = record(2, "apply", 1e9)
    short["verified"]["flagged_after"] = flag_counts(1.0, {"CS001": 1.0}, 1080.0, n_slots=2)
    (out / "a/apply/t0002.json").write_text(json.dumps(short))
    flags = collect(out / "plan/observations.json", sorted(out.glob("a/apply/t*.json"))).observations["a"].final
    assert flags.fraction == pytest.approx((0.25 * 8 + 1.0 * 2) / 10)
    assert flags.of("CS001") == pytest.approx((0.25 * 8 + 1.0 * 2) / 10)
    assert flags.of("CS002") == pytest.approx(0.25)
    assert flags.of("unknown") is None


def test_the_flag_table_needs_every_record(folder, tmp_path):
    plan, records = folder / "plan/observations.json", sorted(folder.glob("a/preprocess/t*.json"))
    write_flags(plan, records, "a", tmp_path / "flags.tsv")
    assert (tmp_path / "flags.tsv").read_text().splitlines()[1] == "raw\tall\tall\t\t2400\t19200\t0.125"
    records[1].write_text("{")
    with pytest.raises(UserError, match="flags of a: preprocess/t0001.json cannot be read"):
        write_flags(plan, records, "a", tmp_path / "other.tsv")
    assert not (tmp_path / "other.tsv").exists()


def test_counts_that_do_not_fit_together_are_named(folder):
    strange = record(2, "apply", 1e9)
    strange["verified"]["flagged_after"]["counts"]["channels"] = [0]
    (folder / "a/apply/t0002.json").write_text(json.dumps(strange))
    assert "flag counts of apply/t0002 cannot be added (1 channels instead of 8)" in page_of(folder)


def test_pauses_do_not_count_as_run_time():
    tasks = [Task("a", "apply", "h", "0", start, start + 10, 1, 1) for start in (100.0, 112.0, 1000.0)]
    clock = Clock.of(tasks)
    assert clock.pauses == ((122.0, 1000.0),)
    assert clock.length == 32.0
    assert clock.since_start(1005.0) == 27.0


def test_other_kinds_are_drawn_too(folder):
    write_h5(folder / "a" / "solutions" / "gain.h5", kinds=("tec",), axes=("time", "ant", "dir", "freq"))
    assert "Tec of each station" in page_of(folder)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.1234, "0.123 s"), (119.6, "120 s"), (150, "2 min 30 s"), (7200, "2 h"), (9000, "2 h 30 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_sizes():
    assert [size(n) for n in (12, 2.5e6, 3e12)] == ["12 B", "2.5 MB", "3 TB"]
