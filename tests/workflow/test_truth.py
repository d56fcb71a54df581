"""Calibration finds the gains that the simulation has put in, and the corrected data fit the model better."""

import json

import h5py
import numpy as np
import pytest

from chunkcal.simulate import Simulation, gain, simulate
from pipeline import must_run

TIME_FACTOR, SOLINT = 2, 4  # slots of the input in one of the averaged data, and of those in a solution
OBSERVATIONS = {
    "lofar": Simulation("lofar", n_stations=14, n_slots=64, n_channels=16, n_patches=1, n_sources=4, peak_jy=50.0),
    "meerkat": Simulation("meerkat", n_stations=12, n_slots=64, n_channels=16, n_patches=1, n_sources=4),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    files = {name: simulate(settings, folder / f"{name}.ms") for name, settings in OBSERVATIONS.items()}
    interval = {name: settings.complete().interval_s for name, settings in OBSERVATIONS.items()}
    for name in OBSERVATIONS:
        config = {
            "input": [str(files[name].ms)],
            "preprocess": {
                "steps": [
                    {"PreFlagger": {"baseline": "*&&&"}},
                    {"AOFlagger": {"timewindow": 32}},
                    {"Averager": {"timestep": TIME_FACTOR}},
                ]
            },
            "calibrate": {
                "sky_model": str(files[name].sky_model),
                "solves": [
                    {
                        "mode": "diagonal",
                        "solint_s": interval[name] * TIME_FACTOR * SOLINT,
                        "solution_bandwidth_hz": 1.0,  # one solution per channel
                    }
                ],
            },
            "chunks": {"n_slots": 32},
        }
        must_run(folder / name, config)
    return folder, files


def recovered(folder, files, name):
    """Solutions and truth as complex gains [time, ant, freq, pol], phases relative to the first station."""
    with h5py.File(folder / name / f"results/{name}/solutions/gain.h5") as file:
        tables = file["sol000"]
        axes = tables["phase000/val"].attrs["AXES"].decode().split(",")
        order = [axes.index(axis) for axis in ("time", "ant", "freq", "dir", "pol")]
        phase, amplitude = (tables[f"{kind}000/val"][:].transpose(order)[:, :, :, 0] for kind in ("phase", "amplitude"))
        times = tables["phase000/time"][:]
    found = amplitude * np.exp(1j * phase)
    n = TIME_FACTOR * SOLINT
    true = gain(files[name].truth)
    true = true[: len(times) * n].reshape(len(times), n, *true.shape[1:]).mean(1)
    return [gains * np.exp(-1j * np.angle(gains[:, :1])) for gains in (found, true)]


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_gains_are_those_of_the_simulation(run, name, capsys):
    found, true = recovered(*run, name)
    assert found.shape == true.shape
    with h5py.File(run[1][name].truth) as truth:
        noise = truth.attrs["noise_jy"]
        n_stations = len(truth["antenna"])
    solved = np.isfinite(found[:, 1:])  # a channel in which a transmitter never stops has no solutions
    assert solved.mean() > 0.85
    error = (found[:, 1:] / true[:, 1:])[solved]
    phase_rms, amplitude = np.std(np.angle(error)), np.abs(error)
    # A station's gain rests on its N - 1 baselines, each averaged over a solution interval: with the noise sigma of a
    # real part and the model's flux S, sigma / (S sqrt(n (N - 1))) in phase and in relative amplitude; twice that in
    # variance for a phase relative to another station (the Cramér-Rao bound of Wijnholds & van der Veen 2009, IEEE
    # Trans. Signal Process. 57, 3512, for one direction and N >> 1).
    flux = OBSERVATIONS[name].complete().peak_jy
    expected = noise / (flux * np.sqrt(TIME_FACTOR * SOLINT * (n_stations - 1)))
    with capsys.disabled():
        print(
            f"\n{name}: phase rms {phase_rms:.4f} rad (thermal {np.sqrt(2) * expected:.4f}), amplitude median"
            f" {np.median(amplitude):.4f}, scatter {np.std(amplitude):.4f} (thermal {expected:.4f})"
        )
    assert phase_rms < 1.5 * np.sqrt(2) * expected
    assert abs(np.median(amplitude) - 1) < 0.02
    assert np.std(amplitude) < 1.5 * expected


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_corrected_data_fit_the_model_better_by_what_the_report_says(run, name):
    folder, _ = run
    fits = [json.loads(path.read_text()) for path in (folder / name / f"results/{name}/fit").glob("*.fit.json")]
    assert len(fits) == 2
    n = sum(fit["n_visibilities"] for fit in fits)
    before, after = (
        np.sqrt(sum(fit[key] ** 2 * fit["n_visibilities"] for fit in fits) / n)
        for key in ("rms_raw_jy", "rms_corrected_jy")
    )
    assert before > 2 * after
    page = (folder / name / "results/report.html").read_text()
    assert f"{before / after:.1f} times better" in page
