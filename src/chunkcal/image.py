"""A quick look at the sky: WSClean's dirty and cleaned image, before and after calibration.

WSClean is a program of its own that may be missing. Then, and when it fails, there is a file that says so instead of
images, and everything else goes on: nothing depends on a quick look.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import astropy.io.fits
import casacore.tables as ct
import numpy as np
from astropy.stats import mad_std

from chunkcal import wsclean
from chunkcal.plots.sky import draw_sky

_LIGHT_M_S = 299_792_458.0
_BASELINES = 75  # percentile of the lengths that the automatic scale resolves: long arms must not shrink the field
_PIXELS_PER_BEAM = 4
WHEN = ("before", "after")
KINDS = {"dirty": "dirty", "clean": "image"}  # to the end of the name that WSClean gives it


def make_images(
    before: Sequence[str | os.PathLike],
    after: Sequence[str | os.PathLike],
    output: str | os.PathLike,
    settings: Mapping[str, Any],
    n_threads: int = 1,
) -> str | None:
    """Image an observation before and after calibration.

    Parameters
    ----------
    before, after
        Chunk MeasurementSets, pre-processed and calibrated (none if nothing was calibrated). They are only read.
    output
        Folder, which must not exist: ``{before,after}-{dirty,clean}.fits``, ``images.png`` and ``images-dark.png``,
        and ``image.json`` with ``images`` by name of the FITS file (`measure`), ``scale_arcsec``, ``size_pixels``,
        ``wsclean`` (its first line about itself), ``pictures`` (width and height in CSS pixels) and ``problem``.
    settings
        Section ``image`` of the configuration.

    Returns
    -------
    str or None
        Why there are no images, in one line.
    """
    output = Path(output).absolute()
    temporary = output.with_name(f"{output.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir(parents=True)
    found: dict[str, Any] = {"images": {}, "problem": None}
    try:
        try:
            found |= _image_all({"before": before, "after": after}, temporary, settings, n_threads)
        except ImageError as error:
            found["problem"] = f"no quick-look image: {error}"
        (temporary / "image.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return found["problem"]


class ImageError(Exception):
    """There will be no image: says why, in one line."""


def _image_all(
    inputs: Mapping[str, Sequence[str | os.PathLike]], folder: Path, settings: Mapping[str, Any], n_threads: int
) -> dict[str, Any]:
    command = wsclean.find(settings["command"])
    if command is None:
        raise ImageError(
            f"{settings['command']!r} is not found; install WSClean (Debian: apt-get install wsclean), set"
            " image.command, or image.enabled: false"
        )
    scale = settings["scale_arcsec"]
    if scale == "auto":
        scale = auto_scale_arcsec(*read_array(inputs["before"][0]))
    images = {}
    for when, paths in inputs.items():
        if not paths:
            continue
        _run(wsclean.arguments(command, settings, paths, when, scale, n_threads), folder)
        for kind, suffix in KINDS.items():
            name = f"{when}-{kind}.fits"
            (folder / f"{when}-{suffix}.fits").rename(folder / name)
            images[name] = measure(folder / name)
        for rest in ("psf", "model", "residual"):
            (folder / f"{when}-{rest}.fits").unlink(missing_ok=True)
    picture = draw_sky([(name, folder / name, images[name]) for name in images])
    (folder / "images.png").write_bytes(picture.light)
    (folder / "images-dark.png").write_bytes(picture.dark)
    return {
        "images": images,
        "scale_arcsec": scale,
        "size_pixels": settings["size_pixels"],
        "n_chunks": len(inputs["before"]),
        "pictures": [picture.width, picture.height],
        "wsclean": wsclean.version(command),
    }


def read_array(ms: str | os.PathLike) -> tuple[np.ndarray, float]:
    """Read the stations' positions, (n_stations, 3) m, and the middle of the band, Hz."""
    with ct.table(f"{ms}/ANTENNA", ack=False) as stations, ct.table(f"{ms}/SPECTRAL_WINDOW", ack=False) as windows:
        return stations.getcol("POSITION"), float(np.mean(windows.getcell("CHAN_FREQ", 0)))


def auto_scale_arcsec(positions: np.ndarray, frequency_hz: float) -> float:
    """Choose the size of a pixel: a quarter of the resolution of all but the longest quarter of the baselines."""
    first, second = np.triu_indices(len(positions), 1)
    lengths = np.linalg.norm(positions[first] - positions[second], axis=1)
    resolution = _LIGHT_M_S / frequency_hz / max(1.0, float(np.percentile(lengths, _BASELINES)))
    return float(f"{np.degrees(resolution) * 3600 / _PIXELS_PER_BEAM:.3g}")


def _run(arguments: Sequence[str], folder: Path) -> None:
    print("#", shlex.join(arguments), flush=True)
    # OpenBLAS with threads of its own makes WSClean slow, and it warns about it.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            arguments,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ImageError(f"{arguments[0]} cannot be started ({error.strerror})") from error
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip(" +=\n")]
        said = next((line for line in reversed(lines) if re.search("error|exception|std::|!", line.lower())), None)
        raise ImageError(
            f"WSClean ended with exit status {done.returncode}: {said or (lines[-1] if lines else 'no words')}"
        )


def measure(path: str | os.PathLike) -> dict[str, float | None]:
    """Measure an image.

    Returns
    -------
    dict
        ``peak_jy`` (the largest value, Jy/beam), ``noise_jy`` (1.4826 times the median absolute deviation from the
        median, Jy/beam: sources hardly change it), ``dynamic_range`` (their ratio; None without noise), and the
        restoring beam: ``beam_arcsec`` (major and minor axis) and ``beam_angle_deg`` (north through east).
    """
    with astropy.io.fits.open(path) as file:
        header, image = file[0].header, file[0].data.squeeze()
    finite = image[np.isfinite(image)].astype(float)
    if not finite.size:
        raise ImageError(f"{Path(path).name} has no finite pixel: all data are flagged")
    peak, noise = float(finite.max()), float(mad_std(finite))
    return {
        "peak_jy": peak,
        "noise_jy": noise,
        "dynamic_range": peak / noise if noise > 0 else None,
        "beam_arcsec": [3600 * header.get(key, 0.0) for key in ("BMAJ", "BMIN")],
        "beam_angle_deg": header.get("BPA", 0.0),
    }
