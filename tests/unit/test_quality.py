"""The quality gate names what was made wrong, and nothing where nothing is wrong."""

import json
import re

import h5py
import numpy as np
import pytest

from chunkcal.errors import UserError
from chunkcal.quality import describe, judge
from chunkcal.simulate.signal import TEC_PHASE

START = 4871282393.0  # MJD s
REFERENCE = "CS001"


def write_h5parm(path, tables, interval_s=10.0, freqs=(140e6,), directions=("[p0]",), weights=None, axes=None):
    """Write solutions as DP3 does; `tables` maps names to arrays [time, freq, ant, dir(, pol)] or along `axes`."""
    with h5py.File(path, "w") as file:
        for name, values in tables.items():
            names = axes or ["time", "freq", "ant", "dir", "pol"][: values.ndim]
            length = dict(zip(names, values.shape, strict=True))
            group = file.create_group(f"sol000/{name}")
            group.attrs["TITLE"] = np.bytes_(re.sub(r"\d+$", "", name))
            every = {
                "time": START + interval_s * (np.arange(length["time"]) + 0.5),
                "freq": np.array(freqs),
                "ant": np.array(stations(length["ant"]), "S6"),
                "dir": np.array(directions, "S128"),
                "pol": np.array({2: ["XX", "YY"], 4: ["XX", "XY", "YX", "YY"]}.get(length.get("pol"), []), "S2"),
            }
            for axis in names:
                group[axis] = every[axis]
            group["val"] = values
            group["weight"] = np.ones(values.shape, "f4") if weights is None else weights
            for dataset in ("val", "weight"):
                group[dataset].attrs["AXES"] = np.bytes_(",".join(names))
    return path


def stations(n):
    return [f"{'CS' if i < 2 * n // 3 else 'RS'}{i:03d}" for i in range(n)]


# ---- gains ----------------------------------------------------------------------------------------------


def gains(telescope, seed, n_time, n_ant, freqs, interval_s, noise):
    """Gains with an arbitrary phase in every solution: [time, freq, ant, pol], complex.

    LOFAR: TEC that walks by up to 10 mTECU (0.6 rad) in 10 s at the remote stations, amplitudes that wander by 10 % in
    an hour. MeerKAT: phases that walk by 0.1 rad in a minute, amplitudes by 2 %.
    """
    rng = np.random.default_rng(seed)
    freqs = np.array(freqs)
    seconds = interval_s * np.arange(n_time)
    if telescope == "lofar":
        baseline = np.where(np.arange(n_ant) < 2 * n_ant // 3, 0.1, 1.0)
        walk = np.cumsum(rng.normal(size=(n_time, n_ant)), axis=0) * np.sqrt(interval_s / 10)
        phase = TEC_PHASE * (0.004 * walk * baseline)[:, None] / freqs[:, None]
        scatter, period_s = 0.1, rng.uniform(2200, 7200, (n_ant, 2))
    else:
        walk = np.cumsum(rng.normal(size=(n_time, n_ant)), axis=0) * np.sqrt(interval_s / 60)
        phase = 0.1 * walk[:, None] * freqs[:, None] / freqs.mean()
        scatter, period_s = 0.02, rng.uniform(2200, 7200, (n_ant, 2))
    turn = 2 * np.pi * seconds[:, None, None] / period_s + rng.uniform(0, 2 * np.pi, (n_ant, 2))
    amplitude = np.exp(scatter * (np.sqrt(0.5) * rng.normal(size=(n_ant, 2)) + np.sin(turn)))
    gain = amplitude[:, None] * np.exp(1j * (phase[..., None] + rng.normal(size=(n_ant, 2))))
    gain = gain + noise * rng.normal(size=(*gain.shape, 2)).view(complex)[..., 0]
    return gain * np.exp(1j * rng.uniform(0, 2 * np.pi, (n_time, len(freqs), 1, 2)))


def tables_of(gain):
    gain = gain[:, :, :, None]
    return {"amplitude000": np.abs(gain), "phase000": np.angle(gain)}


def judged(tmp_path, tables, seams=(), failed=(), convergence=None, limits=None, **layout):
    path = write_h5parm(tmp_path / "gain.h5", tables, **layout)
    by_solve = {"gain": convergence} if convergence else {}
    report = judge("obs1", {"gain": path}, {"gain": list(seams)}, limits or {}, {"gain": list(failed)}, by_solve)
    assert json.loads(json.dumps(report)) == report
    assert "nan" not in json.dumps(report).lower().replace("antenna", "")
    return report


def figures(report, *verdicts):
    found = report["solves"]["gain"]["figures"]
    return {name for name, figure in found.items() if figure["verdict"] in verdicts}


# telescope, times, stations, frequencies, interval s, solutions per chunk, noise
CASES = {
    "lofar fast": ("lofar", 120, 12, 4, 8.0, 15, 0.05),
    "lofar slow": ("lofar", 30, 12, 6, 120.0, 5, 0.02),
    "lofar noisy": ("lofar", 96, 10, 2, 32.0, 24, 0.2),
    "lofar many chunks": ("lofar", 100, 14, 1, 8.0, 4, 0.05),
    "meerkat": ("meerkat", 60, 16, 3, 8.0, 10, 0.01),
    "meerkat noisy": ("meerkat", 48, 8, 1, 64.0, 8, 0.1),
    "meerkat short": ("meerkat", 16, 8, 2, 64.0, 8, 0.02),
}


def case(name, seed):
    telescope, n_time, n_ant, n_freq, interval_s, n_chunk, noise = CASES[name]
    freqs = (140e6 if telescope == "lofar" else 1e9) * (1 + 0.01 * np.arange(n_freq))
    gain = gains(telescope, seed, n_time, n_ant, freqs, interval_s, noise)
    return gain, {"seams": range(n_chunk, n_time, n_chunk), "interval_s": interval_s, "freqs": freqs}


@pytest.mark.parametrize("name", CASES)
def test_ten_clean_seeds_raise_no_alarm(tmp_path, name):
    for seed in range(10):
        gain, layout = case(name, seed)
        report = judged(tmp_path, tables_of(gain), convergence={"n": len(gain), "converged": len(gain)}, **layout)
        assert describe(report) == []
        assert report["verdict"] == "pass"
        assert {"seam_jump", "chunk_noise", "amplitude_drift", "phase_noise_rad"} <= figures(report, "pass")
