"""Writes a simulated MeasurementSet: all subtables at once, then the rows of a few slots at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import casacore.tables as ct
import numpy as np

from chunkcal.simulate.signal import Scene

TILE_BYTES = 1 << 20  # a tile of DATA: a few slots of a usual set, and little to read for one baseline
TOPOCENTRIC = 5  # MFrequency::TOPO
LINEAR = (9, 10, 11, 12)  # Stokes::XX, XY, YX, YY
ZEROS = ("ARRAY_ID", "DATA_DESC_ID", "FEED1", "FEED2", "FIELD_ID", "OBSERVATION_ID", "PROCESSOR_ID", "STATE_ID")
# Columns that hardly ever change from row to row.
INCREMENTAL = (*ZEROS, "EXPOSURE", "FLAG_ROW", "INTERVAL", "SCAN_NUMBER", "TIME", "TIME_CENTROID", "FLAG_CATEGORY")


class Writer:
    """The open main table of a simulated MeasurementSet."""

    def __init__(self, table: ct.table, scene: Scene) -> None:
        self._table = table
        self._scene = scene
        variance = scene.noise_jy**2
        self._weight = np.float32(1 / variance if variance else 1)

    def write(self, first: int, data: np.ndarray, uvw: np.ndarray) -> None:
        """Write the rows of some slots, time-major, all columns.

        Parameters
        ----------
        first : int
            Position of the first slot in the scene's `times`.
        data : ndarray of complex64, [time, baseline, chan, 4], Jy
        uvw : ndarray of float64, [time, baseline, 3], m
        """
        scene, (n_times, n_baselines, n_channels, _) = self._scene, data.shape
        start, n_rows = first * n_baselines, n_times * n_baselines
        times = np.repeat(scene.times[first : first + n_times], n_baselines)
        interval = np.full(n_rows, scene.settings.interval_s)
        shape = (n_rows, n_channels, 4)
        columns = {
            "DATA": data.reshape(shape),
            "UVW": uvw.reshape(n_rows, 3),
            "WEIGHT_SPECTRUM": np.full(shape, self._weight),
            "FLAG": np.zeros(shape, bool),
            "WEIGHT": np.full((n_rows, 4), self._weight),
            "SIGMA": np.full((n_rows, 4), 1 / np.sqrt(self._weight)),
            "ANTENNA1": np.tile(scene.antenna1, n_times),
            "ANTENNA2": np.tile(scene.antenna2, n_times),
            "TIME": times,
            "TIME_CENTROID": times,
            "INTERVAL": interval,
            "EXPOSURE": interval,
            "SCAN_NUMBER": np.ones(n_rows, np.int32),
            "FLAG_ROW": np.zeros(n_rows, bool),
            **dict.fromkeys(ZEROS, np.zeros(n_rows, np.int32)),
        }
        for name, values in columns.items():
            self._table.putcol(name, values, start, n_rows)


@contextlib.contextmanager
def created(path: Path, scene: Scene, history: str) -> Iterator[Writer]:
    """Create a MeasurementSet with its subtables and empty rows, and close it in the end.

    Parameters
    ----------
    path : Path
        Must not exist.
    scene : Scene
    history : str
        What the HISTORY subtable says of the settings.
    """
    description, managers = _main_table(scene)
    table = ct.default_ms(str(path), description, managers)
    try:
        table.addrows(len(scene.times) * len(scene.antenna1))
        for name, rows in _subtables(scene, history).items():
            with contextlib.closing(ct.table(str(path / name), readonly=False, ack=False)) as subtable:
                subtable.addrows(len(rows))
                for i, row in enumerate(rows):
                    for column, value in row.items():
                        subtable.putcell(column, i, value)
        yield Writer(table, scene)
    finally:
        table.close()


def _main_table(scene: Scene) -> tuple[dict, dict]:
    """Describe columns and storage managers: arrays tiled, so that DP3 reads and updates them in place."""
    n_channels = len(scene.freqs)
    n_rows = len(scene.times) * len(scene.antenna1)
    cell = [n_channels, 4]
    description = ct.required_ms_desc()
    for name, value, kind in (("DATA", 0j, "complex"), ("WEIGHT_SPECTRUM", 0.0, "float")):
        column = ct.makearrcoldesc(name, value, ndim=2, shape=cell, valuetype=kind)
        description.update(ct.maketabdesc([column]))
    for name, shape in (("FLAG", cell), ("UVW", [3]), ("WEIGHT", [4]), ("SIGMA", [4])):
        description[name].update(ndim=len(shape), shape=np.array(shape, np.int32), option=5)  # direct, fixed shape
    description["DATA"]["keywords"]["UNIT"] = "Jy"
    description["UVW"]["keywords"]["MEASINFO"] = {"type": "uvw", "Ref": "J2000"}
    # A tile is stored whole: a small set must not be padded to a large one.
    tile_rows = max(1, min(n_rows, TILE_BYTES // (n_channels * 4 * 8)))
    tiles = {
        "DATA": [4, n_channels, tile_rows],
        "WEIGHT_SPECTRUM": [4, n_channels, tile_rows],
        "FLAG": [4, n_channels, min(n_rows, 8 * tile_rows)],
        "UVW": [3, min(n_rows, 4096)],
        "WEIGHT": [4, min(n_rows, 4096)],
        "SIGMA": [4, min(n_rows, 4096)],
    }
    managers = [
        {
            "TYPE": "TiledColumnStMan",
            "NAME": f"Tiled{name}",
            "COLUMNS": [name],
            "SPEC": {"DEFAULTTILESHAPE": np.array(tile, np.int32)},
        }
        for name, tile in tiles.items()
    ]
    managers.append({"TYPE": "StandardStMan", "NAME": "SSM", "COLUMNS": ["ANTENNA1", "ANTENNA2"], "SPEC": {}})
    # One manager per column: a shared one makes writing a whole column about 50 times slower.
    managers += [{"TYPE": "IncrementalStMan", "NAME": name, "COLUMNS": [name], "SPEC": {}} for name in INCREMENTAL]
    return description, {f"*{i + 1}": manager for i, manager in enumerate(managers)}


def _subtables(scene: Scene, history: str) -> dict[str, list[dict]]:
    """Give the rows of all subtables that the main table's ids point to; POINTING and FLAG_CMD stay empty."""
    settings, telescope = scene.settings, scene.telescope
    half = settings.interval_s / 2
    first, last = scene.times[0] - half, scene.times[-1] + half
    centre = np.radians([settings.phase_centre_deg])
    n_channels = len(scene.freqs)
    width = np.full(n_channels, settings.channel_width_hz)
    return {
        "ANTENNA": _antennas(scene),
        "FEED": _feeds(scene, first, last),
        "FIELD": [
            {"NAME": "simulated", "CODE": "", "TIME": first, "NUM_POLY": 0, "SOURCE_ID": -1, "FLAG_ROW": False}
            | dict.fromkeys(("DELAY_DIR", "PHASE_DIR", "REFERENCE_DIR"), centre)
        ],
        "OBSERVATION": [
            {
                "TELESCOPE_NAME": telescope.name,
                "OBSERVER": "chunkcal",
                "PROJECT": "simulated",
                "SCHEDULE_TYPE": "",
                "TIME_RANGE": np.array([first, last]),
                "RELEASE_DATE": last,
                "FLAG_ROW": False,
            }
        ],
        "SPECTRAL_WINDOW": [
            {
                "NAME": "SPW0",
                "NUM_CHAN": n_channels,
                "CHAN_FREQ": scene.freqs,
                "REF_FREQUENCY": scene.freqs.mean(),
                "TOTAL_BANDWIDTH": width.sum(),
                "MEAS_FREQ_REF": TOPOCENTRIC,
                "NET_SIDEBAND": 1,
                "FREQ_GROUP": 0,
                "FREQ_GROUP_NAME": "",
                "IF_CONV_CHAIN": 0,
                "FLAG_ROW": False,
            }
            | dict.fromkeys(("CHAN_WIDTH", "EFFECTIVE_BW", "RESOLUTION"), width)
        ],
        "POLARIZATION": [
            {
                "NUM_CORR": 4,
                "CORR_TYPE": np.array(LINEAR, np.int32),
                "CORR_PRODUCT": np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.int32),
                "FLAG_ROW": False,
            }
        ],
        "DATA_DESCRIPTION": [{"SPECTRAL_WINDOW_ID": 0, "POLARIZATION_ID": 0, "FLAG_ROW": False}],
        "PROCESSOR": [{"TYPE": "CORRELATOR", "SUB_TYPE": "", "TYPE_ID": -1, "MODE_ID": -1, "FLAG_ROW": False}],
        "STATE": [
            {
                "SIG": True,
                "REF": False,
                "CAL": 0.0,
                "LOAD": 0.0,
                "SUB_SCAN": 0,
                "OBS_MODE": "OBSERVE_TARGET#ON_SOURCE",
                "FLAG_ROW": False,
            }
        ],
        "HISTORY": [
            {
                "TIME": first,  # of the observation, not of the writing: the same settings give the same set
                "OBSERVATION_ID": 0,
                "MESSAGE": history,
                "PRIORITY": "INFO",
                "ORIGIN": "chunkcal simulate",
                "OBJECT_ID": -1,
                "APPLICATION": "chunkcal",
                "CLI_COMMAND": [""],
                "APP_PARAMS": [""],
            }
        ],
    }


def _antennas(scene: Scene) -> list[dict]:
    return [
        {
            "NAME": name,
            "STATION": name,
            "TYPE": "GROUND-BASED",
            "MOUNT": scene.telescope.mount,
            "POSITION": position,
            "OFFSET": np.zeros(3),
            "DISH_DIAMETER": scene.telescope.diameter_m,
            "FLAG_ROW": False,
        }
        for name, position in zip(scene.stations, scene.positions, strict=True)
    ]


def _feeds(scene: Scene, first: float, last: float) -> list[dict]:
    return [
        {
            "ANTENNA_ID": antenna,
            "FEED_ID": 0,
            "SPECTRAL_WINDOW_ID": -1,  # all
            "TIME": (first + last) / 2,
            "INTERVAL": last - first,
            "NUM_RECEPTORS": 2,
            "BEAM_ID": -1,
            "BEAM_OFFSET": np.zeros((2, 2)),
            "POLARIZATION_TYPE": ["X", "Y"],
            "POL_RESPONSE": np.eye(2, dtype=np.complex64),
            "POSITION": np.zeros(3),
            "RECEPTOR_ANGLE": np.zeros(2),
        }
        for antenna in range(len(scene.stations))
    ]
