"""The benchmark itself, on an input that is over in seconds: every case runs, makes the same bits, and is measured."""

import importlib
import subprocess
import sys

import pandas as pd
import pytest

from pipeline import ROOT


def test_every_case_is_measured(tmp_path):
    folder = tmp_path / "bench"
    sizes = "--size-mb 1 --n-stations 8 --n-channels 16 --chunks 2 --slots 2 --repetitions 1".split()
    command = [sys.executable, str(ROOT / "benchmarks/bench.py"), "--folder", str(folder), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = pd.read_csv(folder / "table.tsv", sep="\t").set_index("case")
    assert list(table.index) == ["unchunked", "xargs", "running", "cold", "per-ms"]
    size = sum(path.stat().st_size for path in (folder / "input/bench.ms").rglob("*") if path.is_file())
    assert (table.cpu_s > 1).all()
    assert (table.stolen_s >= 0).all()
    assert (table.peak_rss_bytes > 30e6).all()
    assert (table.read_bytes > size).all()
    assert (table.written_bytes > size / 10).all()
    assert (table.input_bytes == size).all()
    assert ((table.output_bytes > size / 10) & (table.output_bytes < size)).all()
    assert ((table.dp3_cpu_s > 0.2) & (table.dp3_cpu_s < table.cpu_s)).all()
    assert ((table.wall_per_dp3_cpu > 0.3) & (table.wall_per_dp3_cpu < 30)).all()
    pipeline = table.loc[["running", "cold"]]
    assert (pipeline.n_tasks == 6).all()  # two chunks: up to the solutions, applied, looked at
    assert ((pipeline.occupancy > 0.1) & (pipeline.occupancy <= 1)).all()
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    lines = (folder / "table.md").read_text().splitlines()
    assert any(line.startswith("| one dask task for the MeasurementSet") for line in lines)
    running = next(line for line in lines if line.startswith("| chunkcal on a running cluster")).split("|")
    assert running[5].strip().endswith(f"%, {pipeline.overhead_cpu_s_per_task.running:.2f} s")


def test_a_host_that_was_busy_is_told(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("bench")
    run = {
        "wall_s": 100.0,
        "cpu_s": 190.0,
        "stolen_s": 0.4,
        "peak_rss_bytes": 1e9,
        "read_bytes": 3e6,
        "written_bytes": 1e6,
    }
    run |= {"output_bytes": 1e6, "dp3_cpu_s": 180.0, "same_dp3_cpu_s": 180.0}
    rows = {"xargs": [run], "running": [run | {"stolen_s": stolen} for stolen in (0.0, 30.0, 40.0)]}
    table = pd.DataFrame([bench.medians(runs, case, 1000000) for case, runs in rows.items()])
    told = bench.as_markdown(table, "title").splitlines()[-1]
    assert told.endswith("to others meanwhile: bare DP3 on the chunks, xargs -P 0, chunkcal on a running cluster 30")
    quiet = pd.DataFrame([bench.medians([run], "xargs", 1000000)])
    assert bench.as_markdown(quiet, "title").splitlines()[-1].startswith("| bare DP3 on the chunks")


def test_growth_is_told_from_two_runs(tmp_path):
    (tmp_path / "kept").touch()
    command = [sys.executable, str(ROOT / "benchmarks/scale.py"), "--folder", str(tmp_path), "--jobs", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "--jobs: what a further chunk costs is told from two runs" in done.stderr
    assert (tmp_path / "kept").exists()


def test_growth_is_measured(tmp_path):
    folder = tmp_path / "scale"
    sizes = "--observations 1 --chunks 2 --jobs 1 2 --supervised 1 2 --merges 2 --reports 1x2 2x3".split()
    command = [sys.executable, str(ROOT / "benchmarks/scale.py"), "--folder", str(folder), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = pd.read_csv(folder / "scale.tsv", sep="\t")
    assert list(table.what) == [
        *("dry run", "dry run", "jobs", "jobs", "supervisor", "supervisor", "merge"),
        *("report, 1 observations", "report, 2 observations"),
    ]
    assert list(table.chunk_jobs[:6]) == [3, 6, 3, 6, 3, 6]
    assert (table.cpu_s[table.what == "supervisor"] > 0.1).all()
    # Merging is small; the process that measures it is not, and must not be counted.
    assert 20e6 < table.rss_bytes[table.what == "merge"].item() < 100e6
    assert "Model of 1000 slots" in done.stdout
    assert done.stdout.count("slots busy") == 4


def test_the_model_of_many_slots(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scale = importlib.import_module("scale")
    costs = {"script_s": 0.0, "supervisor_s": 0.0, "n_cores": 8, "n_slots": 100}
    assert scale.occupancy(10.0, 20_000, 0.0, **costs) > 0.98  # but for the last tasks, which end one by one
    # At 20 jobs per second 100 slots are busy with tasks of 5 s, and half busy with 2.5 s.
    assert scale.occupancy(8.0, 20_000, 0.05, **costs) > 0.95
    assert scale.occupancy(2.5, 20_000, 0.05, **costs) == pytest.approx(0.5, abs=0.01)
    # The same for scripts, on 8 cores.
    assert scale.occupancy(2.5, 20_000, 0.0, **costs | {"script_s": 0.4}) == pytest.approx(0.5, abs=0.01)
