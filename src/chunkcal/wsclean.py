"""The WSClean command: where it is, and its arguments.

Standard library only: Snakemake evaluates this in each of its processes.
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any


def find(command: str | Sequence[str]) -> list[str] | None:
    """Split the command that starts WSClean into words; None if there is no such program."""
    try:
        words = shlex.split(command) if isinstance(command, str) else list(command)
    except ValueError:  # a quote without its partner
        return None
    return words if words and shutil.which(words[0]) else None


def version(command: Sequence[str]) -> str:
    """Give the line in which WSClean tells its version."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return next((line.strip() for line in done.stdout.splitlines() if "version" in line.lower()), "unknown")


def arguments(
    command: Sequence[str],
    settings: Mapping[str, Any],
    measurement_sets: Sequence[str | os.PathLike],
    name: str,
    scale_arcsec: float,
    n_threads: int,
) -> list[str]:
    """Give the command line of one WSClean run.

    Two things keep it from writing into its input (WSClean 3.1, tried): ``-no-update-model-required`` leaves
    MODEL_DATA alone, and ``-reorder`` makes it clean on copies of its own, which go to ``-temp-dir``.
    """
    size = str(settings["size_pixels"])
    longest = 1 / (2 * math.radians(scale_arcsec / 3600))  # what pixels of this size can show, wavelengths
    return [
        *command,
        *("-name", name, "-size", size, size, "-scale", f"{scale_arcsec:g}asec"),
        *("-niter", str(settings["n_iterations"]), "-mgain", "0.8", "-auto-threshold", "4"),
        *("-weight", *settings["weighting"].split(), "-pol", "I", "-data-column", "DATA"),
        *("-maxuv-l", f"{longest:.1f}", "-no-update-model-required", "-reorder", "-temp-dir", "."),
        *("-j", str(n_threads), "-mem", "40"),
        *settings["extra_arguments"],
        *(os.path.abspath(path) for path in measurement_sets),
    ]
