"""h5parms, the HDF5 files that hold DP3's solutions: describe, check, apply.

An h5parm has solution sets (`sol000`), each with solution tables (`phase000`, `amplitude000`, `tec000` …),
each with the datasets `val` and `weight` and one dataset for every axis. The order of the axes differs
between DP3's solve modes, so it is always taken from the attribute AXES of `val`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from chunkcal.errors import UserError

# What DP3 6.6's ApplyCal makes of a table's TITLE (schaapcommon, JonesParameters): the role it plays.
ROLES = {
    "amplitude": "amplitude",
    "scalaramplitude": "amplitude",
    "commonscalaramplitude": "amplitude",
    "phase": "phase",
    "scalarphase": "phase",
    "commonscalarphase": "phase",
    "tec": "tec",
    "clock": "delay",
    "delay": "delay",
    "rotation": "rotation",
    "rotationangle": "rotation",
    "commonrotationangle": "rotation",
    "rotationmeasure": "rotation",
}
# Diagonal matrices first: DDECal's rotation modes mean J = diagonal x rotation, so that undoing J undoes
# the diagonal first (ddecal/constraints/RotationAndDiagonalConstraint.cc).
_SUB_STEPS = {"amplitude": "amp", "phase": "phase", "tec": "tec", "delay": "delay", "rotation": "rotation"}
NOT_CORRECTIONS = {"error"}  # the misfit that DDECal's TEC modes write beside the solutions
# ApplyCal addresses polarizations by position, never by name.
_POLARIZATIONS = [("XX", "YY"), ("RR", "LL"), ("XX", "XY", "YX", "YY"), ("RR", "RL", "LR", "LL")]
FREQUENCY_TOLERANCE_HZ = 1.0  # far above what DP3's rounding does, far below a channel's width
_BLOCK_BYTES = 16 << 20  # what `check` holds in memory of one dataset


@dataclass(frozen=True)
class Soltab:
    """One solution table.

    Attributes
    ----------
    kind : str
        TITLE of the table: phase, amplitude, tec, clock, delay, rotation, rotationmeasure, error …
    axes, shape : tuple
        Names and lengths of the axes of `val` and `weight`, in the order they are stored.
    antennas, directions, polarizations : tuple of str
        Empty where the table has no such axis.
    frequency_range : (float, float) or None
        First and last frequency, Hz.
    time_range : (float, float) or None
        Centres of the first and last solution interval, MJD s.
    by_dp3 : bool
        DP3 wrote the table (its HISTORY says so), so DP3's conventions hold.
    """

    name: str
    kind: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    antennas: tuple[str, ...] = ()
    directions: tuple[str, ...] = ()
    polarizations: tuple[str, ...] = ()
    frequency_range: tuple[float, float] | None = None
    time_range: tuple[float, float] | None = None
    by_dp3: bool = False

    def length(self, axis: str) -> int:
        """Length of an axis; 1 where the table does not have it."""
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1


@dataclass(frozen=True)
class H5Parm:
    """What an h5parm holds: solution tables by solution set."""

    path: Path
    solsets: Mapping[str, tuple[Soltab, ...]]


# ---- describing -----------------------------------------------------------------------------------------


def describe(path: str | os.PathLike) -> H5Parm:
    """Read what an h5parm holds, and check that it is well formed.

    Raises
    ------
    UserError
        It is missing, cut short or no HDF5 file; a table lacks TITLE, AXES or an axis; AXES or an axis
        contradicts the shape of `val` or `weight`.
    """
    with _reading(path) as file:
        return _describe(file, path)


@contextmanager
def _reading(path: str | os.PathLike) -> Iterator[h5py.File]:
    """As `_opened`; what HDF5 cannot read in it is an error of the file."""
    with opened(path) as file:
        try:
            yield file
        except (OSError, RuntimeError, KeyError) as error:
            raise UserError(f"h5parm {path} cannot be read ({one_line(error)}); make it again") from error


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[h5py.File]:
    """Open an h5parm for reading; UserError if it is missing, cut short or no HDF5 file."""
    if not Path(path).is_file():
        raise UserError(f"h5parm {path} does not exist; check its path")
    try:
        # Finished files do not change, and HDF5's locks fail on some cluster file systems.
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise UserError(f"h5parm {path} cannot be opened ({one_line(error)}); make it again") from error
    with file:
        yield file


def one_line(error: Exception) -> str:
    """Put the message of an error on one line."""
    return " ".join(str(error).split())


def _describe(file: h5py.File, path: str | os.PathLike) -> H5Parm:
    groups = _groups(file, path)
    return H5Parm(Path(path), {name: tuple(_soltab(group, path) for group in own) for name, own in groups.items()})


def _groups(file: h5py.File, path: str | os.PathLike) -> dict[str, list[h5py.Group]]:
    """Find the solution tables, by solution set."""
    solsets = {name: solset for name, solset in file.items() if isinstance(solset, h5py.Group)}
    groups = {
        name: [item for item in solset.values() if isinstance(item, h5py.Group)] for name, solset in solsets.items()
    }
    if not any(groups.values()):
        raise UserError(f"h5parm {path} holds no solution tables; make it again or give another file")
    return groups


def _checked_axes(group: h5py.Group, path: str | os.PathLike) -> tuple[str, ...]:
    """Check that a solution table is well formed; return the names of its axes."""
    where = f"h5parm {path}, table {group.name}"
    remedy = "make the file again or give another one"
    for name in ("val", "weight"):
        if name not in group:
            raise UserError(f"{where}: there is no dataset {name!r}; {remedy}")
        if "AXES" not in group[name].attrs:
            raise UserError(f"{where}: {name} has no attribute AXES; {remedy}")
    if "TITLE" not in group.attrs:
        raise UserError(f"{where}: there is no attribute TITLE, which says what kind of solutions these are; {remedy}")
    val, weight = group["val"], group["weight"]
    axes, weight_axes = (tuple(text_of(dataset.attrs["AXES"]).split(",")) for dataset in (val, weight))
    if len(axes) != val.ndim or weight_axes != axes or weight.shape != val.shape:
        raise UserError(
            f"{where}: AXES {','.join(axes)} of val {val.shape} and {','.join(weight_axes)} of weight"
            f" {weight.shape} contradict the shapes or each other; {remedy}"
        )
    for axis, length in zip(axes, val.shape, strict=True):
        values = group.get(axis)
        if values is not None and values.shape != (length,):
            raise UserError(f"{where}: axis {axis} has {values.shape} values, val has {length}; {remedy}")
        if values is None and axis in ("time", "freq", "ant", "dir", "pol"):
            raise UserError(f"{where}: axis {axis} has no dataset of its own; {remedy}")
    return axes


def _soltab(group: h5py.Group, path: str | os.PathLike) -> Soltab:
    table, val = _soltab_of_stations(group, path), group["val"]

    def ends(axis: str) -> tuple[float, float] | None:
        return (float(group[axis][0]), float(group[axis][-1])) if axis in table.axes and len(group[axis]) else None

    return replace(
        table,
        directions=_names(group, "dir", table.axes),
        polarizations=_names(group, "pol", table.axes),
        frequency_range=ends("freq"),
        time_range=ends("time"),
        by_dp3=any("CREATE by DP3" in text_of(val.attrs[a]) for a in val.attrs if a.startswith("HISTORY")),
    )


def _soltab_of_stations(group: h5py.Group, path: str | os.PathLike) -> Soltab:
    """Read what is needed to count solutions: half the work."""
    axes = _checked_axes(group, path)
    return Soltab(
        name=group.name.rsplit("/", 1)[-1],
        kind=text_of(group.attrs["TITLE"]).strip().lower(),
        axes=axes,
        shape=tuple(group["val"].shape),
        antennas=_names(group, "ant", axes),
    )


def _names(group: h5py.Group, axis: str, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(map(text_of, group[axis][:])) if axis in axes else ()


def text_of(value: object) -> str:
    """Text of an attribute or axis value, of any of HDF5's kinds of strings."""
    value = value.item() if isinstance(value, np.ndarray | np.generic) else value
    return value.decode() if isinstance(value, bytes) else str(value)


