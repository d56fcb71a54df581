"""A full disk ends the run with a clear line, nothing half-made is accepted, and the run resumes when there is room."""

import os
import shutil
import subprocess

import pytest

from pipeline import assert_same_bits, columns, complaints, must_run, snakemake, solutions
from tiny_ms import make_ms, write_sky_model

SIZE = 24 << 20


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A MeasurementSet whose chunks take a megabyte each, its sky model, and what a clean run makes of them."""
    folder = tmp_path_factory.mktemp("disk data")
    ms = make_ms(folder / "a.ms", n_stations=12, n_slots=8, n_channels=32)
    write_sky_model(folder / "a.skymodel")
    config = {
        "input": [str(ms)],
        "calibrate": {"sky_model": "{ms_dir}/a.skymodel", "solves": [{"mode": "diagonal", "solint_s": 10}]},
        "chunks": {"n_slots": 2},
        "keep_chunks": True,
    }
    must_run(folder / "clean", config)
    return config, folder / "clean/results/a"


@pytest.fixture
def disk(tmp_path):
    """A file system of `SIZE` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("only root can mount the small file system that this test fills")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk, leave):
    """Fill a file system but for `leave` bytes."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    with open(disk / "filler", "wb") as file:
        file.write(b"\0" * (free - leave))


# What is made anew on the full disk, the bytes that are left for it, and what the user's line must name.
CASES = {
    "chunk write": (
        ["preprocess", "calibrate", "apply", "solutions/gain.h5", "a.ms"],
        400_000,
        "chunkcal: preprocess a t000",
    ),
    "merge": (["solutions/gain.h5", "apply", "a.ms"], 4096, "solutions/gain.h5"),
    "join": (["a.ms"], 600_000, "a.ms"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.repeat(3, 1)
def test_disk_full(data, disk, tmp_path, count, case, repeat):
    config, clean = data
    anew, leave, named = CASES[case]
    config = config | {"output_dir": str(disk / "results")}
    work = tmp_path / "work"
    must_run(work, config)
    for name in anew:
        path = disk / "results/a" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    fill(disk, leave - repeat * 1024)
    with count(f"disk full during {case}"):
        done = snakemake(work, config)
        assert done.returncode != 0
        lines = complaints(done.stdout)
        assert any(named in line for line in lines), done.stdout[-4000:]
        product = disk / "results/a" / ("preprocess/t0000.ms" if case == "chunk write" else anew[0])
        assert not product.exists()
        (disk / "filler").unlink()
        must_run(work, config)
        assert not list((disk / "results").rglob("*.tmp-*"))
        # A report that a failed run has left is none of this one.
        assert "MeasurementSet is missing" not in (disk / "results/report.html").read_text()
        assert_same_bits(solutions(disk / "results/a/solutions/gain.h5"), solutions(clean / "solutions/gain.h5"))
        assert_same_bits(columns(disk / "results/a/a.ms"), columns(clean / "a.ms"))
