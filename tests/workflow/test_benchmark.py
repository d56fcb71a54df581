"""The benchmark itself, on an input that is over in seconds: every case runs, makes the same bits, and is measured."""

import subprocess
import sys

import pandas as pd

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
    assert (table.peak_rss_bytes > 30e6).all()
    assert (table.read_bytes > size).all()
    assert (table.written_bytes > size / 10).all()
    pipeline = table.loc[["running", "cold"]]
    assert (pipeline.n_tasks == 8).all()  # two chunks through four stages
    assert ((pipeline.dp3_cpu_s > 1) & (pipeline.dp3_cpu_s < pipeline.cpu_s)).all()
    assert ((pipeline.occupancy > 0.1) & (pipeline.occupancy <= 1)).all()
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert "one dask task for the MeasurementSet" in (folder / "table.md").read_text()


def test_growth_is_measured(tmp_path):
    folder = tmp_path / "scale"
    sizes = "--observations 1 --chunks 2 --jobs 1 2 --merges 2".split()
    command = [sys.executable, str(ROOT / "benchmarks/scale.py"), "--folder", str(folder), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = pd.read_csv(folder / "scale.tsv", sep="\t")
    assert list(table.what) == ["dry run", "dry run", "jobs", "jobs", "merge"]
    assert list(table.chunk_jobs[:4]) == [4, 8, 4, 8]
    assert "keeps 1000 slots busy" in done.stdout
