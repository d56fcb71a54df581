"""One solve of a strategy: from seconds, Hz and patches to DDECal's parameters, and what it writes.

`strategy` puts solves together and makes the DP3 runs of them.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chunkcal.errors import UserError, counted
from chunkcal.planning import chunkrules, parameters
from chunkcal.planning.skymodel import SkyModel
from chunkcal.solutions.solutionsteps import Step, resolve_steps

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
    "directions": "directions",
    "h5parm": "products have fixed names",
    "initialsolutions": "initial_solutions",
    "keepmodel": "the solves of a strategy share their model already",
    "maxiter": "maxiter",
    "mode": "mode",
    "modelnextsteps": "its steps could not be given",
    "nchan": "solution_bandwidth_hz",
    "onlypredict": "it would write into the chunk",
    "reusemodel": "the solves of a strategy share their model already",
    "smoothnessconstraint": "smoothness_hz",
    "smoothnessreffrequency": "smoothness_reference_hz",
    "solint": "solint_s",
    "solveralgorithm": "solver_algorithm",
    "sourcedb": "calibrate.sky_model",
    "statfilename": "it would not be kept",
    "stepsize": "stepsize",
    "storebuffer": "solutions are applied from the merged file",
    "subtract": "apply.subtract",
    "tolerance": "tolerance",
    "type": "the solve is DDECal's",
    "uvlambdamin": "min_uv_lambda",
}


# What a solve says about its model. Solves that share a model must agree on it.
MODEL_KEYS = {
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
    """A solve as DP3 gets it.

    Attributes
    ----------
    solint : int
        Slots of the pre-processed data.
    parameters : mapping
        DDECal's, but for directions and what belongs to the strategy; files are absolute paths.
    directions : tuple of tuple of str
        The patches of each direction; one direction makes the solve direction-independent.
    preapply : tuple of str
        Absolute paths of h5parms that are applied before it.
    process : tuple
        What is done to the merged solutions before they are applied.
    notes : tuple of str
        What was rounded.
    """

    name: str
    mode: str
    solint: int
    parameters: Mapping[str, Any]
    directions: tuple[tuple[str, ...], ...] = ((),)
    preapply: tuple[str, ...] = ()
    process: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_directional(self) -> bool:
        """Whether there is more than one direction."""
        return len(self.directions) > 1

    @property
    def depends_on_threads(self) -> bool:
        """Whether another number of threads gives other bits, by 1e-6 (tried with DP3 6.6).

        In DDECal's iterative algorithms each thread has a sum of its own, in single precision.
        """
        algorithm = str(self.parameters.get("solveralgorithm", "directionsolve")).lower()
        return algorithm != "directionsolve" and not self.mode.endswith("phase")

    @property
    def model(self) -> dict[str, Any]:
        """What the solve says about its model."""
        return {key: value for key, value in self.parameters.items() if key in MODEL_KEYS}

    def unit(self, before: chunkrules.Unit, given: SolveInput) -> chunkrules.Unit:
        """Add the solve to the boundary unit; `before` is that of the pre-processing and of the solves so far."""
        data = chunkrules.Input(given.interval_s, given.n_slots, given.grid_is_exact)
        return before.after(f"solve {self.name}", chunkrules.effect_of("ddecal", self.parameters, data))


def resolve_solve(
    solve: Mapping[str, Any], given: SolveInput, sky: SkyModel, extra_inputs_dir: str | None = None
) -> Solve:
    """Turn a solve of the configuration into DDECal's parameters.

    ``solint_s`` and ``solution_bandwidth_hz`` are rounded to whole slots and channels of the pre-processed data, at
    least one; a bandwidth of 0 is one solution over the band, except in modes that fit a law over frequency (tec,
    delay, Faraday rotation) or smooth it, which need single channels for that.

    Parameters
    ----------
    solve
        An entry of ``calibrate.solves``.
    given
        The data that it gets.
    sky
        The sky model; its patches are what directions are made of.
    extra_inputs_dir
        Folder of relative paths.

    Raises
    ------
    UserError
        A mode that DDECal does not have, an interval longer than the observation, a station or patch that there is
        not, an h5parm that does not fit, or a parameter that is set elsewhere.
    """
    name = solve.get("name", "gain")
    where = f"calibrate.solves, solve {name}"
    mode = _mode(where, solve["mode"])
    notes: list[str] = []
    solint = _whole(f"{where}: solint_s", solve["solint_s"], given.interval_s, "s", "slot", notes)
    if solint > given.n_slots:
        raise UserError(
            f"{where}: solint_s {solve['solint_s']:g} s is longer than the observation"
            f" ({given.n_slots * given.interval_s:.6g} s); give at most that"
        )
    values = {"mode": mode, "solint": solint, "nchan": _n_channels(where, solve, mode, given, notes)}
    values |= {own: solve[key] for key, own in _OPTIONS.items() if solve.get(key)}
    groups = _groups(where, solve.get("antenna_constraint") or [], given.stations)
    if groups:
        values["antennaconstraint"] = groups
    initial = solve.get("initial_solutions")
    if initial:
        path = _table(f"{where}: initial_solutions", initial, given.stations, extra_inputs_dir)
        values["initialsolutions.h5parm"] = path
        values["initialsolutions.soltab"] = _initial_tables(f"{where}: initial_solutions", path)
    for key, value in parameters.flatten(f"{where}: extra", solve.get("extra")).items():
        reason = _OWN_KEYS.get(key) or _OWN_KEYS.get(key.partition(".")[0])
        if reason:
            hint = f"set {reason}" if reason in _CONFIG_KEYS or "." in reason else reason
            raise UserError(f"{where}: extra.{key} cannot be set: {hint}")
        values[key] = value
    preapply = solve.get("preapply") or []
    return Solve(
        name,
        mode,
        solint,
        values,
        _directions(where, solve.get("directions", "independent"), sky),
        tuple(_table(f"{where}: preapply", path, given.stations, extra_inputs_dir) for path in preapply),
        resolve_steps(solve.get("process"), given.stations, _kinds(mode), f"{where}: process"),
        tuple(notes),
    )


# Keys of the configuration that are DDECal's under another name; what is not set is left to DP3.
_OPTIONS = {
    "maxiter": "maxiter",
    "tolerance": "tolerance",
    "stepsize": "stepsize",
    "solver_algorithm": "solveralgorithm",
    "smoothness_hz": "smoothnessconstraint",
    "smoothness_reference_hz": "smoothnessreffrequency",
    "min_uv_lambda": "uvlambdamin",
}
_CONFIG_KEYS = {*_OPTIONS, "antenna_constraint", "directions", "initial_solutions", "mode", "solint_s"} | {
    "solution_bandwidth_hz"
}


def _mode(where: str, mode: Any) -> str:
    text = str(mode).strip().lower()
    text = _MODE_ALIASES.get(text, text)
    if text in MODES:
        return text
    near = difflib.get_close_matches(text, MODES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MODES)}"
    raise UserError(f"{where}: DDECal has no mode {mode!r}; {hint}")


def _kinds(mode: str) -> list[str]:
    """Kinds of the tables that a mode writes."""
    tables = ("amplitude", "phase") if MODES[mode] == FULL_JONES else MODES[mode]
    return [table.rstrip("0") for table in tables]


def _n_channels(where: str, solve: Mapping[str, Any], mode: str, given: SolveInput, notes: list[str]) -> int:
    bandwidth = float(solve.get("solution_bandwidth_hz") or 0)
    if bandwidth:
        what = f"{where}: solution_bandwidth_hz"
        return _whole(what, bandwidth, given.channel_width_hz, "Hz", "channel", notes)
    return 1 if mode in _BAND_MODES or solve.get("smoothness_hz") else 0


def _whole(where: str, wanted: float, step: float, unit: str, thing: str, notes: list[str]) -> int:
    """Round to whole steps, at least one, and say so if that changes much."""
    n = max(1, math.floor(wanted / step + 0.5))
    if abs(n * step - wanted) > 0.01 * wanted:
        steps = f"{counted(n, thing)} of {step:.6g} {unit}"
        notes.append(f"{where}: {wanted:g} {unit} is rounded to {steps}: {n * step:.6g} {unit}")
    return n


def _groups(where: str, groups: Sequence[Sequence[str]], stations: tuple[str, ...] | None) -> list[list[str]]:
    """Find the stations of each group; a name may be a pattern such as CS*."""
    found = []
    for group in groups:
        names: list[str] = []
        for pattern in group:
            own = [pattern] if stations is None else fnmatch.filter(stations, pattern)
            if not own:
                raise UserError(f"{where}: antenna_constraint names {pattern}, which is no station of the data")
            names += [name for name in own if name not in names]
        if len(names) < 2:
            raise UserError(f"{where}: antenna_constraint: the group {list(group)} needs two stations or more")
        found.append(names)
    return found


def _directions(where: str, wanted: Any, sky: SkyModel) -> tuple[tuple[str, ...], ...]:
    if wanted == "independent":
        return (tuple(sky.patches),)
    if wanted == "patches":
        return tuple((patch,) for patch in sky.patches)
    directions = tuple((item,) if isinstance(item, str) else tuple(item) for item in wanted)
    taken: set[str] = set()
    for patch in (patch for direction in directions for patch in direction):
        if patch not in sky.patches:
            near = difflib.get_close_matches(patch, sky.patches, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sky.patches[:10])}"
            raise UserError(f"{where}: directions: the sky model has no patch {patch}; {hint}")
        if patch in taken:
            raise UserError(f"{where}: directions names the patch {patch} twice; name it once")
        taken.add(patch)
    return directions


def _table(where: str, value: str, stations: tuple[str, ...] | None, base: str | None) -> str:
    """Find a user's h5parm, and make sure that it knows all stations."""
    from chunkcal.solutions import h5parm  # h5py is slow to import, and most solves begin from nothing

    path = parameters.find_file(where, value, base)
    for tables in h5parm.describe(path).solsets.values():
        for table in tables:
            missing = [name for name in stations or () if table.antennas and name not in table.antennas]
            if missing:
                raise UserError(
                    f"{where}: {path} has no solutions for {', '.join(missing[:5])}"
                    f"{' and others' if len(missing) > 5 else ''} in {table.name}; DP3 needs them for all stations"
                )
    return str(path)


def _initial_tables(where: str, path: str) -> list[str]:
    """Name the tables that DDECal starts from: what one solution set holds of amplitudes and phases, or the like."""
    from chunkcal.solutions import h5parm

    solsets = h5parm.describe(path).solsets
    if len(solsets) != 1:
        raise UserError(f"{where}: {path} has the solution sets {', '.join(solsets)}; give a file with one")
    (tables,) = solsets.values()
    return [table.name for table in sorted(tables, key=lambda table: table.name) if table.kind != "error"]


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
