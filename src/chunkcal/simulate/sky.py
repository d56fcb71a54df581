"""The sky of a simulated observation: point sources in patches, and the text sky model that says the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# rad per last digit of a printed RA (s) and Dec (arcsec); the sources lie exactly where the text says.
_PRINTED = (np.radians(15e-6 / 3600), np.radians(1e-6 / 3600))


@dataclass(frozen=True)
class Sky:
    """Point sources in patches.

    Attributes
    ----------
    ra, dec : ndarray of float64, [source]
        J2000, rad, exactly as the text sky model has them.
    flux, alpha : ndarray of float64, [source]
        Jy at `reference_hz`, and the exponent of ``flux * (nu / reference_hz) ** alpha``.
    patch : ndarray of int64, [source]
    lm : ndarray of float64, [source, 2]
        Direction cosines from the phase centre.
    patch_lm, patch_radec : ndarray of float64, [patch, 2]
        Flux-weighted centre of each patch: direction cosines, and RA and Dec in rad.
    """

    ra: np.ndarray
    dec: np.ndarray
    flux: np.ndarray
    alpha: np.ndarray
    patch: np.ndarray
    lm: np.ndarray
    patch_lm: np.ndarray
    patch_radec: np.ndarray
    reference_hz: float


def make_sky(
    rng: np.random.Generator,
    n_patches: int,
    n_sources: int,
    peak_jy: float,
    phase_centre_deg: tuple[float, float],
    spread_deg: float,
    reference_hz: float,
) -> Sky:
    """Invent a sky: each patch has one bright source and an equal share of faint ones around it.

    The first patch lies at the phase centre and has the brightest source, of `peak_jy`; the others form a ring of
    radius `spread_deg` and have 0.45 of that.
    """
    ra0, dec0 = np.radians(phase_centre_deg)
    spread = np.radians(spread_deg)
    angle = 2 * np.pi * np.arange(n_patches) / max(n_patches - 1, 1) + 0.4
    radius = spread * (0.75 + 0.25 * rng.random(n_patches)) * (np.arange(n_patches) > 0)
    patch = np.arange(n_sources) % n_patches
    brightest = np.arange(n_sources) < n_patches
    offset = rng.normal(0, 0.06 * spread, (n_sources, 2)) * ~brightest[:, None]
    ell, m = (radius * [np.cos(angle), np.sin(angle)])[:, patch] + offset.T
    flux = peak_jy * np.where(patch == 0, 1, 0.45)
    flux = flux * np.where(brightest, 1, rng.uniform(0.02, 0.2, n_sources))
    ra, dec = (np.round(value / step) * step for value, step in zip(_radec(ell, m, ra0, dec0), _PRINTED, strict=True))
    flux, alpha = np.round(flux, 6), np.round(rng.uniform(-0.9, -0.5, n_sources), 3)
    lm = np.stack(_lm(ra, dec, ra0, dec0), axis=1)
    patch_lm = np.array([np.average(lm[patch == i], axis=0, weights=flux[patch == i]) for i in range(n_patches)])
    patch_radec = np.stack(_radec(*patch_lm.T, ra0, dec0), axis=1)
    order = np.argsort(patch, kind="stable")
    return Sky(*(values[order] for values in (ra, dec, flux, alpha, patch, lm)), patch_lm, patch_radec, reference_hz)


def sky_model_text(sky: Sky) -> str:
    """Write the sky as makesourcedb text: patches ``patch0``, ``patch1``, ... and their point sources."""
    head = "FORMAT = Name, Type, Patch, Ra, Dec, I, SpectralIndex='[]', LogarithmicSI, ReferenceFrequency"
    lines = [f"{head}='{sky.reference_hz:.1f}'"]
    for patch, (ra, dec) in enumerate(sky.patch_radec):
        lines.append(f", , patch{patch}, {_hms(ra)}, {_dms(dec)}")
        for n, i in enumerate(np.flatnonzero(sky.patch == patch)):
            place = f"{_hms(sky.ra[i])}, {_dms(sky.dec[i])}"
            tail = f"{sky.flux[i]:.6f}, [{sky.alpha[i]:.3f}], true, {sky.reference_hz:.1f}"
            lines.append(f"patch{patch}_{n}, POINT, patch{patch}, {place}, {tail}")
    return "\n".join(lines) + "\n"


def _hms(ra: float) -> str:
    return _sexagesimal(round(ra / _PRINTED[0]) % (24 * 3600 * 10**6), ":")


def _dms(dec: float) -> str:
    return ("-" if dec < 0 else "+") + _sexagesimal(round(abs(dec) / _PRINTED[1]), ".")


def _sexagesimal(millionths: int, separator: str) -> str:
    minutes, second = divmod(millionths, 60 * 10**6)
    second = f"{second // 10**6:02d}.{second % 10**6:06d}"
    return separator.join((f"{minutes // 60:02d}", f"{minutes % 60:02d}", second))


def _lm(ra: np.ndarray, dec: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    ell = np.cos(dec) * np.sin(ra - ra0)
    return ell, np.sin(dec) * np.cos(dec0) - np.cos(dec) * np.sin(dec0) * np.cos(ra - ra0)


def _radec(ell: np.ndarray, m: np.ndarray, ra0: float, dec0: float) -> tuple[np.ndarray, np.ndarray]:
    n = np.sqrt(1 - ell * ell - m * m)
    return ra0 + np.arctan2(ell, n * np.cos(dec0) - m * np.sin(dec0)), np.arcsin(n * np.sin(dec0) + m * np.cos(dec0))
