"""Solution processing: the steps that a solve's `process` lists, done on its merged h5parm in that order."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from chunkcal.errors import UserError
from chunkcal.solutions import filters
from chunkcal.solutions.filters import AXES, Solutions
from chunkcal.solutions.h5layout import written
from chunkcal.solutions.h5parm import NOT_CORRECTIONS, Soltab, check, describe, opened
from chunkcal.solutions.solutionsteps import (
    AUTO,
    Flag,
    Interpolate,
    Normalise,
    Reference,
    Smooth,
    Step,
    name_of,
    resolve_steps,
    role_of,
)

_LEAST_WINDOW = {"smooth": 3, "flag": 5}  # solutions: a median of fewer than 5 says little about what is usual
_WINDOWS = {"window_s": ("time", "s"), "window_hz": ("freq", "Hz")}


def process(source: str | os.PathLike, out: str | os.PathLike, steps: Sequence[Mapping[str, Any]]) -> dict:
    """Process the solutions of an h5parm into another of the same layout.

    All but `val` and `weight` is the source's, byte for byte; each step adds a HISTORY attribute to `val` of the
    tables it works on. Solutions that are flagged in either way (val not finite, weight 0) are flagged in both ways
    afterwards, and so are amplitudes that are not positive, because no gain has them. One table is in memory at a
    time, in double precision, with the work space of one station.

    Parameters
    ----------
    source : path
        As DP3 or `merge` wrote it; never touched.
    out : path
        Written under a temporary name beside it and renamed when complete.
    steps : sequence of mapping
        As `resolve_steps` takes them.

    Returns
    -------
    dict
        As `check` of `out`, and `steps`: for each step its name, parameters (the station that auto stands for among
        them) and `tables`: by ``solset/table`` the number of solutions it flagged or filled, or the factors by which
        amplitudes were divided.

    Raises
    ------
    UserError
        As `resolve_steps`; a step knows nothing about a table, or finds no table to work on; a window is narrower
        than a few solutions; `out` cannot be written.
    """
    if Path(out).exists() and os.path.samefile(source, out):
        raise UserError(f"{source} cannot be processed into itself; give another output")
    tables = {f"{solset}/{t.name}": t for solset, found in describe(source).solsets.items() for t in found}
    tables = {path: table for path, table in tables.items() if table.kind not in NOT_CORRECTIONS}
    stations = sorted({name for table in tables.values() for name in table.antennas})
    kinds = [table.kind for table in tables.values()]
    resolved = resolve_steps(steps, stations, kinds, where=f"h5parm {source}: process")
    resolved = [_with_station(step, source) for step in resolved]
    for step in resolved:
        _refuse_unfit(step, tables, source)
    record = [{"name": name_of(step), **dataclasses.asdict(step), "tables": {}} for step in resolved]
    with written(out, os.path.getsize(source)) as temporary:
        with opened(source):  # refuses what is no HDF5 file, before it is copied
            shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+", locking=False) as file:
            for path, table in tables.items():
                _process_table(file[path], table, resolved, record, f"h5parm {source}, table {path}")
        summary = check(temporary)
    return summary | {"steps": record}


def _with_station(step: Step, source: str | os.PathLike) -> Step:
    """Replace auto by the station with the largest usable fraction in the source."""
    if not isinstance(step, Reference) or step.station != AUTO:
        return step
    usable = check(source)["stations"]
    if not usable:
        raise UserError(f"h5parm {source} has no stations to refer to; leave out reference")
    return Reference(max(usable, key=usable.__getitem__))  # the first of equals


def _refuse_unfit(step: Step, tables: Mapping[str, Soltab], source: str | os.PathLike) -> None:
    """Refuse what only the tables themselves tell."""
    name = name_of(step)
    for path, table in tables.items():
        where = f"h5parm {source}, table {path}"
        full_jones = table.length("pol") == 4
        if full_jones and isinstance(step, Smooth):
            raise UserError(
                f"{where}: {name} cannot be done on full-Jones solutions, because amplitudes and phases of small"
                f" off-diagonal elements mean nothing by themselves; leave out {name}"
            )
        if full_jones and isinstance(step, Normalise) and "pol" in step.per:
            raise UserError(f"{where}: full-Jones solutions have no scale per polarization; leave pol out of per")
        if isinstance(step, Reference) and role_of(table.kind) in step.roles and step.station not in table.antennas:
            raise UserError(f"{where} has no station {step.station}; choose one that it has")
        odd = set(table.axes) - set(AXES)
        if odd:
            raise UserError(f"{where} has an axis {odd.pop()!r}, which processing does not know; leave out `process`")


def _process_table(group: h5py.Group, table: Soltab, steps: Sequence[Step], record: list[dict], where: str) -> None:
    solutions = _read(group, table)
    done = []
    for step, entry in zip(steps, record, strict=True):
        if solutions.role not in step.roles:
            continue
        result = _apply(step, solutions, table, where)
        entry["tables"][group.name.strip("/")] = result
        done.append(f"{entry['name']} {_parameters_text(step)}: {_result_text(result)}")
    if done:
        _write(group, table, solutions)
    attributes = group["val"].attrs
    number = sum(name.startswith("HISTORY") for name in attributes)
    for k, text in enumerate(done, start=number):
        attributes[f"HISTORY{k:03d}"] = np.bytes_(f"processed by chunkcal: {text}\n".encode())


def _apply(step: Step, solutions: Solutions, table: Soltab, where: str) -> dict:
    if isinstance(step, Reference):
        return {"n_flagged": filters.reference(solutions, table.antennas.index(step.station))}
    if isinstance(step, Interpolate):
        return {"n_filled": filters.interpolate(solutions, step.max_gap_s)}
    if isinstance(step, Normalise):
        factors = filters.normalise(solutions, step.per).ravel().tolist()
        return {"divided_by": [None if math.isnan(factor) else factor for factor in factors]}
    _refuse_narrow_windows(step, solutions, where)
    if isinstance(step, Flag):
        return {"n_flagged": filters.flag_outliers(solutions, step.sigma, step.window_s, step.window_hz)}
    filters.smooth(solutions, step.kind, step.window_s, step.window_hz)
    return {}


def _refuse_narrow_windows(step: Flag | Smooth, solutions: Solutions, where: str) -> None:
    for key, (axis, unit) in _WINDOWS.items():
        width = getattr(step, key)
        values = solutions.times if axis == "time" else solutions.frequencies
        if width is None or len(values) < 2:  # nothing to compare with, and nothing to do
            continue
        spacing = float(np.median(np.diff(values)))
        least = (_LEAST_WINDOW[name_of(step)] - 1) * spacing
        if width * (1 + 1e-6) < least:
            raise UserError(
                f"{where}: {key} {width:g} of {name_of(step)} is narrower than {_LEAST_WINDOW[name_of(step)]} solutions"
                f" of {spacing:.6g} {unit}; give {least:.6g} or more, or leave out {key}"
            )


def _read(group: h5py.Group, table: Soltab) -> Solutions:
    """Read a table with its axes in the order of `filters.AXES`."""
    role = role_of(table.kind)
    val, weight = (_ordered(group[name][()], table.axes) for name in ("val", "weight"))
    val = val.astype(float, copy=False)
    flagged = ~np.isfinite(val) | (weight == 0)
    if role == "amplitude":
        flagged |= ~(val > 0)
    val[flagged] = np.nan
    weight[flagged] = 0
    times, frequencies = (group[a][:] if a in table.axes else np.zeros(1) for a in ("time", "freq"))
    return Solutions(role, val, weight, times, frequencies)


def _ordered(values: np.ndarray, axes: Sequence[str]) -> np.ndarray:
    present = [axes.index(axis) for axis in AXES if axis in axes]
    missing = tuple(i for i, axis in enumerate(AXES) if axis not in axes)
    return np.expand_dims(values.transpose(present), missing)


def _write(group: h5py.Group, table: Soltab, solutions: Solutions) -> None:
    missing = tuple(i for i, axis in enumerate(AXES) if axis not in table.axes)
    present = [axis for axis in AXES if axis in table.axes]
    for name, values in (("val", solutions.val), ("weight", solutions.weight)):
        group[name][...] = values.squeeze(missing).transpose([present.index(axis) for axis in table.axes])


def _parameters_text(step: Step) -> str:
    values = {key: value for key, value in dataclasses.asdict(step).items() if value is not None}
    return ", ".join(f"{key}={','.join(v) if isinstance(v, tuple) else v}" for key, v in values.items())


def _result_text(result: Mapping[str, Any]) -> str:
    """Put a result into the history, where it must stay short: HDF5 allows an attribute 64 kB."""
    texts = [
        f"{key.replace('_', ' ')} {len(value)} factors"
        if isinstance(value, list)
        else f"{key.replace('_', ' ')} {value}"
        for key, value in result.items()
    ]
    return ", ".join(texts) or "done"