# ---- applying -------------------------------------------------------------------------------------------


def applycal_keys(
    path: str | os.PathLike,
    prefix: str,
    solset: str | None = None,
    *,
    direction: str | None = None,
    interpolation: str | None = None,
    invert: bool = True,
    stations: Sequence[str] | None = None,
) -> dict[str, str]:
    """Keys with which DP3's applycal applies all that an h5parm holds.

    One table becomes ``correction=<table>``; amplitude and phase with four polarizations become
    ``correction=fulljones``; several other tables become sub-steps (``steps=[amp,phase]``) with a correction
    each. The rules are those of steps/ApplyCal.cc and steps/OneApplyCal.cc of DP3 6.6.

    Parameters
    ----------
    prefix : str
        Name of the DP3 step, for instance ``apply``; the keys start with ``apply.``.
    solset : str, optional
        Which solution set; needed when there are several.
    direction : str, optional
        Which direction (patch), with or without DDECal's brackets; needed when there are several.
    interpolation : {"nearest", "linear"}, optional
        Belongs here because DP3 reads it from each sub-step and takes it for an unused key beside `steps`.
    invert : bool
        As the step's `invert`: False corrupts, and then the order of the sub-steps is the opposite one.
    stations : sequence of str, optional
        Names of the data's stations, which all must have solutions; not looked at if not given.

    Returns
    -------
    dict of str to str
        Without `type` and `parmdb`, which are the caller's. DP3 takes `parmdb` for an h5parm only if
        the path contains ``.h5``.

    Raises
    ------
    UserError
        The file can be read in more than one way, or in none that DP3 applies correctly.
    """
    tables = _applicable(path, solset)
    _refuse_other_stations(tables, stations or (), path)
    prefix = prefix.removesuffix(".") + "."
    keys = {prefix + "solset": solset} if solset else {}
    if direction is not None:
        known = {name for table in tables.values() for name in table.directions}
        keys[prefix + "direction"] = direction if direction in known else f"[{direction.strip('[]')}]"
    _refuse_other_directions(tables, keys.get(prefix + "direction"), path)
    steps = [prefix]
    if 4 in [table.length("pol") for table in tables.values()]:
        keys[prefix + "correction"] = "fulljones"
        keys[prefix + "soltab"] = f"[{tables['amplitude'].name},{tables['phase'].name}]"
    elif len(tables) == 1:
        keys[prefix + "correction"] = next(iter(tables.values())).name
    else:
        roles = [role for role in _SUB_STEPS if role in tables][:: 1 if invert else -1]
        keys[prefix + "steps"] = "[" + ",".join(_SUB_STEPS[role] for role in roles) + "]"
        steps = [f"{prefix}{_SUB_STEPS[role]}." for role in roles]
        keys |= {step + "correction": tables[role].name for step, role in zip(steps, roles, strict=True)}
    if interpolation:
        keys |= {step + "interpolation": interpolation for step in steps}
    return keys


