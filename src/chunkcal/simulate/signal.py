"""What a simulated interferometer records: sky, ionosphere, station gains, noise and interference, slot by slot.

For stations p < q, receptor x, time t and frequency nu, with the sources s of patch d(s)::

    V_pq,xx = g_px conj(g_qx) sum_s I_s(nu) J_p,d(s) conj(J_q,d(s)) exp(2 pi i (u l + v m + w (n - 1)) nu / c)
    g_px = amp exp(i phase0),    J_p,d = exp(i TEC_PHASE tec / nu)

(u, v, w) is position(q) - position(p), the sign convention of DP3 and WSClean. The sky is unpolarised, so XY and YX
hold noise and interference only. Every value is that of the middle of its slot and channel: nothing is smeared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from casacore.measures import measures
from casacore.quanta import quantity

from chunkcal.simulate.settings import TELESCOPES, Simulation, Telescope, load_stations
from chunkcal.simulate.sky import Sky, make_sky

LIGHT_M_S = 299792458.0
TEC_PHASE = -8.4479745e9  # rad Hz / TECU: e^2 / (4 pi eps0 m_e c), with DP3's sign in its tec solutions
SCREEN_HEIGHT_M = 300e3  # the usual height of a thin ionospheric screen
SCREEN_WIND_M_S = (120.0, 60.0)  # east, north: a common speed of travelling disturbances
SCREEN_SCALES_M = (4e3, 300e3)  # shortest and longest wave
SCREEN_WAVES = 40
CARRIER_DUTY = 0.8  # fraction of the slots in which a narrow carrier transmits
DRIFT_CHANNELS = 0.37  # channels per slot
STREAMS = ("sky", "screen", "amplitude", "phase", "interference", "nan", "slot_noise", "slot_interference")


@dataclass(frozen=True)
class Interference:
    """Which channels, slots and stations have RFI. Amplitudes are at least `floor_jy`."""

    floor_jy: float  # 0: none
    carriers: np.ndarray  # channels with a narrow transmitter, seen by all
    bursts: np.ndarray  # slots with broadband RFI, in all channels of all baselines
    drift_start: float  # channel of the drifting carrier in slot 0
    drift_stations: np.ndarray  # [ant] bool: who sees it


@dataclass(frozen=True)
class Scene:
    """All that is known before the first visibility is made; `fill` makes one slot.

    Attributes
    ----------
    slots, times : ndarray, [time]
        Slot numbers on the whole grid that are present (int64), and their middles in MJD s UTC (float64).
    freqs : ndarray of float64, [chan], Hz
    stations, positions : names, and ndarray of float64 [ant, 3], ITRF m
    antenna1, antenna2 : ndarray of int32, [baseline]
    axes : ndarray of float64, [time, 3, 3]
        ``uvw = axes[t] @ (ITRF baseline)``, J2000, m.
    tec : ndarray of float64, [time, ant, patch], TECU
    amp : ndarray of float64, [time, ant, pol]; pol is X, Y; 0 for a dead station
    phase0 : ndarray of float64, [ant, pol], rad
    dead : ndarray of bool, [ant]
    nan_rows : ndarray of bool, [time, baseline]
    noise_jy : float
        Standard deviation of the real and of the imaginary part of a cross-correlation.
    """

    settings: Simulation
    telescope: Telescope
    slots: np.ndarray
    times: np.ndarray
    freqs: np.ndarray
    stations: tuple[str, ...]
    positions: np.ndarray
    antenna1: np.ndarray
    antenna2: np.ndarray
    axes: np.ndarray
    sky: Sky
    tec: np.ndarray
    amp: np.ndarray
    phase0: np.ndarray
    dead: np.ndarray
    nan_rows: np.ndarray
    noise_jy: float
    interference: Interference

    def fill(self, index: int, data: np.ndarray, uvw: np.ndarray, rfi: np.ndarray) -> None:
        """Make one slot.

        The random numbers belong to the slot's number, so a slot is the same whatever else is made or left out;
        only the NaN rows are chosen among those that are there.

        Parameters
        ----------
        index : int
            Position in `times`.
        data : ndarray of complex64, [baseline, chan, 4], contiguous
            Filled with XX, XY, YX, YY in Jy.
        uvw : ndarray of float64, [baseline, 3]
            Filled with m.
        rfi : ndarray of bool, [baseline, chan]
            Filled with True where interference was added.
        """
        station_uvw = np.einsum("ak,lk->al", self.positions - self.positions[0], self.axes[index])
        uvw[...] = station_uvw[self.antenna2] - station_uvw[self.antenna1]
        self._make_noise(index, data)
        gain = (self.amp[index] * np.exp(1j * self.phase0)).astype(np.complex64)
        gain = gain[self.antenna1] * gain[self.antenna2].conj()  # [baseline, pol]
        gain.imag[self.antenna1 == self.antenna2] = 0  # but for rounding
        self._make_autocorrelations(gain, data)
        model = self._model(index, station_uvw)
        data[:, :, 0] += model * gain[:, :1]
        data[:, :, 3] += model * gain[:, 1:]
        rfi[...] = self._interference_mask(index)
        self._add_interference(index, rfi, data)
        data[self.nan_rows[index]] = np.nan

    def _model(self, index: int, station_uvw: np.ndarray) -> np.ndarray:
        """Sum the sources, seen through the ionosphere: complex64 [baseline, chan].

        One phasor per station and source instead of one per baseline and source. Plain sums instead of a matrix
        product, whose last bit depends on the number of BLAS threads.
        """
        ell, m = self.sky.lm.T
        lmn = np.stack([ell, m, np.sqrt(1 - ell * ell - m * m) - 1], axis=1)
        delay_m = np.einsum("ak,sk->sa", station_uvw, lmn)[:, :, None]
        tec = self.tec[index][:, self.sky.patch].T[:, :, None]
        turns = tec * (TEC_PHASE / (2 * np.pi) / self.freqs) - delay_m * (self.freqs / LIGHT_M_S)
        turns -= np.rint(turns)  # float32 keeps 1e-7 of a turn only after whole turns are gone
        angle = (2 * np.pi * turns).astype(np.float32)
        phasor = np.empty(angle.shape, np.complex64)  # [source, ant, chan]
        np.cos(angle, out=phasor.real)
        np.sin(angle, out=phasor.imag)
        ratio = self.freqs / self.sky.reference_hz
        spectrum = (self.sky.flux[:, None] * ratio ** self.sky.alpha[:, None]).astype(np.float32)
        total = np.zeros((len(self.antenna1), len(self.freqs)), np.complex64)
        for one, flux in zip(phasor, spectrum, strict=True):
            term = (one * flux).take(self.antenna1, axis=0)
            term *= one.conj().take(self.antenna2, axis=0)
            total += term
        total.imag[self.antenna1 == self.antenna2] = 0  # but for rounding
        return total

    def _make_noise(self, index: int, data: np.ndarray) -> None:
        if not self.noise_jy:
            data[...] = 0
            return
        parts = data.view(np.float32)
        self._generator("slot_noise", index).standard_normal(dtype=np.float32, out=parts)
        parts *= np.float32(self.noise_jy)

    def _make_autocorrelations(self, gain: np.ndarray, data: np.ndarray) -> None:
        """Make the noise of autocorrelations Hermitian and add the power of the receiver, the SEFD.

        The SEFD is the noise times sqrt(2 width interval); the one real part has all the noise power.
        """
        rows = np.flatnonzero(self.antenna1 == self.antenna2)
        n_samples = 2 * self.settings.channel_width_hz * self.settings.interval_s
        power = gain[rows].real * np.float32(self.noise_jy * np.sqrt(n_samples))
        for pol, correlation in enumerate((0, 3)):
            noise = data[rows, :, correlation].real
            data[rows, :, correlation] = np.float32(np.sqrt(2)) * noise + power[:, pol, None]
        data[rows, :, 2] = data[rows, :, 1].conj()

    def _interference_mask(self, index: int) -> np.ndarray:
        rfi = self.interference
        mask = np.zeros((len(self.antenna1), len(self.freqs)), bool)
        if not rfi.floor_jy:
            return mask
        slot = self.slots[index]
        on = self._generator("slot_interference", index).random(len(rfi.carriers)) < CARRIER_DUTY
        mask[:, rfi.carriers[on]] = True
        if slot in rfi.bursts:
            mask[:] = True
        drift = int(rfi.drift_start + slot * DRIFT_CHANNELS) % len(self.freqs)
        mask[rfi.drift_stations[self.antenna1] & rfi.drift_stations[self.antenna2], drift] = True
        mask[self.dead[self.antenna1] | self.dead[self.antenna2]] = False
        return mask

    def _add_interference(self, index: int, mask: np.ndarray, data: np.ndarray) -> None:
        """Add the same value to all correlations: a floor plus an exponential tail, with a random phase."""
        hits = np.flatnonzero(mask)
        if not len(hits):
            return
        # Its own stream: the number of hits must not depend on what the mask has drawn.
        rng = self._generator("slot_interference", index, 1)
        value = self.interference.floor_jy * (1 + rng.standard_exponential(len(hits), dtype=np.float32))
        phase = 2 * np.pi * rng.random(len(hits), dtype=np.float32)
        row = hits // len(self.freqs)
        phase[self.antenna1[row] == self.antenna2[row]] = 0  # power is positive
        data.reshape(-1, 4)[hits] += (value * np.exp(1j * phase)).astype(np.complex64)[:, None]

    def _generator(self, stream: str, index: int, part: int = 0) -> np.random.Generator:
        return generator(self.settings.seed, stream, int(self.slots[index]), part)


def generator(seed: int, stream: str, *key: int) -> np.random.Generator:
    """Return the random numbers of one purpose; independent of all others and of the order of use.

    SFC64 because it makes float32 normals twice as fast as the default generator.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), *key))
    return np.random.Generator(np.random.SFC64(sequence))


