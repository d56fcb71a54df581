"""The short form of the provenance that travels inside a product: HISTORY of h5parms and MeasurementSets.

Without clock, machine or paths, so that the same inputs give the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import h5py
import numpy as np

import chunkcal
from chunkcal.lineage import versions

_LONGEST_ATTRIBUTE = 60_000  # bytes; HDF5 allows 64 KiB with everything
_PACKAGES = ("dp3", "h5py", "numpy", "python-casacore")


def lines(runs: Mapping[str, Any], dp3_version: str | None) -> list[str]:
    """Give the short form of how a product was made.

    Parameters
    ----------
    runs
        DP3 parsets by stage, without what is one chunk's own; see `requests.history`.
    dp3_version
        As planned.

    Returns
    -------
    list of str
        Versions, the parsets of each stage (JSON), and where the rest is.
    """
    commit = versions.commit()
    names = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return [
        f"made by chunkcal {chunkcal.__version__}" + (f" (commit {commit})" if commit else ""),
        f"with DP3 {dp3_version or 'of unknown version'}; packages: {names}",
        *(f"{stage}: {json.dumps(parsets, sort_keys=True)}" for stage, parsets in runs.items()),
        "all DP3 runs, digests and versions: provenance.json of the observation",
    ]


def add_to_h5parm(path: str | os.PathLike, text: Sequence[str]) -> None:
    """Add an entry to the history of each table of an h5parm: attribute HISTORY<nnn> of its values, as DP3 names it."""
    entry = np.bytes_("\n".join(text).encode()[:_LONGEST_ATTRIBUTE])
    with h5py.File(path, "r+") as file:
        for group in (table for solset in file.values() for table in solset.values()):
            if isinstance(group, h5py.Group) and "val" in group:
                attributes = group["val"].attrs
                number = sum(name.startswith("HISTORY") for name in attributes)
                attributes[f"HISTORY{number:03d}"] = entry


def add_to_ms(path: str | os.PathLike, text: Sequence[str]) -> None:
    """Add a row to a MeasurementSet's HISTORY, at the time of its last one: all but the first line are parameters."""
    import casacore.tables as ct  # slow to import, and h5parms have no use for it

    with ct.table(f"{os.fspath(path)}/HISTORY", readonly=False, ack=False) as table:
        row = table.nrows()
        last = table.getcell("TIME", row - 1) if row else 0.0
        table.addrows(1)
        values = {
            "TIME": last,
            "OBSERVATION_ID": 0,
            "MESSAGE": text[0],
            "PRIORITY": "NORMAL",
            "ORIGIN": f"chunkcal {chunkcal.__version__}",
            "APPLICATION": "chunkcal",
            "OBJECT_ID": 0,
            "APP_PARAMS": list(text[1:]),
            "CLI_COMMAND": [""],
        }
        for name, value in values.items():
            if name in table.colnames():
                table.putcell(name, row, value)
