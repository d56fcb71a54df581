import numpy as np
import pytest

from chunkcal.solutions import filters
from chunkcal.solutions.filters import Solutions, wrapped

STEP_S, STEP_HZ = 10.0, 1e6


def table(role, val, flagged=None, frequencies=None):
    """Make a table from values that broadcast to (time, freq, ant, dir, pol)."""
    val = np.array(val, float)
    val = val.reshape(val.shape + (1,) * (5 - val.ndim))
    weight = np.ones(val.shape)
    if flagged is not None:
        val[flagged], weight[flagged] = np.nan, 0
    times = 5e9 + STEP_S * np.arange(val.shape[0])
    frequencies = 140e6 + STEP_HZ * np.arange(val.shape[1]) if frequencies is None else np.asarray(frequencies)
    return Solutions(role, val, weight, times, frequencies)


def noise(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def angle_between(a, b):
    return np.abs(wrapped(a - b)).max()


def flags_agree(solutions):
    return np.array_equal(np.isnan(solutions.val), solutions.weight == 0)


def test_wrapped_leaves_what_is_in_range():
    inside = np.concatenate([np.random.default_rng(1).uniform(-np.pi, np.pi, 1000), [-np.pi, 0, np.pi]])
    assert wrapped(inside).tobytes() == inside.tobytes()
    np.testing.assert_allclose(wrapped(inside[:1000] + 6 * np.pi), inside[:1000], atol=1e-14)


# ---- reference ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["phase", "rotation", "tec", "delay", "rotationmeasure"])
def test_reference_keeps_differences_between_stations(role):
    before = wrapped(3 * noise(1, 7, 3, 5, 2, 2))
    for station in (0, 2, 4):
        solutions = table(role, before)
        assert filters.reference(solutions, station) == 0
        assert (solutions.val[:, :, station] == 0).all()
        turned = solutions.val - solutions.val[:, :, [0]] - (before - before[:, :, [0]])
        period = 2 * np.pi if role in ("phase", "rotation") else np.inf
        np.testing.assert_allclose(
            turned - (np.rint(turned / period) * period if period < np.inf else 0), 0, atol=1e-12
        )
        once = solutions.val.copy()
        filters.reference(solutions, station)
        assert solutions.val.tobytes() == once.tobytes()
        if role == "phase":
            assert np.abs(solutions.val).max() <= np.pi


def test_reference_flags_where_the_reference_is_flagged():
    flagged = np.zeros((4, 1, 3, 1, 1), bool)
    flagged[1, :, 2] = flagged[2, :, 0] = True
    solutions = table("phase", noise(1, 4, 1, 3, 1, 1), flagged)
    assert filters.reference(solutions, 2) == 2  # the others of slot 1
    assert np.isnan(solutions.val[:, 0, :, 0, 0]).tolist() == [
        [False] * 3,
        [True] * 3,
        [True, False, False],
        [False] * 3,
    ]
    assert flags_agree(solutions)


def test_reference_of_full_jones_keeps_an_unpolarized_source():
    amplitude, phase = np.exp(0.3 * noise(1, 3, 2, 4, 1, 4)), wrapped(2 * noise(2, 3, 2, 4, 1, 4))

    def visibilities(phases):
        jones = (amplitude * np.exp(1j * phases)).reshape(3, 2, 4, 1, 2, 2)
        return np.einsum("tfpdij,tfqdkj->tfpqdik", jones, jones.conj())

    solutions = table("phase", phase)
    filters.reference(solutions, 1)
    assert (solutions.val[:, :, 1][..., [0, 3]] == 0).all()
    np.testing.assert_allclose(visibilities(solutions.val), visibilities(phase), atol=1e-12)


# ---- flag -----------------------------------------------------------------------------------------------


def drifting(role, seed, n_time=300, sigma=0.05):
    """Clean solutions: noise on a drift that is fast for phases, so that it wraps (stations 0 to 3, two pols)."""
    t = np.arange(n_time).reshape(-1, 1, 1, 1, 1)
    rate = np.array([0, 0.01, -0.02, 0.03]).reshape(1, 1, 4, 1, 1)
    value = rate * t + sigma * noise(seed, n_time, 4, 4, 1, 2)
    return {"phase": wrapped(value + 3), "amplitude": np.exp(0.05 * value), "tec": 0.01 * value}[role]


@pytest.mark.parametrize("role", ["phase", "amplitude", "tec"])
@pytest.mark.parametrize("windows", [(600.0, None), (100.0, None), (600.0, 3e6), (None, 4e6)])
def test_few_false_alarms_on_clean_data(role, windows):
    """Five standard deviations are exceeded 6e-7 times in Gaussian noise; the robust estimate costs some more."""
    n = sum(filters.flag_outliers(table(role, drifting(role, seed)), 5.0, *windows) for seed in range(5))
    assert n <= 2  # of 48,000


@pytest.mark.parametrize("role", ["phase", "amplitude", "tec"])
def test_outliers_are_found_where_they_are(role):
    values = drifting(role, 7)
    places = np.zeros(values.shape, bool)
    rng = np.random.default_rng(3)
    places[rng.integers(0, 300, 60), rng.integers(0, 4, 60), rng.integers(0, 4, 60), 0, rng.integers(0, 2, 60)] = True
    places[[0, 1, -1], 2, 1] = True  # at the edges too
    off = {"phase": wrapped(values + 1), "amplitude": values * 1.3, "tec": values - 0.02}[role]
    solutions = table(role, np.where(places, off, values))
    n = filters.flag_outliers(solutions, 6.0, 300.0, None)
    found = np.isnan(solutions.val)
    assert found[places].all()
    assert n == found.sum() <= places.sum()
    assert flags_agree(solutions)
    kept = ~found
    np.testing.assert_array_equal(solutions.val[kept], values[kept])


def test_a_bad_channel_is_an_outlier_in_frequency_only():
    values = 0.05 * noise(1, 100, 24, 1, 1, 1)
    values[:, 7] += 1
    in_time, in_frequency = table("phase", values), table("phase", values)
    filters.flag_outliers(in_time, 6.0, 300.0, None)
    filters.flag_outliers(in_frequency, 6.0, None, 10e6)
    assert np.isnan(in_time.val).sum() == 0
    assert np.isnan(in_frequency.val[:, 7]).all()
    assert np.isnan(in_frequency.val).sum() <= 102


@pytest.mark.parametrize("length", [1, 2, 12, 40, 70])
@pytest.mark.parametrize("window_s", [100.0, 600.0])
def test_edges_of_gaps_are_no_outliers(length, window_s):
    values = wrapped(0.045 * np.arange(200.0) + 0.01 * noise(1, 200))
    gap = np.zeros((200, 1, 1, 1, 1), bool)
    gap[60 : 60 + length] = gap[150:152] = True
    assert filters.flag_outliers(table("phase", values, gap), 6.0, window_s, None) == 0


def test_constant_and_empty_solutions():
    assert filters.flag_outliers(table("phase", np.zeros((50, 2))), 5.0, 100.0, None) == 0
    assert filters.flag_outliers(table("amplitude", 1 + 1e-6 * noise(1, 50) ** 3), 3.0, 100.0, None) == 0
    empty = table("tec", np.ones((50, 2)), np.ones((50, 2, 1, 1, 1), bool))
    assert filters.flag_outliers(empty, 5.0, 100.0, None) == 0
    filters.smooth(empty, "gaussian", 100.0, None)
    filters.smooth(empty, "median", 100.0, 1e7)
    assert np.isnan(empty.val).all()


# ---- smooth ---------------------------------------------------------------------------------------------


def gaussian_factor(fwhm, step):
    """Standard deviation after / before: sqrt(sum k^2) / sum k over the kernel k."""
    x = step * np.arange(-200, 201)
    k = np.exp(-4 * np.log(2) * (x / fwhm) ** 2)
    return np.sqrt((k**2).sum()) / k.sum()


def median_factor(n):
    """Of the median of n Gaussian values: sqrt(pi / 2 / (n + pi / 2 - 1)) (Kenney & Keeping 1951, ch. 14.2)."""
    return np.sqrt(np.pi / 2 / (n + np.pi / 2 - 1))


@pytest.mark.parametrize(
    ("kind", "windows", "factor"),
    [
        ("gaussian", (120.0, None), gaussian_factor(120, STEP_S)),
        ("gaussian", (None, 4e6), gaussian_factor(4e6, STEP_HZ)),
        ("gaussian", (80.0, 4e6), gaussian_factor(80, STEP_S) * gaussian_factor(4e6, STEP_HZ)),
        ("median", (120.0, None), median_factor(13)),
        ("median", (None, 6e6), median_factor(7)),
    ],
)
@pytest.mark.parametrize("role", ["phase", "amplitude", "tec"])
def test_smoothing_reduces_noise_as_theory_says(role, kind, windows, factor):
    sigma = 0.05
    pure = sigma * noise(4, 400, 60, 2, 1, 1)
    values = {"phase": wrapped(np.pi + pure), "amplitude": 2 * np.exp(pure), "tec": pure}[role]
    solutions = table(role, values)
    filters.smooth(solutions, kind, *windows)
    inner = solutions.val[20:-20, 10:-10]
    rest = {"phase": lambda v: wrapped(v - np.pi), "amplitude": lambda v: np.log(v / 2), "tec": lambda v: v}[role](
        inner
    )
    assert np.std(rest) == pytest.approx(factor * sigma, rel=0.06)
    assert abs(rest.mean()) < 5 * factor * sigma / np.sqrt(400)  # no bias, where phases wrap least of all
    assert not (np.abs(solutions.val) > np.pi).any() or role == "amplitude"


@pytest.mark.parametrize("kind", ["median", "gaussian"])
def test_flagged_solutions_have_no_influence_and_stay_flagged(kind):
    values = np.full((60, 8), 0.5)
    flagged = np.random.default_rng(1).uniform(size=(60, 8)) < 0.3
    values[flagged] = 1e3
    solutions = table("amplitude", values, flagged[..., None, None, None])
    filters.smooth(solutions, kind, 100.0, 3e6)
    np.testing.assert_array_equal(np.isnan(solutions.val[..., 0, 0, 0]), flagged)
    np.testing.assert_allclose(solutions.val[..., 0, 0, 0][~flagged], 0.5, rtol=1e-12)
    assert flags_agree(solutions)


def test_median_follows_a_drift_up_to_edges_and_gaps():
    drift = 0.1 * np.arange(100.0)
    gap = np.zeros((100, 1, 1, 1, 1), bool)
    gap[20] = gap[40:60] = gap[80:85] = True
    solutions = table("phase", wrapped(drift), gap)
    filters.smooth(solutions, "median", 200.0, None)
    assert np.nanmax(np.abs(wrapped(solutions.val[:, 0, 0, 0, 0] - drift))) < 1e-9


def test_median_beside_edges_and_gaps_is_little_noisier():
    gap = np.zeros((120, 200, 1, 1, 1), bool)
    gap[[30, 31, 33]] = gap[60:75] = True
    solutions = table("phase", 0.3 * noise(1, 120, 200), gap)
    filters.smooth(solutions, "median", 400.0, None)
    spread = solutions.val[~gap[:, 0, 0, 0, 0], :, 0, 0, 0].std(axis=1)
    assert spread.max() < 0.3 * 0.65  # what the outermost have to go on are three or four
    assert spread[20:35].max() < 1.25 * 0.3 * median_factor(41)  # across a short gap, the whole window counts


def test_gaussian_weighs_by_true_distance_in_frequency():
    frequencies = 140e6 + 1e6 * np.array([0, 1, 2, 7, 8.5])  # subbands are missing
    values = noise(2, 1, 5)
    solutions = table("tec", values, frequencies=frequencies)
    filters.smooth(solutions, "gaussian", None, 3e6)
    kernel = np.exp(-4 * np.log(2) * ((frequencies[:, None] - frequencies) / 3e6) ** 2)
    wanted = (kernel @ values[0]) / kernel.sum(axis=1)
    np.testing.assert_allclose(solutions.val[0, :, 0, 0, 0], wanted, atol=1e-3)  # cut off at 4 sigma


# ---- interpolate ----------------------------------------------------------------------------------------


def test_interpolation_is_exact_for_linear_laws_and_keeps_to_its_limit():
    t = np.arange(12.0)
    gap = np.zeros((12, 1, 1, 1, 1), bool)
    gap[[0, 2, 3, 5, 6, 7, 11]] = True  # ends, two, three
    phase, amplitude, tec = (wrapped(2.0 + 0.4 * t), 2 * 0.9**t, 0.3 - 0.01 * t)
    for role, values in (("phase", phase), ("amplitude", amplitude), ("tec", tec)):
        solutions = table(role, values, gap)
        solutions.weight[1], solutions.weight[4] = 0.25, 4.0
        assert filters.interpolate(solutions, 20.0) == 2
        assert np.isnan(solutions.val[:, 0, 0, 0, 0]).nonzero()[0].tolist() == [0, 5, 6, 7, 11]
        assert solutions.weight[2:4].ravel().tolist() == [0.25, 0.25]
        assert filters.interpolate(solutions, 29.9) == 0
        assert filters.interpolate(solutions, 30.0) == 3
        assert solutions.weight[5:8].ravel().tolist() == [1, 1, 1]
        np.testing.assert_allclose(solutions.val[1:11, 0, 0, 0, 0], values[1:11], atol=1e-12)
        assert flags_agree(solutions)


def test_gaps_of_each_station_and_frequency_are_their_own():
    values = np.broadcast_to(np.arange(6.0).reshape(-1, 1, 1, 1, 1), (6, 2, 3, 2, 2)).copy()
    gap = np.random.default_rng(5).uniform(size=values.shape) < 0.4
    gap[[0, -1]] = False
    solutions = table("tec", values, gap)
    assert filters.interpolate(solutions, 1e3) == gap.sum()
    np.testing.assert_allclose(solutions.val, values, atol=1e-12)
    assert filters.interpolate(table("tec", [1.0, np.nan]), 1e3) == 0


# ---- normalise ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", [(), ("dir",), ("dir", "pol"), ("freq",)])
def test_normalised_amplitudes_keep_ratios_and_the_flux_scale(per):
    flagged = np.random.default_rng(2).uniform(size=(20, 3, 5, 2, 2)) < 0.2
    before = table("amplitude", np.exp(0.4 * noise(1, 20, 3, 5, 2, 2) + 0.7), flagged)
    solutions = table("amplitude", before.val, flagged)
    factors = filters.normalise(solutions, per)
    assert factors.size == np.prod([{"freq": 3, "dir": 2, "pol": 2}[axis] for axis in per], dtype=int)
    over = tuple(i for i, axis in enumerate(filters.AXES) if axis not in per)
    np.testing.assert_allclose(np.nanmean(np.log(solutions.val), axis=over), 0, atol=1e-12)
    np.testing.assert_allclose(solutions.val * factors, before.val, rtol=1e-12)  # one factor in each group
    again = solutions.val.copy()
    np.testing.assert_allclose(filters.normalise(solutions, per), 1, rtol=1e-12)
    np.testing.assert_allclose(solutions.val, again, rtol=1e-12)


def test_mean_scale_of_baselines_is_one():
    solutions = table("amplitude", np.exp(0.5 * noise(1, 50, 1, 6, 1, 1) + 1))
    filters.normalise(solutions, ("dir",))
    g = solutions.val[:, 0, :, 0, 0]
    p, q = np.triu_indices(6, 1)
    assert np.exp(np.log(g[:, p] * g[:, q]).mean()) == pytest.approx(1, rel=1e-12)


def test_full_jones_is_scaled_by_its_diagonal():
    values = np.exp(0.1 * noise(1, 10, 1, 3, 1, 4)) * np.array([2.0, 0.01, 0.02, 2.0])
    solutions = table("amplitude", values)
    factors = filters.normalise(solutions, ("dir",))
    np.testing.assert_allclose(factors.ravel(), 2, rtol=0.1)
    np.testing.assert_allclose(solutions.val * factors, values)


def test_a_direction_without_solutions_stays_flagged():
    flagged = np.zeros((4, 1, 2, 2, 1), bool)
    flagged[:, :, :, 1] = True
    solutions = table("amplitude", np.full(flagged.shape, 3.0), flagged)
    factors = filters.normalise(solutions, ("dir",))
    assert factors.ravel()[0] == pytest.approx(3)
    assert np.isnan(factors.ravel()[1])
    assert np.isnan(solutions.val[:, :, :, 1]).all()
