"""The DP3 runs of calibration: one direction-independent DDECal solve, its application, and the model to compare."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chunkcal import chunkrules, parameters
from chunkcal.errors import UserError
from chunkcal.skymodel import SkyModel

SOLVE = "solve1"  # DP3's name of the solve step
APPLY = "apply1"
PREDICT = "predict1"
SKY = "sky.skymodel"  # DP3 reads a text sky model only under this ending, or .txt
SOLUTIONS = "solutions.h5"

FULL_JONES = ("fulljones",)
_AMPLITUDE, _PHASE = ("amplitude000",), ("phase000",)
# What DDECal of DP3 6.6 writes in each mode (ddecal/SolutionWriter.cc), in the order in which ApplyCal must undo it.
# A rotation is to the right of the diagonal in DDECal's Jones matrix, so the diagonal is undone first (tried).
MODES: dict[str, tuple[str, ...]] = {
    "diagonal": _AMPLITUDE + _PHASE,
    "diagonalamplitude": _AMPLITUDE,
    "diagonalphase": _PHASE,
    "faradayrotation": ("rotationmeasure000",),
    "fulljones": FULL_JONES,
    "leakage": FULL_JONES,
    "leakageamplitude": (),
    "rotation": ("rotation000",),
    "rotation+diagonal": (*_AMPLITUDE, *_PHASE, "rotation000"),
    "scalar": _AMPLITUDE + _PHASE,
    "scalaramplitude": _AMPLITUDE,
    "scalarphase": _PHASE,
    "tec": ("tec000",),
    "tec+delay": ("tec000", "delay000"),
    "tec+phase": ("tec000", "phase000"),
    "tec+phase+delay": ("tec000", "phase000", "delay000"),
}
_MODE_ALIASES = {
    "amplitudeonly": "diagonalamplitude",
    "complexgain": "diagonal",
    "phaseonly": "diagonalphase",
    "scalarcomplex": "scalar",
    "scalarcomplexgain": "scalar",
    "tecandphase": "tec+phase",
}
_DIAGONALS = {mode: MODES[mode] for mode in MODES if mode.startswith(("diagonal", "scalar"))}
# These fit their law over frequency to solutions of single channels, so one block over the band would leave nothing.
_BAND_MODES = {"faradayrotation", "tec", "tec+delay", "tec+phase", "tec+phase+delay"}
_OWN_KEYS = {
    "antennaconstraint": "antenna_constraint",
    "directions": "the solve is direction-independent",
    "h5parm": "products have fixed names",
    "keepmodel": "nothing comes after the solve",
    "maxiter": "maxiter",
    "mode": "mode",
    "modelnextsteps": "its steps could not be given",
    "nchan": "solution_bandwidth_hz",
    "onlypredict": "it would write into the chunk",
    "reusemodel": "nothing comes before the solve",
    "smoothnessconstraint": "smoothness_hz",
    "solint": "solint_s",
    "solveralgorithm": "solver_algorithm",
    "sourcedb": "calibrate.sky_model",
    "statfilename": "it would not be kept",
    "stepsize": "stepsize",
    "storebuffer": "nothing comes after the solve",
    "subtract": "it would write into the chunk",
    "tolerance": "tolerance",
    "type": "the solve is DDECal's",
    "uvlambdamin": "min_uv_lambda",
}


@dataclass(frozen=True)
class SolveInput:
    """The pre-processed data that a solve gets: seconds, Hz, slots; channels and stations if they are known."""

    interval_s: float
    n_slots: int
    channel_width_hz: float
    n_channels: int | None
    stations: tuple[str, ...] | None
    grid_is_exact: bool = True


@dataclass(frozen=True)
class Solve:
    """A solve as DP3 gets it: its DDECal parameters but for the files, and what was rounded."""

    name: str
    mode: str
    solint: int
    parameters: Mapping[str, Any]
    notes: tuple[str, ...]

    def unit(self, before: chunkrules.Unit, given: SolveInput) -> chunkrules.Unit:
        """Add the solve to the boundary unit of the steps before it."""
        data = chunkrules.Input(given.interval_s, given.n_slots, given.grid_is_exact)
        return before.after(f"solve {self.name}", chunkrules.effect_of("ddecal", self.parameters, data))


def resolve_solve(solve: Mapping[str, Any], given: SolveInput) -> Solve:
    """Turn a solve of the configuration into DDECal's parameters.

    ``solint_s`` and ``solution_bandwidth_hz`` are rounded to whole slots and channels of the pre-processed data, at
    least one; a bandwidth of 0 is one solution over the band, except in modes that fit a law over frequency (tec,
    delay, Faraday rotation) or smooth it, which need single channels for that.

    Raises
    ------
    UserError
        A mode that DDECal does not have, a station that the data do not have, or a parameter that is set elsewhere.
    """
    name = solve.get("name", "gain")
    where = f"calibrate.solves, solve {name}"
    mode = _mode(where, solve["mode"])
    notes: list[str] = []
    solint = _whole(f"{where}: solint_s", solve["solint_s"], given.interval_s, "s", "slots", notes)
    smooth = float(solve.get("smoothness_hz") or 0)
    bandwidth = float(solve.get("solution_bandwidth_hz") or 0)
    if bandwidth:
        n_channels = _whole(
            f"{where}: solution_bandwidth_hz", bandwidth, given.channel_width_hz, "Hz", "channels", notes
        )
    else:
        n_channels = 1 if mode in _BAND_MODES or smooth else 0
    values: dict[str, Any] = {"mode": mode, "solint": solint, "nchan": n_channels}
    for key, own in (
        ("maxiter", "maxiter"),
        ("tolerance", "tolerance"),
        ("stepsize", "stepsize"),
        ("solver_algorithm", "solveralgorithm"),
    ):
        if solve.get(key) is not None:
            values[own] = solve[key]
    if smooth:
        values["smoothnessconstraint"] = smooth
    if solve.get("min_uv_lambda"):
        values["uvlambdamin"] = solve["min_uv_lambda"]
    groups = solve.get("antenna_constraint") or []
    if groups:
        _refuse_groups(where, groups, given.stations)
        values["antennaconstraint"] = groups
    for key, value in parameters.flatten(f"{where}: extra", solve.get("extra")).items():
        reason = _OWN_KEYS.get(key) or _OWN_KEYS.get(key.partition(".")[0])
        if reason:
            hint = f"set {reason}" if reason in solve or reason.startswith("calibrate.") else reason
            raise UserError(f"{where}: extra.{key} cannot be set: {hint}")
        values[key] = value
    return Solve(name, mode, solint, values, tuple(notes))


def _mode(where: str, mode: Any) -> str:
    text = str(mode).strip().lower()
    text = _MODE_ALIASES.get(text, text)
    if text in MODES:
        return text
    near = difflib.get_close_matches(text, MODES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MODES)}"
    raise UserError(f"{where}: DDECal has no mode {mode!r}; {hint}")


def _whole(where: str, wanted: float, step: float, unit: str, things: str, notes: list[str]) -> int:
    """Round to whole steps, at least one, and say so if that changes much."""
    n = max(1, math.floor(wanted / step + 0.5))
    if abs(n * step - wanted) > 0.01 * wanted:
        notes.append(
            f"{where}: {wanted:g} {unit} is rounded to {n} {things} of {step:.6g} {unit}: {n * step:.6g} {unit}"
        )
    return n


def _refuse_groups(where: str, groups: Sequence[Sequence[str]], stations: tuple[str, ...] | None) -> None:
    for group in groups:
        unknown = [station for station in group if stations is not None and station not in stations]
        if unknown:
            raise UserError(f"{where}: antenna_constraint names {unknown[0]}, which is no station of the data")
        if len(set(group)) < 2:
            raise UserError(f"{where}: antenna_constraint: the group {list(group)} needs two stations or more")


def calibrate_run(
    solve: Solve, sky_model: str, sky: SkyModel, extra_inputs_dir: str | None = None, product: str = SOLUTIONS
) -> dict[str, Any]:
    """Make the DP3 run that solves one chunk; no MeasurementSet is written.

    Parameters
    ----------
    solve : Solve
        From `resolve_solve`.
    sky_model : str
        Absolute path of the text sky model.
    sky : SkyModel
        What it holds: all its patches are one direction.
    extra_inputs_dir : str, optional
        Folder of relative paths in `extra`.
    product : str
        Name of the h5parm.

    Returns
    -------
    dict
        ``parset``, ``links`` and ``product``. The link ``in.ms`` is the caller's to add.
    """
    where = f"calibrate.solves, solve {solve.name}: extra"
    values, links, _ = parameters.link_files(where, "ddecal", SOLVE, solve.parameters, extra_inputs_dir)
    parset = {
        "msin": "in.ms",
        "msout": "",
        "steps": f"[{SOLVE}]",
        f"{SOLVE}.type": "ddecal",
        f"{SOLVE}.sourcedb": SKY,
        f"{SOLVE}.directions": parameters.value_text(where, [list(sky.patches)]),
        f"{SOLVE}.h5parm": product,
    }
    parset |= {f"{SOLVE}.{key}": parameters.value_text(f"{where}.{key}", value) for key, value in values.items()}
    return {"parset": parset, "links": {SKY: sky_model, **links}, "product": product}


def corrections(solve: Solve) -> tuple[str, ...]:
    """Name the soltabs of a solve in the order in which ApplyCal must undo them.

    Raises
    ------
    UserError
        ApplyCal of DP3 6.6 cannot apply what this mode writes.
    """
    where = f"calibrate.solves, solve {solve.name}"
    tables = MODES[solve.mode]
    if solve.mode == "leakageamplitude":
        raise UserError(f"{where}: DP3's ApplyCal cannot apply mode leakageamplitude; use leakage")
    if solve.mode == "rotation+diagonal":
        return _diagonal(where, solve, "rotationdiagonalmode", "diagonal") + ("rotation000",)
    if solve.mode == "faradayrotation":
        diagonal = str(solve.parameters.get("faradaydiagonalmode", "rotation")).lower()
        if diagonal == "rotation":
            return tables
        if diagonal.startswith("diagonal"):
            raise UserError(
                f"{where}: faradaydiagonalmode {diagonal}: DP3 6.6 fits rotation and diagonal in one order and applies"
                " them in the other; use a scalar one"
            )
        return _diagonal(where, solve, "faradaydiagonalmode", "scalar") + tables
    return tables


def _diagonal(where: str, solve: Solve, key: str, default: str) -> tuple[str, ...]:
    mode = str(solve.parameters.get(key, default)).lower()
    if mode not in _DIAGONALS:
        raise UserError(f"{where}: {key} {mode!r} is none of {', '.join(_DIAGONALS)}")
    return _DIAGONALS[mode]


def apply_run(solve: Solve, interpolation: str = "linear") -> dict[str, Any]:
    """Make the DP3 run that applies the merged solutions to one chunk.

    The keys follow from the mode alone, because the merged file does not exist yet when the plan is made. ApplyCal's
    sub-steps do not inherit `interpolation` (steps/OneApplyCal.cc), so each gets its own.

    Returns
    -------
    dict
        ``parset``, ``links`` and ``product``. The links ``in.ms`` and ``solutions.h5`` are the caller's to add.
    """
    tables = corrections(solve)
    parset = {
        "msin": "in.ms",
        "msout": "out.ms",
        "steps": f"[{APPLY}]",
        f"{APPLY}.type": "applycal",
        f"{APPLY}.parmdb": SOLUTIONS,
    }
    prefixes = [APPLY]
    if tables == FULL_JONES:
        parset[f"{APPLY}.soltab"] = "[amplitude000,phase000]"
    elif len(tables) > 1:
        names = [table.rstrip("0") for table in tables]
        parset[f"{APPLY}.steps"] = "[" + ",".join(names) + "]"
        prefixes = [f"{APPLY}.{name}" for name in names]
    for prefix, table in zip(prefixes, tables, strict=True):
        parset |= {f"{prefix}.correction": table, f"{prefix}.interpolation": interpolation}
    return {"parset": parset, "links": {}, "product": "out.ms"}


def model_run(solve: Solve, sky_model: str, sky: SkyModel, product: str = "model.ms") -> dict[str, Any]:
    """Make the DP3 run that puts model visibilities in the place of a chunk's data.

    What the solve says about its model (beams, smearing) holds here too.

    Returns
    -------
    dict
        ``parset``, ``links`` and ``product``. The link ``in.ms``, and a time range if wanted, are the caller's to add.
    """
    parset = {
        "msin": "in.ms",
        "msout": product,
        "steps": f"[{PREDICT}]",
        f"{PREDICT}.type": "predict",
        f"{PREDICT}.sourcedb": SKY,
        f"{PREDICT}.sources": parameters.value_text("sky model", list(sky.patches)),
    }
    for key, value in solve.parameters.items():
        if key in _MODEL_KEYS:
            parset[f"{PREDICT}.{key}"] = parameters.value_text(key, value)
    return {"parset": parset, "links": {SKY: sky_model}, "product": product}


_MODEL_KEYS = {
    "beam_interval",
    "beammode",
    "beamproximitylimit",
    "correctfreqsmearing",
    "correcttimesmearing",
    "elementmodel",
    "onebeamperpatch",
    "usebeammodel",
    "usechannelfreq",
}
