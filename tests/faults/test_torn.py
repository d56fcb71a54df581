"""A finished chunk that is damaged afterwards never gets into a final product unnoticed."""

import shutil

import pytest

from pipeline import assert_same_bits, columns, must_run, snakemake, solutions
from tiny_ms import make_ms, write_sky_model


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torn")
    ms = make_ms(folder / "a.ms", n_slots=8)
    write_sky_model(folder / "a.skymodel")
    config = {
        "input": [str(ms)],
        "calibrate": {"sky_model": "{ms_dir}/a.skymodel", "solves": [{"mode": "diagonal", "solint_s": 10}]},
        "chunks": {"n_slots": 2},
        "keep_chunks": True,
    }
    must_run(folder / "run", config)
    return folder / "run", config


@pytest.mark.repeat(10, 3)
def test_truncated_chunk(finished, tmp_path, count, dice, repeat):
    original, config = finished
    folder = tmp_path / "run"
    shutil.copytree(original, folder)
    chunk = f"t000{dice.randrange(4)}"
    stage = ("preprocess", "calibrate", "apply")[repeat % 3]
    if stage == "calibrate":
        victim = folder / f"results/a/calibrate/{chunk}/gain.h5"
    else:
        victim = dice.choice(sorted((folder / f"results/a/{stage}/{chunk}.ms").glob("table.*")))
    # What was made of it is gone, so that the damaged chunk is wanted again.
    for product in folder.glob("results/a/apply/*"):
        if stage != "apply":
            shutil.rmtree(product) if product.is_dir() else product.unlink()
    shutil.rmtree(folder / "results/a/a.ms")
    (folder / "results/a/solutions/gain.h5").unlink()
    with victim.open("r+b") as file:
        file.truncate(dice.randrange(victim.stat().st_size))
    with count("torn chunk"):
        done = snakemake(folder, config)
        if done.returncode == 0:  # made again
            assert_same_bits(columns(folder / "results/a/a.ms"), columns(original / "results/a/a.ms"))
            assert_same_bits(
                solutions(folder / "results/a/solutions/gain.h5"), solutions(original / "results/a/solutions/gain.h5")
            )
        else:  # refused by name
            assert any(line.startswith("chunkcal: ") and chunk in line for line in done.stdout.splitlines()), (
                done.stdout
            )
            assert "Traceback" not in done.stdout.split("chunkcal: ")[0]
