"""The steps that a solve's `process` lists: their parameters, and which solutions each of them can work on.

A good order is reference, flag, smooth, interpolate, normalise: what is not referenced yet carries the phase that all
stations share and no solve knows, and outliers that are not flagged yet are smeared out.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chunkcal.errors import UserError

AUTO = "auto"
_REAL = ("tec", "delay", "rotationmeasure")
_WINDOWS = ("window_s", "window_hz")


@dataclass(frozen=True)
class Reference:
    """Subtract the phases (TEC, delay, rotation, rotation measure) of a station: see `filters.reference`."""

    roles = ("phase", "rotation", *_REAL)
    leaves = ("amplitude",)
    station: str = AUTO  # auto: the one with the fewest flagged solutions in the source; of equals, the first


@dataclass(frozen=True)
class Flag:
    """Flag outliers: see `filters.flag_outliers`."""

    roles = ("phase", "amplitude", *_REAL)
    leaves = ()
    sigma: float = 5.0
    window_s: float | None = None
    window_hz: float | None = None


@dataclass(frozen=True)
class Smooth:
    """Smooth: see `filters.smooth`."""

    roles = ("phase", "amplitude", *_REAL)
    leaves = ()
    kind: str = "median"
    window_s: float | None = None
    window_hz: float | None = None


@dataclass(frozen=True)
class Interpolate:
    """Fill flagged gaps in time: see `filters.interpolate`."""

    roles = ("phase", "amplitude", *_REAL)
    leaves = ()
    max_gap_s: float = dataclasses.field(default=math.nan, metadata={"required": True})


@dataclass(frozen=True)
class Normalise:
    """Divide amplitudes by their geometric mean: see `filters.normalise`."""

    roles = ("amplitude",)
    leaves = ("phase", "rotation", *_REAL)
    per: tuple[str, ...] = ("dir",)


Step = Reference | Flag | Smooth | Interpolate | Normalise
STEPS: dict[str, type[Step]] = {
    "reference": Reference,
    "flag": Flag,
    "smooth": Smooth,
    "interpolate": Interpolate,
    "normalise": Normalise,
}
_CHOICES = {"kind": ("median", "gaussian"), "per": ("freq", "dir", "pol")}


def resolve_steps(
    steps: Sequence[Mapping[str, Any]] | None,
    stations: Sequence[str] | None = None,
    kinds: Sequence[str] | None = None,
    where: str = "process",
) -> tuple[Step, ...]:
    """Check a list of processing steps from the configuration and fill in defaults.

    Parameters
    ----------
    steps : sequence of mapping
        Each has one key, the step's name, with a mapping of its parameters or None.
    stations : sequence of str, optional
        Names that `reference.station` may be, besides auto; any if not given.
    kinds : sequence of str, optional
        Kinds of the tables that the solve writes (their TITLE: phase, amplitude, tec …), to refuse steps that do not
        suit them.
    where : str
        Path of the list in the configuration, for messages.

    Raises
    ------
    UserError
        An unknown step, parameter, choice or station; a value out of bounds; a parameter is missing; a step cannot be
        done on one of the kinds, or works on none of them.
    """
    if steps is not None and (isinstance(steps, str | Mapping) or not isinstance(steps, Sequence)):
        raise UserError(f"{where}: {steps!r} is not a list; give steps like - smooth: {{window_s: 120}}")
    resolved = tuple(_resolve(f"{where}[{i}]", step, stations) for i, step in enumerate(steps or ()))
    for i, step in enumerate(resolved if kinds is not None else ()):
        _refuse_kinds(f"{where}[{i}].{name_of(step)}", step, sorted(set(kinds)))
    return resolved


def _refuse_kinds(where: str, step: Step, kinds: Sequence[str]) -> None:
    roles = {kind: role_of(kind) for kind in kinds}
    for kind, role in roles.items():
        if role not in (*step.roles, *step.leaves):
            # DDECal wraps a rotation at 90 degrees, where the phases beside it jump by 180 degrees.
            why = ", which DDECal wraps together with the phases" if role == "rotation" else ""
            raise UserError(f"{where} cannot be done on {kind} solutions{why}; leave it out")
    if not set(roles.values()) & set(step.roles):
        raise UserError(f"{where} works on {', '.join(step.roles)}, and there are {', '.join(kinds)}; leave it out")


def role_of(kind: str) -> str:
    """Give what solutions of a kind are: their role in `h5parm.ROLES`, but rotation measures are their own."""
    from chunkcal.solutions.h5parm import ROLES  # h5py is slow to import, and most solves have no steps

    return kind if kind == "rotationmeasure" else ROLES.get(kind, kind)


def name_of(step: Step) -> str:
    """Name of a step in the configuration."""
    return type(step).__name__.lower()


def _resolve(where: str, step: Any, stations: Sequence[str] | None) -> Step:
    if not isinstance(step, Mapping) or len(step) != 1:
        raise UserError(f"{where}: {step!r} is not one step; give one name with its parameters, in a list item each")
    ((name, parameters),) = step.items()
    if name not in STEPS:
        raise UserError(f"{where}: there is no processing step {name!r}; {_hint(name, STEPS)}")
    where = f"{where}.{name}"
    if not isinstance(parameters, Mapping | None):
        raise UserError(f"{where}: {parameters!r} are no parameters; give them as name: value")
    fields = {field.name: field for field in dataclasses.fields(STEPS[name])}
    values = {}
    for key, value in (parameters or {}).items():
        if key not in fields:
            raise UserError(f"{where}.{key}: no such parameter; {_hint(key, fields)}")
        if value is not None:
            values[key] = _value(f"{where}.{key}", key, value, stations)
    for key, field in fields.items():
        if field.metadata.get("required") and key not in values:
            raise UserError(f"{where}.{key} is missing; give a positive number")
    if "window_s" in fields and not values.keys() & set(_WINDOWS):
        raise UserError(f"{where}: neither window_s nor window_hz is given; give one or both")
    return STEPS[name](**values)


def _value(where: str, key: str, value: Any, stations: Sequence[str] | None) -> Any:
    if key == "station":
        if stations is not None and value != AUTO and value not in stations:
            raise UserError(f"{where}: there is no station {value!r}; {_hint(value, (*stations, AUTO))}")
        return str(value)
    if key == "kind":
        return _choice(where, key, value)
    if key == "per":
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise UserError(f"{where}: {value!r} is not a list; give some of {', '.join(_CHOICES[key])}")
        return tuple(_choice(where, key, item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise UserError(f"{where}: {value!r} is not a positive number; give one")
    return float(value)


def _choice(where: str, key: str, value: Any) -> str:
    if value not in _CHOICES[key]:
        raise UserError(f"{where}: there is no {value!r}; {_hint(value, _CHOICES[key])}")
    return value


def _hint(name: Any, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