def make_scene(settings: Simulation) -> Scene:
    """Draw everything that does not belong to one slot. `settings` must be complete and valid."""
    telescope = TELESCOPES[settings.telescope]
    stations, positions = load_stations(settings.telescope, settings.n_stations)
    slots = settings.slots()
    times = settings.start_mjd_s() + (slots + 0.5) * settings.interval_s
    freqs = settings.frequency_hz + np.arange(settings.n_channels) * settings.channel_width_hz
    # One decimal, as the sky model has it, so that both spectra are the same.
    sky = make_sky(
        generator(settings.seed, "sky"),
        settings.n_patches,
        settings.n_sources,
        settings.peak_jy,
        settings.phase_centre_deg,
        telescope.spread_deg,
        reference_hz=round(float(freqs.mean()), 1),
    )
    antenna1, antenna2 = np.triu_indices(len(stations), 0 if settings.autocorrelations else 1)
    dead = np.isin(np.arange(len(stations)), settings.dead_indices(stations))
    amp = make_amplitudes(settings, slots)
    amp[:, dead] = 0
    phase0 = generator(settings.seed, "phase").normal(0, settings.static_phase_rad, (len(stations), 2))
    nan_rows = np.zeros(len(slots) * len(antenna1), bool)
    nan_rows[generator(settings.seed, "nan").choice(len(nan_rows), settings.n_nan_rows, replace=False)] = True
    return Scene(
        settings=settings,
        telescope=telescope,
        slots=slots,
        times=times,
        freqs=freqs,
        stations=stations,
        positions=positions,
        antenna1=antenna1.astype(np.int32),
        antenna2=antenna2.astype(np.int32),
        axes=uvw_axes(telescope.name, settings.phase_centre_deg, times),
        sky=sky,
        tec=make_tec(settings, slots, positions, sky.patch_lm),
        amp=amp,
        phase0=phase0 - phase0[:1],
        dead=dead,
        nan_rows=nan_rows.reshape(len(slots), len(antenna1)),
        noise_jy=float(settings.noise_jy),
        interference=make_interference(settings, float(sky.flux.sum())),
    )


