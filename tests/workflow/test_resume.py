"""What makes finished products out of date, and what does not: contents, never times."""

import json
import os
import shutil

import pytest

from chunkcal.simulate import Simulation, simulate
from pipeline import dp3_of_any_version, jobs_of, must_run

SETTINGS = Simulation("lofar", n_stations=4, n_slots=16, n_channels=4, rfi=0.0)
SOLVES = [{"name": "phase", "mode": "scalarphase", "solint_s": 8}, {"name": "gain", "mode": "diagonal", "solint_s": 16}]
MS = "results/obs/obs.ms"
BEHIND_SOLVES = {"merge_solutions": 2, "judge_quality": 1, "require_quality": 1, "apply_chunk": 2, "join_chunks": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    simulate(SETTINGS, folder / "obs.ms")
    dp3_of_any_version(folder)
    return folder


def config_of(data):
    return {
        "input": [str(data / "obs.ms")],
        "preprocess": {"steps": [{"Averager": {"timestep": 2}}]},
        "calibrate": {"sky_model": "{ms_dir}/{obs}.skymodel", "solves": SOLVES},
        "chunks": {"n_slots": 8},
        "cluster": {"n_slots": 2},
        "dp3": {"command": str(data / "DP3")},
        "keep_chunks": True,
    }


@pytest.fixture
def settings(data):
    return config_of(data)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    must_run(folder, config_of(data))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """Run again in a copy of the finished run; give the jobs that were run."""
    folder = tmp_path / "again"
    shutil.copytree(finished, folder, symlinks=True)

    def jobs(config, *target):
        found = jobs_of(must_run(folder, config, *target))
        found.pop("all", None)
        return found

    jobs.folder = folder
    return jobs


@pytest.fixture
def sky_model(data):
    """The sky model, which a test may edit."""
    path = data / "obs.skymodel"
    before, status = path.read_text(), path.stat()
    yield path
    path.write_text(before)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_times_of_files_mean_nothing(run, data, settings, sky_model):
    results = run.folder / "results/obs"
    for path in (
        *(sky_model, data / "obs.ms", data / "obs.ms/table.dat", data / "DP3"),
        *(results / "solutions/gain.h5", results / "preprocess/t0000.ms", results / "calibrate/t0001"),
        *(results / "apply/t0001.json", results.parent / "plan/observations.json"),
    ):
        os.utime(path)
    assert run(settings) == {}


def test_interval_of_one_solve_spares_what_does_not_depend_on_it(run, settings):
    settings["calibrate"]["solves"] = [SOLVES[0] | {"solint_s": 16}, SOLVES[1]]
    assert run(settings, MS) == {"plan_chunks": 1, "calibrate_chunk": 2} | BEHIND_SOLVES


def test_interpolation_spares_the_solutions(run, settings):
    settings["apply"] = {"interpolation": "nearest"}
    assert run(settings, MS) == {"plan_chunks": 1, "apply_chunk": 2, "join_chunks": 1}


def test_one_byte_of_the_sky_model_is_noticed_also_with_its_old_time(run, settings, sky_model):
    status = sky_model.stat()
    text = sky_model.read_text()
    digit = max(i for i, char in enumerate(text) if char.isdigit())
    sky_model.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    os.utime(sky_model, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert run(settings, MS) == {"plan_chunks": 1, "calibrate_chunk": 2} | BEHIND_SOLVES


def test_other_dp3_makes_its_products_again_unless_that_is_not_wanted(run, data, settings):
    (data / "version").write_text("6.6.1")
    try:
        settings["dp3"]["rerun_on_new_version"] = False
        assert run(settings) == {"write_provenance": 1, "write_crate": 1}  # which note the setting
        settings["dp3"]["rerun_on_new_version"] = True
        jobs = run(settings, MS)
    finally:
        (data / "version").write_text("6.6.0")
    assert jobs == {"plan_chunks": 1, "preprocess_chunk": 2, "calibrate_chunk": 2} | BEHIND_SOLVES
    record = json.loads((run.folder / "results/obs/apply/t0001.json").read_text())
    assert record["dp3_version"] == "6.6.1"


def test_dp3_that_cannot_be_asked_here_makes_nothing_again(run, data, settings):
    (data / "version").write_text("?")
    try:
        assert run(settings) == {}
    finally:
        (data / "version").write_text("6.6.0")