def _applicable(path: str | os.PathLike, solset: str | None) -> dict[str, Soltab]:
    """Tables to apply by the role they play, if the file leaves no doubt about them."""
    solsets = describe(path).solsets
    if solset is None and len(solsets) > 1:
        raise _refusal(path, f"there are several solution sets ({', '.join(solsets)})", "choose one with `solset`")
    if solset is not None and solset not in solsets:
        raise _refusal(path, f"there is no solution set {solset!r} but {', '.join(solsets)}", "correct `solset`")
    tables: dict[str, Soltab] = {}
    for table in solsets[solset or next(iter(solsets))]:
        if table.kind in NOT_CORRECTIONS:
            continue
        role = ROLES.get(table.kind)
        if role is None:
            raise _refusal(path, f"DP3 cannot apply table {table.name} of kind {table.kind!r}", "remove that table")
        if role in tables:
            reason = f"{tables[role].name} and {table.name} are both of kind {role}"
            raise _refusal(path, reason, "name one with `correction`, or leave one table in the file")
        _refuse_layout(table, path)
        tables[role] = table
    if not tables:
        raise _refusal(path, "it has no table that can be applied", "give another file")
    _refuse_ambiguous_combinations(tables, path)
    return tables


def _refuse_layout(table: Soltab, path: str | os.PathLike) -> None:
    n = table.length("pol")
    diagonal = (1, 2) if table.kind in ("tec", "clock", "delay") else (1,)
    allowed = (1, 2, 4) if table.kind in ("phase", "amplitude") else diagonal
    if n not in allowed:
        reason = f"{table.name} ({table.kind}) has {n} polarizations, not one of {allowed}"
        raise _refusal(path, reason, "give another file")
    if n > 1 and table.polarizations not in _POLARIZATIONS:
        reason = f"{table.name} has the polarizations {', '.join(table.polarizations)}, which DP3 would mix up"
        raise _refusal(path, reason, "put them into the order XX, XY, YX, YY")
    if {"time", "freq"} <= set(table.axes) and table.axes.index("freq") < table.axes.index("time"):
        reason = f"{table.name} has the axes {','.join(table.axes)}, and DP3 needs time before freq"
        raise _refusal(path, reason, "re-order them")


