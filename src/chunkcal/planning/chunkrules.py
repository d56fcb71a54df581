"""What each DP3 step means for time chunks: where a chunk may begin so that its result is that of an unchunked run.

A step that keeps state over a fixed number of slots (an average, a solution interval, a flagging window) wants every
chunk to begin at a multiple of that number, counted from slot 0. The boundary unit of a configuration is the least
common multiple over all steps. A step that looks at its neighbours, or carries state through the whole run, has no
such number: it is inexact. The rules were tried with DP3 6.6, byte by byte; a step without a rule counts as inexact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from chunkcal.errors import UserError

# DP3 6.6, base/DP3.cc: every name of a step type, to the one used here.
STEP_TYPES = {
    name: names[0]
    for names in (
        ("antennaflagger", "antflag"),
        ("aoflagger", "aoflag"),
        ("applybeam",),
        ("applycal", "correct"),
        ("averager", "average", "squash"),
        ("bdaaverager", "bdaaverage"),
        ("bdaexpander",),
        ("clipper",),
        ("columnreader",),
        ("combine",),
        ("counter", "count"),
        ("ddecal",),
        ("demixer", "demix"),
        ("dynspec",),
        ("filter",),
        ("flagtransfer",),
        ("gaincal", "calibrate"),
        ("grouppredict",),
        ("h5parmpredict",),
        ("idgimager",),
        ("idgpredict",),
        ("interpolate",),
        ("madflagger", "madflag"),
        ("msin",),
        ("msout", "out", "output"),
        ("null",),
        ("nullstokes",),
        ("phaseshifter", "phaseshift"),
        ("predict",),
        ("preflagger", "preflag"),
        ("python", "pythondppp"),
        ("sagecalpredict",),
        ("scaledata",),
        ("setbeam",),
        ("split", "explode"),
        ("stationadder", "stationadd"),
        ("transfer",),
        ("upsample",),
        ("uvwflagger", "uvwflag"),
        ("wgridderpredict",),
        ("wscleanwriter",),
    )
    for name in names
}

AMPLITUDE_MODES = {"scalaramplitude", "diagonalamplitude", "amplitudeonly", "leakageamplitude"}


@dataclass(frozen=True)
class Effect:
    """What one step does to chunks; slots are those of the step's own input.

    Attributes
    ----------
    unit : int
        A chunk must begin at a multiple of this many slots.
    unit_reason : str
        What sets the unit, for the plan.
    time_factor : int
        Slots that become one slot of the output.
    shortest : int
        With fewer slots than this the step works differently, so no chunk may be shorter.
    inexact, whole, rounding : str
        Why chunks differ from the whole; why the step needs the whole observation in one chunk; why the last bits may
        differ. Empty if they do not.
    """

    unit: int = 1
    unit_reason: str = ""
    time_factor: int = 1
    shortest: int = 1
    inexact: str = ""
    whole: str = ""
    rounding: str = ""


@dataclass(frozen=True)
class Unit:
    """The boundary unit of a configuration.

    Attributes
    ----------
    n_slots : int
        Chunks begin at multiples of this many input slots, from slot 0.
    reasons : tuple of (str, int)
        What set it: the step and its own unit, in input slots.
    inexact : tuple of str
        Why chunked and unchunked results differ, if they do.
    whole : tuple of str
        Why the observation must be one chunk, if it must.
    rounding : tuple of str
        Where the last bits may differ.
    time_factors : tuple of int
        The averages over time, in their order.
    shortest : int
        Input slots that a chunk must have at least.
    """

    n_slots: int = 1
    reasons: tuple[tuple[str, int], ...] = ()
    inexact: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    rounding: tuple[str, ...] = ()
    time_factors: tuple[int, ...] = ()
    shortest: int = 1

    @property
    def time_factor(self) -> int:
        """Input slots that become one slot of the pre-processed data."""
        return math.prod(self.time_factors)

    def after(self, name: str, effect: Effect) -> Unit:
        """Add a step that gets the output of those so far."""
        own = effect.unit * self.time_factor
        return Unit(
            math.lcm(self.n_slots, own),
            (*self.reasons, (f"{name}: {effect.unit_reason}", own)) if effect.unit > 1 else self.reasons,
            _extend(self.inexact, name, effect.inexact),
            _extend(self.whole, name, effect.whole),
            _extend(self.rounding, name, effect.rounding),
            (*self.time_factors, effect.time_factor) if effect.time_factor > 1 else self.time_factors,
            max(self.shortest, effect.shortest * self.time_factor),
        )


def _extend(texts: tuple[str, ...], name: str, text: str) -> tuple[str, ...]:
    return (*texts, f"{name}: {text}") if text else texts


@dataclass(frozen=True)
class Input:
    """What a rule must know of the data that reach its step: interval (s), slots, and their exactness."""

    interval_s: float
    n_slots: int
    grid_is_exact: bool = True


Rule = Callable[[Mapping[str, Any], Input], Effect]


def effect_of(step_type: str, parameters: Mapping[str, Any], given: Input) -> Effect:
    """Apply the rule of a step type (one of `STEP_TYPES`' values) to a step's parameters."""
    rule = _RULES.get(step_type)
    if rule is None:
        return Effect(inexact="not known to give the same result in time chunks")
    return rule(parameters, given)


def combine(steps: Iterable[tuple[str, str, Mapping[str, Any]]], given: Input) -> Unit:
    """Combine (name, type, parameters) of steps in their order."""
    unit = Unit()
    for name, step_type, parameters in steps:
        reaches = Input(given.interval_s * unit.time_factor, -(-given.n_slots // unit.time_factor), given.grid_is_exact)
        unit = unit.after(name, effect_of(step_type, parameters, reaches))
    return unit


def grid_is_exact(first_time: float, interval_s: float, n_slots: int) -> bool:
    """Tell whether every slot time is exact in double precision, so that any way to add it up gives the same bits.

    MJD in seconds has a unit in the last place of about 1 us; LOFAR's 10.0139008 s is no multiple of it, 4 s is.
    """
    last = first_time + n_slots * interval_s
    # Averaging adds half intervals.
    return (Fraction(interval_s) / 2 / Fraction(math.ulp(last))).denominator == 1


def averaging_steps(parameters: Mapping[str, Any], interval_s: float, prefix: str = "time") -> int:
    """Slots that an averager makes into one (DP3 6.6, steps/Averager.cc): ``timeresolution`` wins over ``timestep``."""
    resolution = number(parameters, f"{prefix}resolution", 0.0)
    if math.isnan(resolution):
        raise UserError(f"{prefix}resolution: {parameters[prefix + 'resolution']!r} is not a number")
    if resolution > 0:
        return max(1, int(resolution / interval_s + 0.5))
    return max(1, integer(parameters, f"{prefix}step", 1))


def number(parameters: Mapping[str, Any], key: str, default: float) -> float:
    """Read a number that may be written as text; NaN if it is neither."""
    value = parameters.get(key)
    if value is None:
        return default
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def integer(parameters: Mapping[str, Any], key: str, default: int) -> int:
    """Read a whole number, 0 or more.

    Raises
    ------
    UserError
        If it is none.
    """
    value = number(parameters, key, default)
    if not (value >= 0 and float(value).is_integer()):
        raise UserError(f"{key}: {parameters[key]!r} is not a whole number, 0 or more")
    return int(value)


def boolean(parameters: Mapping[str, Any], key: str, default: bool) -> bool:
    """Read a boolean as DP3 does: by its first letter."""
    value = parameters.get(key)
    return default if value is None else str(value)[:1].lower() in {"t", "y", "1"}


# ---- the rules ------------------------------------------------------------------------------------------


def _anywhere(parameters: Mapping[str, Any], given: Input) -> Effect:
    return Effect()


def _averager(parameters: Mapping[str, Any], given: Input) -> Effect:
    n = min(averaging_steps(parameters, given.interval_s), given.n_slots)  # DP3 truncates it, too
    return Effect(unit=n, unit_reason=f"averages {n} slots", time_factor=n, shortest=n)


def _aoflagger(parameters: Mapping[str, Any], given: Input) -> Effect:
    window = integer(parameters, "timewindow", 0)
    if window < 1:
        return Effect(inexact="without timewindow, DP3 sizes its window by the machine's memory")
    if any(number(parameters, key, 0) > 0 for key in ("overlapperc", "overlapmax", "overlap")):
        return Effect(inexact="its windows overlap; set overlapperc: 0")
    if parameters.get("overlapperc") is None:
        return Effect(inexact="its windows overlap by 1 % by default; set overlapperc: 0")
    return Effect(unit=window, unit_reason=f"flags windows of {window} slots")


def _madflagger(parameters: Mapping[str, Any], given: Input) -> Effect:
    if number(parameters, "timewindow", 1) == 1:
        return Effect()
    return Effect(inexact="its running median looks at half a timewindow on either side; set timewindow: 1")


def _preflagger(parameters: Mapping[str, Any], given: Input) -> Effect:
    relative = [key for key in parameters if key.rpartition(".")[2] in {"timeslot", "reltime"}]
    if relative:
        return Effect(whole=f"{relative[0]} counts from the start of the chunk; use abstime")
    return Effect()


def _interpolate(parameters: Mapping[str, Any], given: Input) -> Effect:
    return Effect(inexact="it fills flagged points from the slots on either side")


def _clipper(parameters: Mapping[str, Any], given: Input) -> Effect:
    n = max(1, integer(parameters, "timestep", 5))
    if _predict(parameters, given).unit > 1:
        return Effect(inexact="how its timestep and beam_interval work together is not known")
    return Effect(unit=n, unit_reason=f"predicts every {n} slots", rounding=_beam(parameters))


def _demixer(parameters: Mapping[str, Any], given: Input) -> Effect:
    # ntimechunk only says how many intervals are worked on at a time; tried: the result does not depend on it.
    out = min(max(1, integer(parameters, "timestep", 1)), given.n_slots)
    solve = averaging_steps({"demixtimestep": out, **parameters}, given.interval_s, "demixtime")
    return Effect(
        unit=math.lcm(out, solve),
        unit_reason=f"averages {out} slots and solves for {solve}",
        time_factor=out,
        shortest=math.lcm(out, solve),
        inexact=_PROPAGATES if boolean(parameters, "propagatesolutions", False) else "",
    )


_PROPAGATES = "each solution starts from the one before it; set propagatesolutions: false"


def _gaincal(parameters: Mapping[str, Any], given: Input) -> Effect:
    return _solver(parameters, given, propagates=boolean(parameters, "propagatesolutions", True))


def _ddecal(parameters: Mapping[str, Any], given: Input) -> Effect:
    model = [key for key in parameters if key.startswith("idg.")]
    if model or boolean(parameters, "sagecalpredict", False):
        return Effect(inexact="its predict (IDG, SAGECal) is not known to give the same result in time chunks")
    return _solver(parameters, given, propagates=boolean(parameters, "propagatesolutions", False))


def _solver(parameters: Mapping[str, Any], given: Input, propagates: bool) -> Effect:
    n = integer(parameters, "solint", 1)
    predict = _predict(parameters, given)
    rounding = predict.rounding
    if str(parameters.get("mode", parameters.get("caltype", ""))).lower() in AMPLITUDE_MODES:
        # xt::abs is vectorised from the first aligned address on, which differs from run to run.
        rounding = "the last bit of a double of amplitude-only solutions depends on where DP3's memory lies"
    if n < 1:
        return Effect(whole="one solution for all times (solint 0) needs them all", rounding=rounding)
    return Effect(
        unit=math.lcm(n, predict.unit),
        unit_reason=f"solves for {n} slots" + (f" and {predict.unit_reason}" if predict.unit > 1 else ""),
        rounding=rounding,
        inexact=_PROPAGATES if propagates else predict.inexact,
    )


def _predict(parameters: Mapping[str, Any], given: Input) -> Effect:
    interval = number(parameters, "beam_interval", 0.0)
    if not interval > 0 or not _beam(parameters):
        return Effect(rounding=_beam(parameters))
    ratio = interval / given.interval_s
    if not given.grid_is_exact and abs(ratio - round(ratio)) < 1e-3:
        return Effect(inexact=f"rounding decides if beam_interval is {round(ratio)} or {round(ratio) + 1} slots")
    n = math.ceil(ratio - 1e-9)
    return Effect(unit=n, unit_reason=f"evaluates the beam every {n} slots", rounding=_beam(parameters))


def _beam(parameters: Mapping[str, Any]) -> str:
    return _SKY_CONVERSION if boolean(parameters, "usebeammodel", False) else ""


_SKY_CONVERSION = (
    "casacore's conversion from sky to telescope starts afresh in each run, so beams may differ by rounding"
)


def _applybeam(parameters: Mapping[str, Any], given: Input) -> Effect:
    return Effect(rounding=_SKY_CONVERSION)


def _uvwflagger(parameters: Mapping[str, Any], given: Input) -> Effect:
    return Effect(rounding=_SKY_CONVERSION if parameters.get("phasecenter") else "")


def _transfer(parameters: Mapping[str, Any], given: Input) -> Effect:
    return Effect(whole="its source_ms must begin at the same time as the data")


def _python(parameters: Mapping[str, Any], given: Input) -> Effect:
    return Effect(inexact="what a Python step remembers from slot to slot is not known")


def _msout(parameters: Mapping[str, Any], given: Input) -> Effect:
    manager = parameters.get("storagemanager", parameters.get("storagemanager.name"))
    if manager not in (None, "", "default"):
        return Effect(inexact=f"compression with {manager} depends on what lies in the same file")
    return Effect()


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "antennaflagger",
            "applycal",
            "columnreader",
            "combine",
            "counter",
            "filter",
            "msin",
            "nullstokes",
            "phaseshifter",
            "scaledata",
            "setbeam",
            "stationadder",
        ),
        _anywhere,
    ),
    "aoflagger": _aoflagger,
    "applybeam": _applybeam,
    "averager": _averager,
    "clipper": _clipper,
    "ddecal": _ddecal,
    "demixer": _demixer,
    "flagtransfer": _transfer,
    "gaincal": _gaincal,
    "h5parmpredict": _predict,
    "interpolate": _interpolate,
    "madflagger": _madflagger,
    "msout": _msout,
    "predict": _predict,
    "preflagger": _preflagger,
    "python": _python,
    "transfer": _transfer,
    "uvwflagger": _uvwflagger,
}
