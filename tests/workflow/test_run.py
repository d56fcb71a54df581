"""What a user sees of a run: resume, failures, strange names, nothing left behind, nothing touched."""

import hashlib
import json
import shutil
import stat
import sys
from pathlib import Path

import pytest

from chunkcal.inputs import chunks_dir
from chunkcal.lineage.replay import replay
from chunkcal.simulate import Simulation, simulate
from pipeline import assert_same_bits, columns, jobs_of, must_run, plain_dp3, snakemake, solutions
from tiny_ms import DP3, dp3_environment, run_dp3

SETTINGS = Simulation("lofar", n_stations=5, n_slots=24, n_channels=8, rfi=0.0)
CALIBRATE = {
    "sky_model": "{ms_dir}/{obs}.skymodel",
    "solves": [{"mode": "diagonal", "solint_s": 16}],
}
STEPS = [{"PreFlagger": {"baseline": "*&&&"}}, {"Averager": {"timestep": 2}}]


def config(ms, **changes):
    return {
        "input": [str(ms)],
        "preprocess": {"steps": STEPS},
        "calibrate": CALIBRATE,
        "chunks": {"n_slots": 8},
        "cluster": {"n_slots": 2},
    } | changes


def digest(folder):
    """Digest of a tree: names, sizes and contents of all files."""
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        whole.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return whole.hexdigest()


