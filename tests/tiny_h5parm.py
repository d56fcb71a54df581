"""Small h5parms: made by hand as DP3 lays them out, and solved by DP3 on a tiny MeasurementSet."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

import h5py
import numpy as np

import tiny_ms

INTERVAL, SOLINT = 10.0139008, 2
# Processing of solutions by every step, for `write`'s stations and intervals.
ALL_STEPS = [
    {"reference": {"station": "CS002"}},
    {"flag": {"window_s": 100}},
    {"smooth": {"kind": "gaussian", "window_s": 40}},
    {"interpolate": {"max_gap_s": 30}},
    {"normalise": None},
]


def write(path, tables=("phase000",), first=0, n=2, *, n_pol=0, axes=None, kinds=None, **changes):
    """A little h5parm as DP3 lays it out; values tell their own place. `changes` replace axis values."""
    ants = changes.get("ant", ["CS001", "CS002", "RS003"])
    values = {
        "time": changes.get("time", 1000.0 + 10.0 * (np.arange(first, first + n) + 0.5)),
        "freq": np.array(changes.get("freq", [140e6, 141e6])),
        "ant": np.array(ants, "S6"),
        "dir": np.array(changes.get("dir", ["[p0]"]), "S128"),
        "pol": np.array(changes.get("pol", ["XX", "YY"] if n_pol == 2 else ["XX", "XY", "YX", "YY"][:n_pol]), "S2"),
    }
    axes = axes or ["time", "freq", "ant", "dir"] + ["pol"] * bool(n_pol)
    shape = [len(values[a]) for a in axes]
    with h5py.File(path, "w") as file:
        for solset in changes.get("solsets", ["sol000"]):
            root = file.create_group(solset)
            root["antenna"] = np.array([(a, (i, 0, 0)) for i, a in enumerate(ants)], "S16,3f4").astype(
                [("name", "S16"), ("position", "f4", 3)]
            )
            for k, name in enumerate(tables):
                group = root.create_group(name)
                group.attrs["TITLE"] = np.bytes_((kinds or {}).get(name, re.sub(r"\d+$", "", name)))
                for a in axes:
                    group[a] = values[a]
                # e.g. 3 012: antenna by its own number, so that re-ordering shows
                place = np.zeros(shape)
                for i, a in enumerate(axes):
                    number = {"time": values["time"], "ant": [int(x[-1:]) for x in ants]}.get(a, range(shape[i]))
                    place += (
                        np.expand_dims(np.asarray(number, float), [j for j in range(len(axes)) if j != i]) * 10.0**-i
                    )
                group["val"], group["weight"] = place + k, np.ones(shape, "f4")
                for d in ("val", "weight"):
                    group[d].attrs["AXES"] = np.bytes_(",".join(axes))
                if "history" in changes:
                    group["val"].attrs["HISTORY000"] = np.bytes_(changes["history"])
    return path


def tiles(folder, *places, **changes):
    return [write(folder / f"t{i:04d}.h5", first=first, n=n, **changes) for i, (first, n) in enumerate(places)]


def arrays(path, table="sol000/phase000"):
    with h5py.File(path) as file:
        return {name: file[table][name][()] for name in ("val", "weight", "time")}


def dp3_time(slot):
    """A quarter of a slot early: DP3 takes the next slot, however the digits round."""
    moment = datetime(1858, 11, 17) + timedelta(seconds=tiny_ms.START + (slot - 0.25) * INTERVAL)
    return f"{moment:%Y/%m/%d/%H:%M:%S.%f}"


def solve(folder, modes, ms="../in.ms", sky="../sky.txt", chunk=None, **extra):
    """Solve in several modes in one run; returns the h5parm of each mode."""
    folder.mkdir(exist_ok=True)
    keys = {"msin": ms, "steps": f"[{','.join(f's{i}' for i in range(len(modes)))},null]"}
    for i, mode in enumerate(modes):
        step = {"type": "ddecal", "mode": mode, "h5parm": f"s{i}.h5", "sourcedb": sky, "solint": SOLINT, "nchan": 1}
        keys |= {f"s{i}.{key}": value for key, value in (step | extra).items()}
    if chunk:
        keys |= {"msin.starttime": dp3_time(chunk[0]), "msin.ntimes": chunk[1]}
    tiny_ms.run_dp3(folder, keys)
    return {mode: folder / f"s{i}.h5" for i, mode in enumerate(modes)}
