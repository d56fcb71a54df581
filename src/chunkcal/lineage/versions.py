"""What software is at work: versions of chunkcal, of Python packages, of DP3 and its casacore, of the measures data."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

import chunkcal
from chunkcal import dp3
from chunkcal.errors import UserError

# A DP3 that takes longer to say its version must not hold up the start of a run.
ANSWER_TIMEOUT_S = 10.0
# Tables of casacore's measures data that change: Earth orientation and leap seconds.
_MEASURES = ("IERSeop97", "IERSpredict", "TAI_UTC")


def packages() -> dict[str, str]:
    """List chunkcal's requirements and their installed versions."""
    lines = [line for line in metadata.requires("chunkcal") or [] if "extra ==" not in line]
    names = sorted(re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in lines)
    return {name: metadata.version(name) for name in names}


def software() -> dict[str, Any]:
    """Say what runs here: ``chunkcal``, ``commit``, ``python``, ``platform`` and ``packages``."""
    return {
        "chunkcal": chunkcal.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages(),
    }


def commit() -> str | None:
    """Give the git commit of chunkcal's source, with ``+changes`` if it was edited since; None outside a repository."""
    root = Path(chunkcal.__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        found, edited = (
            subprocess.run(
                ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):  # no git here, or a repository that git does not trust
        return None
    return found + ("+changes" if edited else "")


def dp3_here(setting: str | Sequence[str] | None) -> str | None:
    """Give the version of the DP3 that a run would use; None if it cannot be told on this machine.

    The wheel's is looked up (1 ms); any other DP3 is asked.
    """
    try:
        command = dp3.find_command(setting)
        if dp3.is_wheel(command):
            return metadata.version("dp3")
        return dp3.version(command, ANSWER_TIMEOUT_S)
    except (UserError, metadata.PackageNotFoundError):
        return None


@lru_cache
def casacore_of_wheel() -> str | None:
    """Find the version of the casacore that the DP3 wheel carries, which is not python-casacore's."""
    spec = util.find_spec("dp3")
    if spec is None or spec.origin is None:
        return None
    libraries = sorted((Path(spec.origin).parent.parent / "dp3.libs").glob("libcasa_casa-*"))
    # Its getVersion() returns this constant; loading a second casacore into this process would crash it.
    found = set(re.findall(rb"\0(\d\.\d+\.\d+)\0", libraries[0].read_bytes())) if libraries else set()
    return found.pop().decode() if len(found) == 1 else None


def measures(environment: Mapping[str, str], measures_dir: str | None = None) -> dict[str, Any] | None:
    """Describe the measures data that a DP3 with this environment uses; None if DP3 knows them for itself.

    Returns
    -------
    dict
        ``folder``, and ``editions``: version and date of each table that changes.
    """
    folder = measures_dir or environment.get("CASACORE_DATADIR")
    if folder is None and "AIPSPATH" in environment:
        folder = os.path.join(environment["AIPSPATH"].split()[0], "data")
    return {"folder": folder, "editions": _editions(folder)} if folder else None


@lru_cache
def _editions(folder: str) -> dict[str, str]:
    import casacore.tables as ct

    found = {}
    for name in _MEASURES:
        path = Path(folder, "geodetic", name)
        if not (path / "table.dat").is_file():
            continue
        try:
            with ct.table(str(path), ack=False) as table:
                keywords = table.getkeywords()
        except RuntimeError:
            continue
        found[name] = f"{keywords.get('VS_VERSION', '?')} of {keywords.get('VS_DATE', '?')}"
    return found