def processes_of(folder):
    """List the processes of runs in `folder`, by the working folder that their state file names."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "environ").read_bytes().split(b"\0")
            mark = next((word for word in words if word.startswith(b"CHUNKCAL_RUN=")), None)
            if mark and (process / "cwd").resolve().is_relative_to(folder):
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    return simulate(SETTINGS, tmp_path_factory.mktemp("data") / "obs.ms").ms


@pytest.fixture(scope="module")
def finished(ms, tmp_path_factory):
    """A finished run that has kept its chunks; tests copy it."""
    folder = tmp_path_factory.mktemp("finished")
    before = digest(Path(ms))
    output = must_run(folder, config(ms, keep_chunks=True))
    assert digest(Path(ms)) == before
    return folder, output


@pytest.fixture
def again(finished, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(finished[0], folder, symlinks=True)
    return folder


def test_products(finished):
    folder, output = finished
    results = folder / "results"
    assert {path.name for path in (results / "obs").iterdir()} == {
        *(
            "preprocess",
            "calibrate",
            "apply",
            "fit",
            "solutions",
            "quality.json",
            "quality.passed",
            "flags.tsv",
            "provenance.json",
            "obs.ms",
        )
    }
    assert jobs_of(output)["preprocess_chunk"] == 3
    assert not list(folder.rglob("*.tmp-*"))
    assert processes_of(folder) == []
    record = json.loads((results / "obs/preprocess/t0001.json").read_text())
    assert record["threads"] == 1
    assert "numthreads=1" in record["argv"][0]
    assert record["verified"]["n_slots"] == 4


def test_nothing_to_be_done(again, ms):
    log = again / "logs/cluster.log"
    before = log.read_text()
    assert "Nothing to be done" in must_run(again, config(ms, keep_chunks=True))
    assert log.read_text() == before  # no cluster was started


def test_other_cluster_settings_are_no_reason_to_run_anything_again(again, ms):
    output = must_run(again, config(ms, keep_chunks=True, cluster={"n_slots": 1, "threads_per_slot": 2}))
    assert "Nothing to be done" in output


def test_other_cluster_settings_do_not_hide_what_is_missing(again, ms):
    """Snakemake takes all behind an ancient() output for up to date if the rule that makes it runs again."""
    shutil.rmtree(again / "results/obs/obs.ms")
    shutil.rmtree(again / "results/obs/preprocess/t0001.ms")
    must_run(again, config(ms, keep_chunks=True, cluster={"n_slots": 1}))
    assert (again / "results/obs/preprocess/t0001.ms").exists()
    assert (again / "results/obs/obs.ms").exists()


def test_the_cluster_is_started_when_the_plan_is_there(finished):
    """If the checkpoint ends while start_cluster runs, Snakemake may take all that needs the cluster for up to date."""
    output = finished[1]
    assert 0 < output.index("(Rule: plan_chunks)") < output.index("localrule start_cluster:")


def test_nothing_ends_as_a_success_that_is_none(again, ms):
    shutil.rmtree(again / "results/obs/obs.ms")
    done = snakemake(again, config(ms, keep_chunks=True), "--forcerun", "start_cluster")
    if not (again / "results/obs/obs.ms").exists():
        assert done.returncode != 0
        assert "results/obs/obs.ms has not been made yet; run snakemake again" in done.stdout
    must_run(again, config(ms, keep_chunks=True))
    assert (again / "results/obs/obs.ms").exists()


def test_single_products_can_be_asked_for(ms, tmp_path):
    must_run(tmp_path, config(ms), "results/obs/solutions/gain.h5")
    assert (tmp_path / "results/obs/solutions/gain.h5").exists()


def test_only_what_depends_on_a_deleted_chunk_is_made_again(again, ms):
    shutil.rmtree(again / "results/obs/apply/t0001.ms")
    jobs = jobs_of(must_run(again, config(ms, keep_chunks=True)))
    at_the_end = {"all": 1, "merge_flags": 1, "write_report": 1, "write_provenance": 1, "write_crate": 1}
    assert jobs == {"apply_chunk": 1, "fit_chunk": 1, "join_chunks": 1} | at_the_end

    shutil.rmtree(again / "results/obs/calibrate/t0002")
    before = solutions(again / "results/obs/solutions/gain.h5")
    jobs = jobs_of(must_run(again, config(ms, keep_chunks=True)))
    assert jobs.pop("fit_chunk") == 3
    judged = ("merge_solutions", "judge_quality", "require_quality")
    once = dict.fromkeys(("calibrate_chunk", *judged, "join_chunks"), 1)
    assert jobs == {**once, "apply_chunk": 3} | at_the_end
    assert_same_bits(solutions(again / "results/obs/solutions/gain.h5"), before)


def test_intermediates_go_away_and_two_runs_give_the_same_bytes(finished, ms, tmp_path):
    bits, h5parms = columns(finished[0] / "results/obs/obs.ms"), set()
    for n_slots in (1, 4):
        folder = tmp_path / str(n_slots)
        must_run(folder, config(ms, cluster={"n_slots": n_slots}))
        results = folder / "results/obs"
        assert not list(results.glob("*/*.ms"))
        assert not list(results.glob("calibrate/*/"))
        # With chunks that are kept, DP3's own history of the h5parm tells of another run.
        assert_same_bits(
            solutions(results / "solutions/gain.h5"), solutions(finished[0] / "results/obs/solutions/gain.h5")
        )
        assert_same_bits(columns(results / "obs.ms"), bits)
        h5parms.add((results / "solutions/gain.h5").read_bytes())
        assert "Nothing to be done" in must_run(folder, config(ms, cluster={"n_slots": n_slots}))
    assert len(h5parms) == 1


def test_chunks_lie_in_scratch_dir_while_they_are_needed(finished, ms, tmp_path):
    scratch, run = tmp_path / "scratch", tmp_path / "run"
    given = config(ms, output_dir=str(run / "results"), scratch_dir=str(scratch))
    own = Path(chunks_dir(given | {"keep_chunks": False}))
    killed = own / "obs/preprocess/t0009.ms.tmp-0123456789ab"
    killed.mkdir(parents=True)
    (killed / "table.dat").touch()

    # The last stage fails: what it needs has stayed, and is not made again.
    broken = {"command": dp3_that(tmp_path, 'grep -q "steps=.*apply" "$1" && exit 3')}
    assert snakemake(run, given | {"dp3": broken}).returncode != 0
    assert not killed.exists()
    assert {path.name for path in own.rglob("*.ms")} == {"t0000.ms", "t0001.ms", "t0002.ms"}
    assert not list((run / "results").rglob("t*.ms"))
    jobs = jobs_of(must_run(run, given | {"dp3": {"command": dp3_that(tmp_path, "")}}))
    assert "calibrate_chunk" not in jobs
    assert jobs["apply_chunk"] == 3

    results = run / "results/obs"
    record = json.loads((results / "apply/t0001.json").read_text())
    assert record["links"]["in.ms"] == str(own / "obs/preprocess/t0001.ms")
    assert list(scratch.iterdir()) == []
    stages = ("preprocess", "calibrate", "apply", "fit")
    assert not [path for stage in stages for path in (results / stage).iterdir() if path.suffix != ".json"]
    assert_same_bits(columns(results / "obs.ms"), columns(finished[0] / "results/obs/obs.ms"))
    assert_same_bits(solutions(results / "solutions/gain.h5"), solutions(finished[0] / "results/obs/solutions/gain.h5"))


def test_another_scratch_dir_makes_nothing_out_of_date(ms, tmp_path):
    places = [{"scratch_dir": str(tmp_path / name)} for name in ("one", "other")]
    for place in places:
        Path(place["scratch_dir"]).mkdir()
    run = tmp_path / "run"
    must_run(run, config(ms, **places[0]))
    bits = columns(run / "results/obs/obs.ms")
    for place in (*places, {}):
        assert "Nothing to be done" in must_run(run, config(ms, **place))
    assert list(replay("obs", "t0001", results=run / "results"))[-1].differing == ()

    shutil.rmtree(run / "results/obs/obs.ms")
    jobs = jobs_of(must_run(run, config(ms, **places[1])))
    assert "plan_chunks" not in jobs
    assert jobs["apply_chunk"] == 3
    assert_same_bits(columns(run / "results/obs/obs.ms"), bits)
    for place in places:
        assert list(Path(place["scratch_dir"]).iterdir()) == []


def test_pre_processing_alone(ms, tmp_path):
    output = must_run(tmp_path, config(ms, calibrate=None))
    assert not {"calibrate_chunk", "merge_solutions", "apply_chunk", "fit_chunk"} & set(jobs_of(output))
    assert columns(tmp_path / "results/obs/obs.ms")["DATA"].shape[0] == 12 * 15


def test_threads_of_a_slot_are_those_of_dp3(ms, tmp_path):
    must_run(tmp_path, config(ms, calibrate=None, cluster={"threads_per_slot": 2}), cores=4)
    record = json.loads((tmp_path / "results/obs/preprocess/t0000.json").read_text())
    assert "numthreads=2" in record["argv"][0]
    assert json.loads((tmp_path / "results/cluster.json").read_text())["n_slots"] == 2
    assert "2 slot(s) of 2 thread(s)" in (tmp_path / "logs/cluster.log").read_text()


def test_slots_and_threads_from_cores_and_memory(finished, ms, tmp_path):
    automatic = config(ms, cluster="auto", chunks={"length": "auto"})
    chosen = "chunkcal: cluster: auto chose 2 slots of 1 thread for 2 cores"
    dry = snakemake(tmp_path / "dry", automatic, "--dry-run")
    output = must_run(tmp_path / "run", automatic)
    for text in (dry.stdout, output):
        assert text.count(chosen) == 1, text[-2000:]
        assert text.count("chunkcal: obs: chunks: auto chose 4 slots") == 1
    cluster = json.loads((tmp_path / "run/results/cluster.json").read_text())
    assert (cluster["n_slots"], cluster["threads_per_slot"]) == (2, 1)
    assert cluster["layout"] in (tmp_path / "run/results/report.html").read_text()
    assert_same_bits(columns(tmp_path / "run/results/obs/obs.ms"), columns(finished[0] / "results/obs/obs.ms"))
    # Where the cluster has been started before, a chunk that finds none starts it.
    shutil.rmtree(tmp_path / "run/results/obs/obs.ms")
    output = must_run(tmp_path / "run", config(ms, cluster={"threads_per_slot": "auto", "n_slots": 1}))
    assert "chunkcal: cluster: auto chose 1 slot of 2 threads for 2 cores" in output
    assert json.loads((tmp_path / "run/results/obs/apply/t0000.json").read_text())["threads"] == 2


def test_paths_with_spaces_quotes_and_other_letters(ms, tmp_path):
    folder = tmp_path / 'a b\'s "c" ünï'
    folder.mkdir()
    strange = folder / "my 'first' obs;$(x).ms"
    shutil.copytree(ms, strange)
    shutil.copy(ms.with_suffix(".skymodel"), folder / "sky #1 = 'x'.skymodel")
    changes = {"calibrate": CALIBRATE | {"sky_model": str(folder / "sky #1 = 'x'.skymodel")}}
    must_run(folder / "run here", config(strange, **changes))
    assert (folder / "run here/results/my__first__obs___x_/my__first__obs___x_.ms/table.dat").exists()


def test_input_may_be_read_only(ms, tmp_path):
    copy = tmp_path / "obs.ms"
    shutil.copytree(ms, copy)
    shutil.copy(ms.with_suffix(".skymodel"), tmp_path)
    for path in [*copy.rglob("*"), copy]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = digest(copy)
    try:
        must_run(tmp_path / "run", config(copy))
        assert digest(copy) == before
    finally:
        for path in [copy, *copy.rglob("*")]:
            path.chmod(path.stat().st_mode | stat.S_IWUSR)


def dp3_that(folder, script):
    """Make a DP3 that runs `script` before the real one, with the parset in $1."""
    path = folder / "DP3"
    measures = dp3_environment()["AIPSPATH"]  # a user's own DP3 brings its own
    path.write_text(f'#!/bin/sh\n{script}\nexport AIPSPATH={measures}\nexec {sys.executable} {DP3} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_dp3_that_fails_is_reported_with_chunk_status_and_log(ms, tmp_path):
    # The second chunk starts 8 slots of 4 s after 23:00:00.
    script = 'grep -q "starttime=2024/03/14/23:00:3" "$1" && { echo "no such luck"; exit 3; }'
    broken = config(ms, calibrate=None, dp3={"command": dp3_that(tmp_path, script)})
    done = snakemake(tmp_path / "run", broken)
    assert done.returncode != 0
    lines = [line for line in done.stdout.splitlines() if line.startswith("chunkcal: preprocess obs t0001")]
    assert len(lines) == 1, done.stdout
    assert "exit status 3" in lines[0]
    log = tmp_path / "run/logs/preprocess_chunk/obs.t0001.log"
    assert str(log) in lines[0]
    assert "    no such luck" in done.stdout.splitlines()
    assert "no such luck" in log.read_text()
    results = tmp_path / "run/results/obs"
    assert not (results / "preprocess/t0001.ms").exists()
    assert not (results / "obs.ms").exists()
    assert (results / "preprocess/t0000.ms").exists()
    assert not list(results.rglob("*.tmp-*"))
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("rm -rf out.ms; exit 0", "out.ms"),
        ('sed -i "s/msin.ntimes=8/msin.ntimes=6/" "$1"', "time slots"),
    ],
)
def test_dp3_that_lies_is_not_believed(ms, tmp_path, damage, words):
    broken = config(ms, calibrate=None, dp3={"command": dp3_that(tmp_path, damage)})
    done = snakemake(tmp_path / "run", broken)
    assert done.returncode != 0
    assert words in done.stdout
    assert not list((tmp_path / "run/results").rglob("*.ms"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chunk": 3}, "chunk: no such key; did you mean chunks?"),
        ({"scratch_dir": "nowhere"}, "scratch_dir: nowhere does not exist; make the folder"),
        ({"input": "nowhere/*.ms"}, "no MeasurementSet matches 'nowhere/*.ms'"),
        ({"preprocess": {"steps": [{"Averagr": {}}]}}, "did you mean averager?"),
        ({"preprocess": {"steps": [{"ApplyCal": {"parmdb": "no.h5"}}]}}, "no.h5"),
        ({"calibrate": {"sky_model": "nosuch.txt", "solves": CALIBRATE["solves"]}}, "nosuch.txt"),
        ({"preprocess": {"steps": [{"MadFlagger": {"timewindow": 5}}]}}, "allow_approximate"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing(ms, tmp_path, changes, words):
    done = snakemake(tmp_path, config(ms, **changes))
    assert done.returncode != 0
    assert words in done.stdout
    assert "Traceback" not in done.stdout
    assert not list(tmp_path.rglob("*.ms"))
    assert not list(tmp_path.rglob("*.h5"))


def test_compressed_data_are_read_as_they_are(ms, tmp_path):
    run_dp3(tmp_path, {"msin": ms, "msout": "small.ms", "msout.storagemanager": "dysco", "steps": "[]"})
    plain_dp3(tmp_path / "plain", {"msin": tmp_path / "small.ms", "msout": "out.ms", "steps": "[]"})
    given = config(tmp_path / "small.ms", calibrate=None, preprocess={"steps": []})
    must_run(tmp_path / "run", given, "results/small/small.ms")
    assert_same_bits(columns(tmp_path / "run/results/small/small.ms"), columns(tmp_path / "plain/out.ms"))
