import numpy as np
import pytest

from chunkcal.solutions.running import convolved, nanmedian, running_median


def test_nanmedian_is_that_of_numpy():
    rng = np.random.default_rng(1)
    for n in (1, 2, 7, 8):
        values = rng.normal(size=(n, 50, 2))
        values[rng.uniform(size=values.shape) < 0.3] = np.nan
        values[0, 0] = 1.0
        some = np.isfinite(values).any(axis=0)
        np.testing.assert_array_equal(nanmedian(values)[some], np.nanmedian(values[:, some], axis=0))
        assert np.isnan(nanmedian(values)[~some]).all()


@pytest.mark.parametrize("others", [False, True])
def test_running_median_inside_is_the_plain_median(others):
    values = np.random.default_rng(2).normal(size=(40, 3))
    found = running_median(values, 7.0 * np.arange(40), 28.0, others)
    for k in range(3, 37):  # those outside take in three of one side
        window = [j for j in range(k - 2, k + 3) if not (others and j == k)]
        np.testing.assert_array_equal(found[k], np.median(values[window], axis=0))


def test_median_of_vectors_does_not_know_where_phases_wrap():
    rng = np.random.default_rng(3)
    phases = 0.3 * rng.normal(size=(60, 4)) + 0.02 * np.arange(60)[:, None]
    at_zero = np.angle(running_median(np.exp(1j * phases), np.arange(60.0), 20.0))
    np.testing.assert_allclose(at_zero, running_median(phases, np.arange(60.0), 20.0), atol=1e-12)
    for turn in (1.0, 3.0, -2.5):
        turned = running_median(np.exp(1j * (phases + turn)), np.arange(60.0), 20.0)
        np.testing.assert_allclose(turned, np.exp(1j * (at_zero + turn)), atol=1e-12)


def test_uneven_spacing():
    """Subbands in pairs: no two lie two spacings apart."""
    coordinates = np.array([0, 1, 10, 11, 20, 21, 30, 31.0])
    values = 0.05 * coordinates
    np.testing.assert_allclose(running_median(values[:, None], coordinates, 100.0)[:, 0], values, atol=1e-9)
    phases = np.angle(running_median(np.exp(1j * values)[:, None], coordinates, 100.0)[:, 0])
    np.testing.assert_allclose(phases, values, atol=1e-9)


def test_convolved_of_an_impulse_is_the_gaussian():
    impulse = np.zeros((41, 2))
    impulse[20, 0] = 1
    found = convolved(impulse, 2.0 * np.arange(41), 6.0)
    x = 2.0 * (np.arange(41) - 20)
    wanted = np.where(np.abs(x) <= 4 * 6 / 2.3548, np.exp(-4 * np.log(2) * (x / 6) ** 2), 0)
    np.testing.assert_allclose(found[:, 0], wanted, atol=1e-12)
    assert not found[:, 1].any()