def make_interference(settings: Simulation, total_jy: float) -> Interference:
    """Choose carriers, bursts and who sees the drifting carrier; strength 1 stands 5 sigma above the whole sky."""
    rng = generator(settings.seed, "interference")
    n_channels, n_slots = settings.n_channels, settings.n_slots
    return Interference(
        floor_jy=settings.rfi * (5 * settings.noise_jy + total_jy),
        carriers=rng.choice(n_channels, max(1, n_channels // 40), replace=False),
        bursts=rng.choice(n_slots, max(1, n_slots // 60), replace=False),
        drift_start=rng.uniform(0, n_channels),
        # A third of the stations is a tenth of the baselines.
        drift_stations=np.isin(
            np.arange(settings.n_stations),
            rng.choice(settings.n_stations, max(2, settings.n_stations // 3), replace=False),
        ),
    )


def make_amplitudes(settings: Simulation, slots: np.ndarray) -> np.ndarray:
    """Draw a gain of each station and receptor that wanders with a period of 0.6 to 2 hours: [time, ant, pol]."""
    rng, shape = generator(settings.seed, "amplitude"), (settings.n_stations, 2)
    offset, period_s = rng.normal(size=shape), rng.uniform(2200, 7200, shape)
    angle = 2 * np.pi * slots[:, None, None] * settings.interval_s / period_s + rng.uniform(0, 2 * np.pi, shape)
    # Half of the variance is constant: a sine of amplitude 1 has a mean square of a half.
    return np.exp(settings.amplitude_scatter * (np.sqrt(0.5) * offset + np.sin(angle)))


def make_tec(settings: Simulation, slots: np.ndarray, positions: np.ndarray, patch_lm: np.ndarray) -> np.ndarray:
    """Blow a frozen screen of plane waves over the array: TECU [time, ant, patch], relative to the first station.

    The waves are spread evenly in log k with amplitude k^(-5/6), which is Kolmogorov's k^(-11/3) power in two
    dimensions. `tec_tecu` is the rms of the screen itself. East and north of a direction are its l and m.
    """
    rng = generator(settings.seed, "screen")
    wavenumber = 2 * np.pi / np.exp(rng.uniform(*np.log(SCREEN_SCALES_M), SCREEN_WAVES))
    angle, phase = rng.uniform(0, 2 * np.pi, (2, SCREEN_WAVES))
    size = wavenumber ** (-5 / 6)
    size *= settings.tec_tecu / np.sqrt((size**2).sum() / 2)
    up = positions[0] / np.linalg.norm(positions[0])
    east = np.array([-positions[0, 1], positions[0, 0], 0]) / np.hypot(*positions[0, :2])
    ground = np.einsum("ak,gk->ga", positions - positions[0], np.stack([east, np.cross(up, east)]))
    wind = np.multiply.outer(SCREEN_WIND_M_S, slots * settings.interval_s)
    sight = SCREEN_HEIGHT_M * patch_lm.T
    x, y = ground[:, None, :, None] + sight[:, None, None, :] - wind[:, :, None, None]
    tec = np.zeros(x.shape)
    for k, theta, start, amplitude in zip(wavenumber, angle, phase, size, strict=True):
        tec += amplitude * np.sin(k * (np.cos(theta) * x + np.sin(theta) * y) + start)
    return tec - tec[:, :1]


def uvw_axes(telescope: str, phase_centre_deg: tuple[float, float], times: np.ndarray) -> np.ndarray:
    """Turn ITRF baselines into J2000 UVW with casacore's measures: float64 [time, 3, 3].

    The conversion is linear in the baseline, so that of three unit vectors serves all. The frame is DP3's:
    the observatory's position, the phase centre and the time (base/UVWCalculator.cc).
    """
    frame = measures()
    frame.do_frame(frame.observatory(telescope))
    frame.do_frame(frame.direction("J2000", *(quantity(angle, "deg") for angle in phase_centre_deg)))
    length_m = 1e6
    unit = frame.baseline("ITRF", *(quantity(list(row), "m") for row in np.eye(3) * length_m))
    axes = np.empty((len(times), 3, 3))
    for i, time in enumerate(times):
        frame.do_frame(frame.epoch("UTC", quantity(float(time), "s")))
        axes[i] = np.reshape(frame.to_uvw(unit)["xyz"].get_value("m"), (3, 3)).T / length_m
    return axes
