"""Strategies through the whole pipeline: bands, processing, chunks that fail, the same bytes from any cluster."""

import json
import sys

import h5py
import numpy as np
import pytest

from chunkcal.simulate import Simulation, simulate
from pipeline import assert_same_bits, columns, jobs_of, must_run, snakemake, solutions
from tiny_ms import DP3

BANDS = {"low": 145e6, "high": 147e6}
SETTINGS = Simulation("lofar", n_stations=6, n_slots=24, n_channels=4, n_patches=2, n_sources=2, peak_jy=100, rfi=0)
# An algorithm whose bits depend on its number of threads, so that it must always have the same.
PATCHES = {"directions": "patches", "solver_algorithm": "directioniterative"}
SOLVES = [
    {"name": "phase", "mode": "scalarphase", "solint_s": 4},
    {"name": "gain", "mode": "diagonal", "solint_s": 8, "process": [{"reference": {"station": "auto"}}], **PATCHES},
]


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """One observation in two bands, and the sample sheet that says so."""
    folder = tmp_path_factory.mktemp("bands")
    rows = ["ms\tband_of"]
    for name, frequency in BANDS.items():
        settings = {**SETTINGS.__dict__, "frequency_hz": frequency}
        rows.append(f"{simulate(Simulation(**settings), folder / f'{name}.ms').ms}\ttarget")
    (folder / "sheet.tsv").write_text("\n".join(rows) + "\n")
    return folder


def config(bands, **changes):
    return {
        "observations": str(bands / "sheet.tsv"),
        "calibrate": {"sky_model": "{ms_dir}/{obs}.skymodel", "solves": SOLVES},
        "apply": {"direction": "patch0", "subtract": ["patch1"], "interpolation": "nearest"},
        "chunks": {"n_slots": 6},
        "cluster": {"n_slots": 2},
    } | changes


@pytest.fixture(scope="module")
def finished(bands, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    must_run(folder, config(bands))
    return folder


def products(folder):
    """Every solution and every visibility of a run."""
    found = {}
    for path in sorted(folder.glob("results/*/solutions/*.h5")) + sorted(folder.glob("results/*/bands/*.h5")):
        found |= {f"{path.parent.parent.name} {path.name} {name}": v for name, v in solutions(path).items()}
    for name in BANDS:
        found |= {f"{name} {key}": value for key, value in columns(folder / f"results/{name}/{name}.ms").items()}
    return found


def test_solutions_of_all_stages_are_there(finished):
    names = {str(path.relative_to(finished / "results")) for path in finished.glob("results/*/*/*.h5")}
    assert names == {f"{obs}/solutions/{h5}.h5" for obs in BANDS for h5 in ("phase", "gain", "gain.processed")} | {
        "target/bands/phase.h5",
        "target/bands/gain.h5",
    }
    with h5py.File(finished / "results/target/bands/gain.h5") as file:
        table = file["sol000/phase000"]
        assert table["freq"][:].tolist() == sorted(table["freq"])
        assert table["val"].shape[table["val"].attrs["AXES"].decode().split(",").index("freq")] == len(BANDS)


def test_the_residual_is_noise(finished):
    fits = [json.loads(path.read_text()) for path in finished.glob("results/low/fit/*.fit.json")]
    noise = SETTINGS.complete().noise_jy * np.sqrt(2)  # of a complex visibility
    for fit in fits:
        # Every solution takes some of the noise with it; a model that is not the right one would leave 100 Jy.
        assert 0.4 * noise < fit["rms_corrected_jy"] < 1.2 * noise
        assert fit["rms_raw_jy"] > 10 * noise


@pytest.mark.parametrize("cluster", [{"n_slots": 1, "threads_per_slot": 2}, {"n_slots": 4}], ids=["1x2", "4x1"])
def test_any_cluster_gives_the_same_bytes(bands, finished, tmp_path, cluster):
    must_run(tmp_path, config(bands, cluster=cluster))
    assert_same_bits(products(tmp_path), products(finished))


@pytest.fixture
def failing_dp3(tmp_path):
    """DP3 that fails to solve the third chunk of the low band."""
    script = tmp_path / "dp3.sh"
    script.write_text(
        'case "$(grep -l ddecal "$1"):$(readlink in.ms)" in\n'
        'parset*:*/low/*t0002*) echo "did not work" >&2; exit 3;; esac\n'
        f'exec "{sys.executable}" "{DP3}" "$@"\n'
    )
    return {"command": ["/bin/sh", str(script)]}


def test_a_bad_chunk_stops_its_observation(bands, tmp_path, failing_dp3):
    done = snakemake(tmp_path / "run", config(bands, dp3=failing_dp3))
    assert done.returncode != 0
    assert "chunkcal: calibrate low t0002: DP3 ended with exit status 3: did not work" in done.stdout
    assert (tmp_path / "run/results/high/high.ms").exists()
    assert not (tmp_path / "run/results/low/low.ms").exists()
    # What there is, is reported.
    assert "the output MeasurementSet is missing" in (tmp_path / "run/results/report.html").read_text()


def test_a_bad_chunk_can_be_flagged(bands, finished, tmp_path, failing_dp3):
    changes = {"calibrate": config(bands)["calibrate"] | {"on_bad_chunk": "flag"}}
    must_run(tmp_path / "run", config(bands, dp3=failing_dp3, **changes))
    found, wanted = products(tmp_path / "run"), products(finished)
    assert_same_bits(
        {k: v for k, v in found.items() if k.startswith("high")},
        {k: v for k, v in wanted.items() if k.startswith("high")},
    )
    for solve, bad in (("phase", slice(12, 18)), ("gain", slice(6, 9))):
        values, weights = (found[f"low {solve}.h5 sol000/phase000/{name}"] for name in ("val", "weight"))
        assert np.isnan(values[bad]).all()
        assert not weights[bad].any()
        good = np.delete(np.arange(len(values)), bad)
        assert_same_bits({"": values[good]}, {"": wanted[f"low {solve}.h5 sol000/phase000/val"][good]})
    flags, times = found["low FLAG"], found["low TIME"]
    slots = np.unique(times, return_inverse=True)[1]
    cross = slots * 0 == 0
    assert flags[(slots >= 12) & (slots < 18) & cross].all()
    assert not flags[slots < 12].all()


def test_solutions_that_fail_the_gate_are_not_applied(bands, tmp_path):
    """Unless the user wants it; what was solved is not solved again."""
    strict = {"limits": {"array_phase_noise_rad": {"warn": 1e-9, "fail": 1e-8}}}
    done = snakemake(tmp_path, config(bands, quality=strict))
    assert done.returncode != 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("chunkcal: FAIL"))
    assert "array_phase_noise_rad" in line
    assert line.endswith("quality.on_quality_fail: continue")
    verdict = json.loads((tmp_path / "results/low/quality.json").read_text())
    assert verdict["verdict"] == "fail"
    assert not list(tmp_path.glob("results/*/*.ms"))
    assert '<strong class="bad">fail</strong>' in (tmp_path / "results/report.html").read_text()
    output = must_run(tmp_path, config(bands, quality=strict | {"on_quality_fail": "continue"}))
    assert "calibrate_chunk" not in jobs_of(output)
    assert (tmp_path / "results/low/low.ms").exists()