def _refuse_ambiguous_combinations(tables: Mapping[str, Soltab], path: str | os.PathLike) -> None:
    names = {role: table.name for role, table in tables.items()}
    lengths = {role: table.length("pol") for role, table in tables.items()}
    if 4 in lengths.values() and lengths != {"amplitude": 4, "phase": 4}:
        reason = (
            f"{', '.join(names.values())} look like full-Jones solutions (4 polarizations), which are one table of"
            " amplitudes and one of phases with 4 polarizations each"
        )
        raise _refusal(path, reason, "give a file with these two")
    # Solves of TEC and phase give one phase per station; a phase per frequency is what a TEC fit starts from, and
    # applying both would correct twice.
    fitted = [names[role] for role in ("tec", "delay") if role in names]
    if fitted and "phase" in tables and tables["phase"].length("freq") > 1:
        reason = f"{' and '.join(fitted)} may be a fit to {names['phase']}, which has a phase for each frequency"
        raise _refusal(path, reason, "name one with `correction`, or leave in the file what is to be applied")
    # A rotation and a diagonal matrix that is no scalar do not commute. DDECal's order is known.
    if "rotation" in tables and max(lengths.values()) > 1 and not tables["rotation"].by_dp3:
        reason = f"the order of {', '.join(names.values())} matters and is unknown, since DP3 did not solve for them"
        raise _refusal(path, reason, "write the sub-steps of applycal yourself, the one to undo first in front")


def _refuse_other_stations(tables: Mapping[str, Soltab], stations: Sequence[str], path: str | os.PathLike) -> None:
    for table in tables.values():
        missing = [station for station in stations if table.antennas and station not in table.antennas]
        if missing:
            raise _refusal(
                path,
                f"{table.name} has no solutions for {len(missing)} of the {len(stations)} stations ({missing[0]}, ...)",
                "give the file of this array, or set `missingantennabehavior` to flag or unit",
            )


def _refuse_other_directions(tables: Mapping[str, Soltab], direction: str | None, path: str | os.PathLike) -> None:
    for table in tables.values():
        listing = ", ".join(table.directions)
        if direction is None and len(table.directions) > 1:
            reason = f"{table.name} has {len(table.directions)} directions ({listing})"
            raise _refusal(path, reason, "choose one with `direction`")
        if direction is not None and table.directions and direction not in table.directions:
            raise _refusal(path, f"{table.name} has no direction {direction} but {listing}", "correct `direction`")


def _refusal(path: str | os.PathLike, reason: str, remedy: str) -> UserError:
    return UserError(f"h5parm {path} cannot be applied as it is: {reason}; {remedy}")


# ---- checking -------------------------------------------------------------------------------------------


