"""Direction-dependent solves, in chunks, find the gains of three directions as well as thermal noise allows."""

import casacore.tables as ct
import h5py
import numpy as np
import pytest

from chunkcal.planning.plan import make_plan
from chunkcal.simulate import Simulation, gain, simulate
from pipeline import run_chunks

N_DIRECTIONS = 3
# One point source a patch. No interference: which samples it costs would have to be known to the limit, too.
SETTINGS = Simulation(
    "lofar", n_stations=18, n_slots=48, n_channels=8, n_patches=N_DIRECTIONS, n_sources=N_DIRECTIONS, peak_jy=200, rfi=0
)


def thermal_limit(uvw, antenna1, antenna2, freqs, lmn, flux, gains, sigma):
    """Smallest variances that an unbiased solve for all gains of one interval can have: the Cramér-Rao bound.

    The data are V_pq = sum over d of g_pd conj(g_qd) M_pq,d plus complex noise of standard deviation `sigma` in the
    real and in the imaginary part. With J the derivatives of V by the logarithms of all amplitudes and by all phases,
    the covariance is sigma^2 inverse(real(J^H J)) (Wijnholds & van der Veen 2009, IEEE Trans. Signal Process. 57,
    3512, sect. IV, for known noise). The phases of station 0 are the reference and count as known.

    Parameters
    ----------
    uvw : (rows, 3) m
    antenna1, antenna2 : (rows,)
    freqs : (channels,) Hz
    lmn : (directions, 3)
        Direction cosines relative to the phase centre, the last one n - 1.
    flux : (directions,) Jy
    gains : (antennas, directions)
    sigma : float, Jy

    Returns
    -------
    (antennas, directions, 2)
        Variance of relative amplitude and of phase.
    """
    turns = np.einsum("rk,dk->rd", uvw, lmn)[:, None] * freqs[:, None] / 299792458.0
    terms = gains[antenna1][:, None] * flux * np.exp(-2j * np.pi * turns) * gains[antenna2].conj()[:, None]
    rows, jacobian = np.arange(len(uvw)), np.zeros((len(uvw), len(freqs), *gains.shape, 2), complex)
    for d in range(gains.shape[1]):
        for antenna, sign in ((antenna1, 1), (antenna2, -1)):
            jacobian[rows, :, antenna, d, 0] += terms[:, :, d]
            jacobian[rows, :, antenna, d, 1] += sign * 1j * terms[:, :, d]
    free = np.ones((*gains.shape, 2), bool)
    free[0, :, 1] = False
    jacobian = jacobian.reshape(-1, free.size)[:, free.ravel()]
    variance = np.zeros(free.shape)
    variance[free] = np.diag(np.linalg.inv((jacobian.conj().T @ jacobian).real)) * sigma**2
    return variance


def geometry(ms, truth):
    """Baselines of each slot, channels, and direction cosines of the patches."""
    with ct.table(str(ms), ack=False) as table:
        names = ("UVW", "ANTENNA1", "ANTENNA2")
        uvw, antenna1, antenna2 = (table.getcol(name) for name in names)
    cross = antenna1 != antenna2
    n_slots = SETTINGS.n_slots
    uvw = uvw[cross].reshape(n_slots, -1, 3)
    antennas = [antenna[cross].reshape(n_slots, -1)[0] for antenna in (antenna1, antenna2)]
    with ct.table(f"{ms}/SPECTRAL_WINDOW", ack=False) as table:
        freqs = table.getcell("CHAN_FREQ", 0)
    with ct.table(f"{ms}/FIELD", ack=False) as table:
        ra0, dec0 = table.getcell("PHASE_DIR", 0)[0]
    with h5py.File(truth) as file:
        ra, dec = file["patch_radec"][:].T
    ll = np.cos(dec) * np.sin(ra - ra0)
    m = np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(ra - ra0)
    return uvw, *antennas, freqs, np.stack([ll, m, np.sqrt(1 - ll**2 - m**2) - 1], 1)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    return simulate(SETTINGS, tmp_path_factory.mktemp("truth") / "a.ms")


def test_gains_of_three_directions(simulated, tmp_path, capsys):
    # One solution per slot: within one, the ionosphere does not move, so thermal noise is all there is.
    solve = {"name": "dd", "mode": "diagonal", "directions": "patches", "solver_algorithm": "directioniterative"}
    solve |= {"solint_s": SETTINGS.complete().interval_s, "maxiter": 500, "tolerance": 1e-7, "stepsize": 0.2}
    sections = {
        "chunks": {"n_slots": 16},
        "preprocess": {"steps": [{"PreFlagger": {"baseline": "*&&&"}}]},
        "calibrate": {"sky_model": "", "solves": [solve]},
        "apply": {"interpolation": "nearest"},
    }
    entry = {"obs": "a", "ms": str(simulated.ms), "sky_model": str(simulated.sky_model)}
    plan = make_plan([entry], sections).observations["a"]
    assert len(plan["chunks"]) == 3
    _, merged = run_chunks(tmp_path, plan)
    with h5py.File(merged["dd"]) as file:
        tables = file["sol000"]
        axes = tables["phase000/val"].attrs["AXES"].decode().split(",")
        order = [axes.index(axis) for axis in ("time", "ant", "dir", "pol", "freq")]
        phase, amplitude = (tables[f"{kind}000/val"][:].transpose(order)[..., 0] for kind in ("phase", "amplitude"))
        patches = [name.decode().strip("[]") for name in tables["phase000/dir"]]
    found = amplitude * np.exp(1j * phase)
    true = np.stack([gain(simulated.truth, patch).mean(2) for patch in patches], 2)
    found, true = (each * np.exp(-1j * np.angle(each[:, :1])) for each in (found, true))
    error = found / true
    uvw, antenna1, antenna2, freqs, lmn = geometry(simulated.ms, simulated.truth)
    with h5py.File(simulated.truth) as file:
        sigma = file.attrs["noise_jy"]
    flux = np.array([200.0, 90.0, 90.0])  # the sources of patch0, patch1 and patch2 (simulate/sky.py)
    limit = np.stack(
        [thermal_limit(uvw[t], antenna1, antenna2, freqs, lmn, flux, true[t, :, :, 0], sigma) for t in range(len(true))]
    )
    for d, patch in enumerate(patches):
        phase_ratio = np.sqrt(np.mean(np.angle(error[:, 1:, d]) ** 2) / np.mean(limit[:, 1:, d, 1]))
        amplitude_ratio = np.sqrt(np.mean((np.abs(error[:, :, d]) - 1) ** 2) / np.mean(limit[:, :, d, 0]))
        with capsys.disabled():
            print(
                f"\n{patch}: phase error {phase_ratio:.2f}, amplitude error {amplitude_ratio:.2f} of the thermal limit"
            )
        assert 0.7 < phase_ratio < 1.5
        assert 0.7 < amplitude_ratio < 1.5
