"""Small h5parms with axes in any order."""

from __future__ import annotations

import h5py
import numpy as np

STATIONS = ["CS001", "CS002", "RS<script>alert(1)</script>", "RS305"]


def write_h5(
    path, dead=(3,), kinds=("phase", "amplitude"), axes=("time", "freq", "ant", "dir", "pol"), directions=("[p]",)
):
    """Write 12 solutions of 4 stations at 3 frequencies; stations `dead` have none."""
    sizes = {"time": 12, "freq": 3, "ant": 4, "dir": len(directions), "pol": 2}
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as file:
        for kind in kinds:
            group = file.create_group(f"sol000/{kind}000")
            group.attrs["TITLE"] = np.bytes_(kind)
            values = rng.normal(1, 0.1, tuple(sizes[axis] for axis in axes))
            if dead:
                values[(slice(None),) * axes.index("ant") + (list(dead),)] = np.nan
            for name, data in (("val", values), ("weight", np.ones_like(values))):
                group.create_dataset(name, data=data).attrs["AXES"] = np.bytes_(",".join(axes))
            own = {"time": 1000 + 10 * np.arange(12) + 5.0, "freq": np.array([120e6, 121e6, 122e6])}
            own |= {
                "ant": np.array(STATIONS, "S"),
                "dir": np.array(directions, "S"),
                "pol": np.array(["XX", "YY"], "S"),
            }
            for axis in axes:
                group[axis] = own[axis]
