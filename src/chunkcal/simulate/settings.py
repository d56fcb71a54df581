"""What can be simulated: the telescopes with their stations and habits, and the settings of one simulation."""

from __future__ import annotations

import csv
import dataclasses
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files

import numpy as np

from chunkcal.errors import UserError

BOUNDS = {
    "n_slots": (1, math.inf),
    "n_channels": (1, math.inf),
    "n_patches": (1, math.inf),
    "n_nan_rows": (0, math.inf),
    "seed": (0, math.inf),
    "interval_s": (1e-3, 1e4),
    "channel_width_hz": (1, 1e9),
    "frequency_hz": (1e6, 1e11),
    "peak_jy": (1e-3, 1e9),
    "noise_jy": (0, 1e9),
    "rfi": (0, 1e6),
    "tec_tecu": (0, 1e3),
    "amplitude_scatter": (0, 1),
    "static_phase_rad": (0, 1e3),
}


@dataclass(frozen=True)
class Telescope:
    """What the settings of a simulation default to, and what the MS says about the stations.

    `sefd_jy` is per station and receptor, and only near the truth: about that of a LOFAR HBA core station at 150 MHz
    (van Haarlem et al. 2013, A&A 556, A2, fig. 22), and 2 k T / A of a MeerKAT dish with T = 18 K and
    A = 0.8 pi (6.75 m)^2.
    """

    name: str
    phase_centre_deg: tuple[float, float]  # J2000; more than 55 degrees up for four hours from `start`
    start: str
    interval_s: float
    frequency_hz: float
    channel_width_hz: float
    peak_jy: float
    sefd_jy: float
    spread_deg: float  # distance of the outer patches from the phase centre
    mount: str
    diameter_m: float


TELESCOPES = {
    "lofar": Telescope(
        name="LOFAR",
        phase_centre_deg=(193.0, 52.0),
        start="2024-03-14T23:00:00",
        interval_s=4.0,
        frequency_hz=145e6,
        channel_width_hz=200e6 / 1024 / 4,  # a quarter of a sub-band
        peak_jy=10.0,
        sefd_jy=3000.0,
        spread_deg=1.6,
        mount="X-Y",
        diameter_m=31.0,
    ),
    "meerkat": Telescope(
        name="MeerKAT",
        phase_centre_deg=(85.0, -31.0),
        start="2024-12-14T21:00:00",
        interval_s=8.0,
        frequency_hz=1000e6,
        channel_width_hz=856e6 / 4096,  # the 4k correlator mode
        peak_jy=5.0,
        sefd_jy=430.0,
        spread_deg=0.5,
        mount="ALT-AZ",
        diameter_m=13.5,
    ),
}


