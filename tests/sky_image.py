"""A FITS image as WSClean writes it: noise and one source."""

import astropy.io.fits
import numpy as np


def write_image(path, size=64, peak=5.0, noise=0.1, seed=1):
    """Write `size` × `size` pixels of 5 arcsec with a source of `peak` Jy/beam in the middle."""
    image = np.random.default_rng(seed).normal(0, noise, (1, 1, size, size)).astype(np.float32)
    image[0, 0, size // 2, size // 2] = peak
    header = {"BMAJ": 20 / 3600, "BMIN": 10 / 3600, "BPA": 30.0, "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN"}
    header |= {"CRVAL1": 193.0, "CRVAL2": 52.0, "CRPIX1": size / 2 + 1, "CRPIX2": size / 2 + 1, "CDELT1": -5 / 3600}
    header |= {"CDELT2": 5 / 3600, "CTYPE3": "FREQ", "CRVAL3": 1.4e8, "CTYPE4": "STOKES", "CRVAL4": 1.0}
    astropy.io.fits.PrimaryHDU(image, astropy.io.fits.Header(header.items())).writeto(path)
    return path
