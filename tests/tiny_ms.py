"""A MeasurementSet of a few kilobytes that DP3 accepts, and a way to run DP3 on it.

One point source lies at the phase centre, so the model visibilities are constant and what
the stations do to them is all that DP3 has to solve for. No measures data are needed to make it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import casacore.tables as ct
import numpy as np

START = 4871282393.0  # MJD s, 2013-03-29: inside every edition of the measures data
FLUX = 10.0  # Jy, flat spectrum
CENTRE = (0.5, 0.9)  # rad, RA and Dec of phase centre and source
# Invented positions, in metres around a real place: DP3 only wants them to be on the Earth.
ORIGIN = np.array([3826896.0, 460979.0, 5064658.0])
DP3 = Path(sys.executable).with_name("DP3.py")


def dp3_environment() -> dict[str, str]:
    """Environment of a DP3 process: one BLAS thread, and python-casacore's measures data."""
    casacore = Path(find_spec("casacore").origin).parent
    return {
        **os.environ,
        "OPENBLAS_NUM_THREADS": "1",
        "AIPSPATH": str(casacore),
        "CASACORE_DATADIR": str(casacore / "data"),
    }


def run_dp3(folder: Path, keys: Mapping[str, object]) -> str:
    """Run DP3 in `folder` with the given parset keys and return what it printed."""
    keys = {"numthreads": 1, "checkparset": 1, **keys}
    parset = folder / "dp3.parset"
    parset.write_text("".join(f"{key}={value}\n" for key, value in keys.items()))
    done = subprocess.run(
        [sys.executable, str(DP3), parset.name],
        cwd=folder,
        env=dp3_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    if done.returncode != 0:
        raise AssertionError(f"DP3 returned {done.returncode}:\n{done.stdout[-2000:]}")
    return done.stdout


def write_sky_model(path: Path, n_patches: int = 1) -> Path:
    """Write one point source at the phase centre; further patches hold faint ones around it."""
    ra, dec = np.degrees(CENTRE)
    lines = ["FORMAT = Name, Type, Patch, Ra, Dec, I"]
    for i in range(n_patches):
        place = f"{ra + 0.3 * i:.8f}deg, {dec + 0.2 * i:.8f}deg"
        lines += [f", , p{i}, {place}", f"s{i}, POINT, p{i}, {place}, {FLUX / (1 + 4 * i)}"]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_ms(
    path: Path,
    n_stations: int = 4,
    n_slots: int = 8,
    n_channels: int = 4,
    interval_s: float = 10.0139008,  # LOFAR's: not exact in binary, so sloppy time arithmetic shows
    jones: np.ndarray | None = None,
    missing: Sequence[int] = (),
    autocorrelations: bool = True,
    noise: float = 0.01,
    seed: int = 1,
) -> Path:
    """Write a MeasurementSet.

    Parameters
    ----------
    jones : (n_slots, n_stations, n_channels, 2, 2) complex, optional
        What each station does to the signal; default is random, near unity.
    missing : sequence of int
        Slots that have no rows.
    """
    rng = np.random.default_rng(seed)
    if jones is None:
        jones = random_jones(n_slots, n_stations, n_channels, seed=seed)
    slots = np.array([slot for slot in range(n_slots) if slot not in set(missing)])
    times = START + slots * interval_s
    first, second = (x.astype(np.int32) for x in np.triu_indices(n_stations, 0 if autocorrelations else 1))
    n_baselines, n_rows = len(first), len(first) * len(slots)
    shape = (n_rows, n_channels, 4)
    left, right = jones[slots][:, first], jones[slots][:, second]
    data = FLUX * left @ right.conj().swapaxes(-1, -2)
    data = data.reshape(shape) + noise * rng.normal(size=(*shape, 2)).view(complex)[..., 0]
    # Equal for the four correlations of a visibility: DDECal's full-Jones solutions are biased otherwise.
    weight = rng.uniform(0.5, 1.5, (*shape[:2], 1)).astype(np.float32)
    positions = ORIGIN + 500.0 * rng.normal(size=(n_stations, 3))

    ms = ct.default_ms(str(path), _description(n_channels), _storage(n_channels))
    ms.addrows(n_rows)
    columns = {
        "TIME": np.repeat(times, n_baselines),
        "TIME_CENTROID": np.repeat(times, n_baselines),
        "ANTENNA1": np.tile(first, len(slots)),
        "ANTENNA2": np.tile(second, len(slots)),
        "INTERVAL": np.full(n_rows, interval_s),
        "EXPOSURE": np.full(n_rows, interval_s),
        "UVW": np.tile(positions[first] - positions[second], (len(slots), 1)),
        "DATA": data.astype(np.complex64),
        "FLAG": np.zeros(shape, bool),
        "WEIGHT_SPECTRUM": np.repeat(weight, 4, axis=2),
        "WEIGHT": np.ones((n_rows, 4), np.float32),
        "SIGMA": np.ones((n_rows, 4), np.float32),
        "SCAN_NUMBER": np.ones(n_rows, np.int32),
    }
    zero = ["ARRAY_ID", "DATA_DESC_ID", "FEED1", "FEED2", "FIELD_ID", "OBSERVATION_ID", "PROCESSOR_ID", "STATE_ID"]
    columns |= {name: np.zeros(n_rows, np.int32) for name in zero}
    for name, values in columns.items():
        ms.putcol(name, values)
    ms.close()
    _write_subtables(path, positions, times, interval_s, n_channels)
    return path


def read(path: Path, column: str) -> np.ndarray:
    """Read a whole column of the main table."""
    with ct.table(str(path), ack=False) as table:
        return table.getcol(column)


def random_jones(n_slots: int, n_stations: int, n_channels: int, seed: int = 1) -> np.ndarray:
    """Diagonal Jones matrices, (slot, station, channel, 2, 2): smooth in time, near unity."""
    rng = np.random.default_rng(seed)
    gains = 1 + 0.2 * rng.normal(size=(n_slots, n_stations, 1, 2))
    gains = gains * np.exp(0.5j * rng.normal(size=(n_slots, n_stations, 1, 2)))
    return np.broadcast_to(gains[..., None] * np.eye(2), (n_slots, n_stations, n_channels, 2, 2))


def _description(n_channels: int) -> dict:
    description = ct.required_ms_desc()
    cell = [n_channels, 4]
    description.update(
        ct.maketabdesc(
            [
                ct.makearrcoldesc("DATA", 0j, ndim=2, shape=cell, valuetype="complex"),
                ct.makearrcoldesc("WEIGHT_SPECTRUM", 0.0, ndim=2, shape=cell, valuetype="float"),
            ]
        )
    )
    for name, shape in (("FLAG", cell), ("UVW", [3])):
        description[name].update(ndim=len(shape), shape=np.array(shape, np.int32), option=5)  # direct, fixed shape
    return description


def _storage(n_channels: int) -> dict:
    tiled = {
        "DATA": [4, n_channels, 64],
        "FLAG": [4, n_channels, 512],
        "WEIGHT_SPECTRUM": [4, n_channels, 64],
        "UVW": [3, 64],
    }
    managers = {}
    for i, (column, tile) in enumerate(tiled.items(), start=1):
        managers[f"*{i}"] = {
            "TYPE": "TiledColumnStMan",
            "NAME": f"Tiled{column}",
            "COLUMNS": [column],
            "SPEC": {"DEFAULTTILESHAPE": np.array(tile, np.int32)},
        }
    return managers


def _write_subtables(path: Path, positions: np.ndarray, times: np.ndarray, interval_s: float, n_channels: int) -> None:
    n = len(positions)
    names = [f"ST{i:03d}" for i in range(n)]
    width = 195312.5
    frequencies = 140e6 + width * np.arange(n_channels)
    centre = np.array([CENTRE])
    _put(
        path / "ANTENNA",
        n,
        NAME=names,
        STATION=names,
        TYPE=["GROUND-BASED"] * n,
        MOUNT=["X-Y"] * n,
        POSITION=positions,
        OFFSET=np.zeros((n, 3)),
        DISH_DIAMETER=np.full(n, 30.0),
    )
    _put(
        path / "FEED",
        n,
        ANTENNA_ID=np.arange(n, dtype=np.int32),
        NUM_RECEPTORS=np.full(n, 2, np.int32),
        SPECTRAL_WINDOW_ID=np.full(n, -1, np.int32),
        BEAM_ID=np.full(n, -1, np.int32),
        TIME=np.full(n, times.mean()),
        INTERVAL=np.full(n, 1e9),
        BEAM_OFFSET=np.zeros((n, 2, 2)),
        RECEPTOR_ANGLE=np.zeros((n, 2)),
        POSITION=np.zeros((n, 3)),
        POL_RESPONSE=np.tile(np.eye(2, dtype=np.complex64), (n, 1, 1)),
        POLARIZATION_TYPE={"shape": [n, 2], "array": ["X", "Y"] * n},
    )
    _put(
        path / "FIELD",
        1,
        NAME=["centre"],
        TIME=times[:1],
        **dict.fromkeys(("DELAY_DIR", "PHASE_DIR", "REFERENCE_DIR"), centre[None]),
    )
    _put(
        path / "OBSERVATION",
        1,
        TELESCOPE_NAME=["LOFAR"],
        TIME_RANGE=np.array([[times[0] - interval_s / 2, times[-1] + interval_s / 2]]),
    )
    _put(
        path / "SPECTRAL_WINDOW",
        1,
        NUM_CHAN=np.array([n_channels], np.int32),
        CHAN_FREQ=frequencies[None],
        REF_FREQUENCY=np.array([frequencies.mean()]),
        TOTAL_BANDWIDTH=np.array([width * n_channels]),
        MEAS_FREQ_REF=np.array([5], np.int32),
        **dict.fromkeys(("CHAN_WIDTH", "EFFECTIVE_BW", "RESOLUTION"), np.full((1, n_channels), width)),
    )
    _put(
        path / "POLARIZATION",
        1,
        NUM_CORR=np.array([4], np.int32),
        CORR_TYPE=np.array([[9, 10, 11, 12]], np.int32),
        CORR_PRODUCT=np.array([[[0, 0], [0, 1], [1, 0], [1, 1]]], np.int32),
    )
    _put(path / "DATA_DESCRIPTION", 1, SPECTRAL_WINDOW_ID=np.zeros(1, np.int32), POLARIZATION_ID=np.zeros(1, np.int32))
    _put(path / "PROCESSOR", 1)
    _put(path / "STATE", 1)


def _put(path: Path, n_rows: int, **columns: object) -> None:
    with ct.table(str(path), readonly=False, ack=False) as table:
        table.addrows(n_rows)
        for name, values in columns.items():
            table.putcol(name, values)