@dataclass(frozen=True)
class Simulation:
    """Settings of a simulation; None means the telescope's own value, see `TELESCOPES`.

    Attributes
    ----------
    telescope : 'lofar' or 'meerkat'
        LOFAR's Dutch HBA stations, the core ones split in two (62), or MeerKAT's antennas (62).
    n_stations : int
        Spread over all distances from the first.
    n_slots : int
        Length of the time grid, missing slots included.
    interval_s, channel_width_hz, frequency_hz : float
        The frequency is the middle of the first channel.
    start : str
        UTC of the beginning of the first slot, ISO 8601.
    phase_centre_deg : (float, float)
        J2000 RA and Dec.
    n_patches, n_sources : int
        Directions with an ionosphere of their own, and sources in all of them.
    peak_jy : float
        Brightest source, in the middle of the band.
    noise_jy : float
        Standard deviation of the real and of the imaginary part of each visibility. The default is the radiometer
        equation's, SEFD / sqrt(2 channel_width_hz interval_s).
    tec_tecu : float
        Rms of the ionospheric screen; nearby stations differ by less.
    amplitude_scatter : float
        Rms of the logarithm of the station amplitudes, half of the variance slow in time, half constant.
    static_phase_rad : float
        Rms of a constant phase per station and receptor, 0 for the first station.
    rfi : float
        Strength; 0 is none, at 1 each hit stands at least 5 sigma above the whole sky.
    autocorrelations : bool
    missing_slots : sequence of (int, int)
        Ranges [begin, end) of slots that the MS lacks.
    dead_stations : sequence of str or int
        Names or indices of stations with zero gain: only noise.
    n_nan_rows : int
        Rows, chosen at random, whose DATA are NaN.
    seed : int
        On one machine the same settings and seed give the same bytes.
    """

    telescope: str = "lofar"
    n_stations: int = 62
    n_slots: int = 120
    interval_s: float | None = None
    n_channels: int = 32
    channel_width_hz: float | None = None
    frequency_hz: float | None = None
    start: str | None = None
    phase_centre_deg: tuple[float, float] | None = None
    n_patches: int = 3
    n_sources: int = 18
    peak_jy: float | None = None
    noise_jy: float | None = None
    tec_tecu: float = 0.05
    amplitude_scatter: float = 0.1
    static_phase_rad: float = 1.0
    rfi: float = 1.0
    autocorrelations: bool = True
    missing_slots: tuple[tuple[int, int], ...] = ()
    dead_stations: tuple[str | int, ...] = ()
    n_nan_rows: int = 0
    seed: int = 1

    def complete(self) -> Simulation:
        """Fill in what was left to the telescope, and check everything.

        Raises
        ------
        UserError
            Naming the setting, its value and what would do.
        """
        if self.telescope not in TELESCOPES:
            raise UserError(f"no telescope {self.telescope!r} to simulate; choose one of {', '.join(TELESCOPES)}")
        usual = dataclasses.asdict(TELESCOPES[self.telescope])
        names = [field.name for field in dataclasses.fields(self)]
        filled = {name: usual[name] for name in names if name in usual and getattr(self, name) is None}
        full = dataclasses.replace(self, **filled)
        full._check_numbers()
        if full.noise_jy is None:
            noise = usual["sefd_jy"] / math.sqrt(2 * full.channel_width_hz * full.interval_s)
            full = dataclasses.replace(full, noise_jy=noise)
        full._check_times()
        stations, _ = load_stations(full.telescope, full.n_stations)
        full.dead_indices(stations)
        return full

    def _check_numbers(self) -> None:
        n_available = len(load_stations(self.telescope, None)[0])
        bounds = BOUNDS | {"n_stations": (2, n_available), "n_sources": (self.n_patches, math.inf)}
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is None and name == "noise_jy":
                continue
            wanted = int if name.startswith("n_") or name == "seed" else (int, float)
            if not isinstance(value, wanted) or isinstance(value, bool) or not low <= value <= high:
                kind = "an integer" if wanted is int else "a number"
                bound = f"at least {low}" if high == math.inf else f"from {low:g} to {high:g}"
                raise UserError(f"{name} is {value!r} in a {self.telescope} simulation; it must be {kind} {bound}")
        if self.noise_jy is not None and 0 < self.noise_jy < 1e-6:
            raise UserError(f"noise_jy is {self.noise_jy!r}; use 0 for none, or at least 1e-6 Jy")
        ra, dec = self.phase_centre_deg
        if not (math.isfinite(ra) and -90 <= dec <= 90):
            raise UserError(f"phase_centre_deg is {self.phase_centre_deg}; give RA and Dec, Dec from -90 to 90 degrees")

    def _check_times(self) -> None:
        for begin, end in self.missing_slots:
            if not 0 <= begin < end <= self.n_slots:
                raise UserError(
                    f"missing_slots has {begin}:{end}; "
                    f"a range must be begin:end with 0 <= begin < end <= {self.n_slots}"
                )
        n_times = len(self.slots())
        if not n_times:
            raise UserError(f"missing_slots leaves none of the {self.n_slots} slots; leave out fewer")
        n_rows = n_times * self.n_baselines
        if self.n_nan_rows > n_rows:
            raise UserError(f"n_nan_rows is {self.n_nan_rows}, but there are only {n_rows} rows; choose fewer")
        self.start_mjd_s()

    @property
    def n_baselines(self) -> int:
        """Number of rows of one slot."""
        return self.n_stations * (self.n_stations + (1 if self.autocorrelations else -1)) // 2

    def slots(self) -> np.ndarray:
        """Return the numbers of the slots that are present: int64 [time]."""
        present = np.ones(self.n_slots, bool)
        for begin, end in self.missing_slots:
            present[begin:end] = False
        return np.flatnonzero(present)

    def start_mjd_s(self) -> float:
        """Return the beginning of the first slot, MJD s UTC."""
        try:
            start = datetime.fromisoformat(self.start)
        except (TypeError, ValueError):
            raise UserError(f"start is {self.start!r}; give a UTC like 2024-03-14T23:00:00") from None
        start = start.replace(tzinfo=UTC) if start.tzinfo is None else start
        return (start - datetime(1858, 11, 17, tzinfo=UTC)) / timedelta(seconds=1)

    def dead_indices(self, stations: tuple[str, ...]) -> list[int]:
        """Find the dead stations among the chosen ones.

        Raises
        ------
        UserError
            One is not there.
        """
        indices = []
        for station in self.dead_stations:
            if station in stations:
                indices.append(stations.index(station))
            elif str(station).isdecimal() and int(station) < len(stations):
                indices.append(int(station))
            else:
                raise UserError(
                    f"dead station {station!r} is not in the simulation; give an index below {len(stations)} "
                    f"or one of {', '.join(stations)}"
                )
        return indices


def load_stations(telescope: str, n_stations: int | None) -> tuple[tuple[str, ...], np.ndarray]:
    """Choose stations, spread over all distances from the first one; None means all.

    Returns
    -------
    names : tuple of str
    positions : ndarray of float64, [ant, 3], ITRF m
    """
    text = (files("chunkcal") / "data" / "stations.csv").read_text()
    rows = [row for row in csv.DictReader(text.splitlines()) if row["telescope"] == telescope]
    positions = np.array([[float(row[axis]) for axis in ("x_m", "y_m", "z_m")] for row in rows])
    n_stations = len(rows) if n_stations is None else n_stations
    by_distance = np.argsort(np.linalg.norm(positions - positions[0], axis=1), kind="stable")
    chosen = np.sort(by_distance[np.linspace(0, len(rows) - 1, n_stations).round().astype(int)])
    return tuple(rows[i]["station"] for i in chosen), positions[chosen]