def check(path: str | os.PathLike, n_solutions: int | None = None) -> dict:
    """Check an h5parm and count its usable solutions.

    A solution is usable when `val` is finite and `weight` is not 0: those that applycal uses. Tables of kind
    `error` do not count.

    Returns
    -------
    dict
        n_solutions: intervals along time; finite_fraction: usable solutions / all solutions; stations: the same by
        name; n_empty: intervals without one usable solution; first_time, interval_s (MJD s and s; interval None if
        there is one interval only); tables: by ``solset/table``, kind, axes, shape, finite_fraction.

    Raises
    ------
    UserError
        As `describe`; the times differ between tables or do not increase; `n_solutions` is given and
        is not what the file holds.
    """
    with _reading(path) as file:
        found = [(group, _soltab_of_stations(group, path)) for own in _groups(file, path).values() for group in own]
        times = _times([(group, table.axes) for group, table in found], path)
        some = np.zeros(len(times), bool)
        usable: Counter[str] = Counter()
        total: Counter[str] = Counter()
        tables = {}
        for group, table in found:
            by_interval, by_station = _count_usable(group, table)
            size = int(np.prod(table.shape))
            tables[group.name[1:]] = {
                "kind": table.kind,
                "axes": list(table.axes),
                "shape": list(table.shape),
                "finite_fraction": float(by_interval.sum()) / max(1, size),
            }
            if table.kind not in NOT_CORRECTIONS:
                some |= by_interval > 0
                usable.update(dict(zip(table.antennas, by_station.tolist(), strict=True)))
                total.update(dict.fromkeys(table.antennas, size // max(1, table.length("ant"))))
    if n_solutions is not None and len(times) != n_solutions:
        raise UserError(f"h5parm {path} has {len(times)} solution intervals instead of {n_solutions}; make it again")
    return {
        "n_solutions": len(times),
        "finite_fraction": usable.total() / max(1, total.total()),
        "stations": {name: usable[name] / total[name] for name in total if total[name]},
        "n_empty": int((~some).sum()),
        "first_time": float(times[0]),
        "interval_s": float((times[-1] - times[0]) / (len(times) - 1)) if len(times) > 1 else None,
        "tables": tables,
    }


def solution_times(path: str | os.PathLike) -> np.ndarray:
    """Read the centres of the solution intervals, (n_solutions,) float64, MJD s; the same in all tables.

    Raises
    ------
    UserError
        As `describe`.
    """
    with _reading(path) as file:
        groups = [group for own in _groups(file, path).values() for group in own]
        return _times([(group, _checked_axes(group, path)) for group in groups], path)


def _times(tables: Sequence[tuple[h5py.Group, Sequence[str]]], path: str | os.PathLike) -> np.ndarray:
    """Time axis that all tables, given with their axes, share, (n_solutions,) float64, MJD s."""
    times: np.ndarray | None = None
    for group, axes in tables:
        where = f"h5parm {path}, table {group.name[1:]}"
        if "time" not in axes:
            raise UserError(f"{where} has no time axis; give solutions along time")
        own = group["time"][:]
        if times is not None and not np.array_equal(own, times):
            raise UserError(f"{where} has other times than the tables before it; give one solve's solutions")
        if len(own) == 0:
            raise UserError(f"{where} has no solutions; make the file again")
        if not np.isfinite(own).all() or (np.diff(own) <= 0).any():
            at = int(np.argmax(~(np.diff(own) > 0))) + 1 if len(own) > 1 else 0
            raise UserError(f"{where}: time does not increase at solution {at}; make the file again")
        times = own
    return times


def _count_usable(group: h5py.Group, table: Soltab) -> tuple[np.ndarray, np.ndarray]:
    """Count usable solutions by interval, (n_time,) int, and by antenna, (n_antennas,) int."""
    n_time = table.length("time")
    by_interval, by_station = np.zeros(n_time, int), np.zeros(len(table.antennas), int)
    others = {axis: tuple(i for i, a in enumerate(table.axes) if a != axis) for axis in ("time", "ant")}
    step = max(1, _BLOCK_BYTES * n_time // max(1, 8 * int(np.prod(table.shape))))
    for start in range(0, n_time, step):
        block = interval_range(table.axes, start, step)
        usable = np.isfinite(group["val"][block]) & (group["weight"][block] != 0)
        by_interval[start : start + step] = np.count_nonzero(usable, axis=others["time"])
        if "ant" in table.axes:
            by_station += np.count_nonzero(usable, axis=others["ant"])
    return by_interval, by_station


def axes_of(group: h5py.Group) -> list[str]:
    """Names of the axes of a solution table, in their order."""
    return text_of(group["val"].attrs["AXES"]).split(",")


def interval_range(axes: Sequence[str], first: int, n: int, axis: str = "time") -> tuple[slice, ...]:
    """Selection of `n` solution intervals, or of `n` values of another axis."""
    return (slice(None),) * axes.index(axis) + (slice(first, first + n),)
