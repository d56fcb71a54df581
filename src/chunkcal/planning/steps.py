"""The step lists of pre-processing: the grammar of ska-sdp-batch-preprocess, turned into one DP3 run.

A list of ``{StepName: {parameter: value}}``, names in any case, run in order. Every step type of DP3 with all of its
parameters works, except those that cannot mean anything in time chunks. Files that steps name are linked into the
private folder of each run, so that no path reaches the parset.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from chunkcal import dp3
from chunkcal.errors import UserError, near_miss
from chunkcal.planning import chunkrules, parameters, stepschemas
from chunkcal.planning.chunkrules import STEP_TYPES, Unit

if TYPE_CHECKING:  # the configuration is checked in processes that shall not pay for importing casacore
    from chunkcal.ms import Observation

# Names as people write them, for messages.
_PRETTY = {"aoflagger": "AOFlagger", "applycal": "ApplyCal", "ddecal": "DDECal", "msin": "MsIn", "msout": "MsOut"}
_OWN_FILES = "it writes files of its own, which every chunk would write again"
REFUSED = {
    "bdaaverager": "data averaged by baseline length have no common time slots to cut and join at",
    "bdaexpander": "data averaged by baseline length have no common time slots to cut and join at",
    "grouppredict": "it needs data averaged by baseline length, which have no common time slots to cut and join at",
    "dynspec": _OWN_FILES,
    "idgimager": _OWN_FILES,
    "null": "as the last step it would keep DP3 from writing the data",
    "split": _OWN_FILES,
    "upsample": "it makes slots out of those on either side, also across the borders of chunks",
    "wscleanwriter": _OWN_FILES,
}
_MS_OWN = {
    "name": "the pipeline reads one MeasurementSet per observation; see input",
    "starttime": "the pipeline cuts the time range into chunks",
    "starttimeslot": "the pipeline cuts the time range into chunks",
    "endtime": "the pipeline cuts the time range into chunks",
    "ntimes": "the pipeline cuts the time range into chunks",
    "timetolerance": "chunks are cut on DP3's default time grid",
    "filetype": "the pipeline reads MeasurementSets",
    "missingdata": "a MeasurementSet without data cannot be calibrated",
}
_OUT_OWN = {
    "name": "products have fixed names; see output_dir",
    "chunkduration": "the pipeline joins its chunks into one MeasurementSet; see chunks",
    "clusterdesc": "a VDS file would be written by every chunk",
    "vdsdir": "a VDS file would be written by every chunk",
    "datacolumn": "DP3 writes new MeasurementSets with DATA only",
    "flagcolumn": "DP3 writes new MeasurementSets with FLAG only",
    "weightcolumn": "DP3 writes new MeasurementSets with WEIGHT_SPECTRUM only",
}


@dataclass(frozen=True)
class Step:
    """One step: its name as written, DP3 type, DP3 name (the prefix of its keys) and flat parameters."""

    name: str
    type: str
    prefix: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Pipeline:
    """A step list that has been read: what goes to msin and msout, and the steps between."""

    ms_in: Mapping[str, Any]
    ms_out: Mapping[str, Any]
    steps: tuple[Step, ...]

    def unit(self, observation: Observation) -> Unit:
        """Give the boundary unit of these steps."""
        return chunkrules.combine(self._ruled(), _given(observation))

    def _ruled(self) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
        yield "MsIn", "msin", self.ms_in
        yield from ((step.name, step.type, step.parameters) for step in self.steps)
        yield "MsOut", "msout", self.ms_out


def _given(observation: Observation) -> chunkrules.Input:
    return chunkrules.Input(observation.interval_s, observation.n_slots, observation.grid_is_exact)


def parse_steps(steps: Sequence[Any], allow_unknown: bool = False) -> Pipeline:
    """Read a step list.

    Parameters
    ----------
    steps
        ``{Name: {parameter: value}}``, ``{Name: None}`` or ``Name``, in order. A step with a parameter ``type`` may
        have any name, by which other steps can refer to it.
    allow_unknown
        Let parameters pass that DP3 6.6 does not have.

    Raises
    ------
    UserError
        A step that DP3 does not have, that has no place in time chunks, a parameter that is the pipeline's own, or all
        parameters that do not exist or have a value of the wrong type.
    """
    ends: dict[str, Mapping[str, Any]] = {}
    result: list[Step] = []
    problems: list[str] = []
    for number, entry in enumerate(steps, start=1):
        name, values = _entry(entry, number)
        where = f"preprocess.steps, step {number} ({name})"
        flat = parameters.flatten(where, values)
        step_type = _step_type(where, name, flat)
        try:
            stepschemas.check_step(step_type, flat, where, allow_unknown)
        except UserError as error:
            problems += error.lines
        if step_type in ("msin", "msout") and name.lower() == step_type:
            if step_type in ends:
                raise UserError(f"{where}: there is a second {_PRETTY[step_type]}; put all its parameters into one")
            _refuse_own(where, flat, _MS_OWN if step_type == "msin" else _OUT_OWN)
            flat.pop("overwrite", None)  # harmless: chunks are written where nothing is
            ends[step_type] = flat
            continue
        if step_type == "msout":
            raise UserError(f"{where}: a second output is not possible: {_OWN_FILES}")
        if step_type in REFUSED:
            raise UserError(f"{where}: not possible in time chunks: {REFUSED[step_type]}; remove the step")
        result.append(Step(name, step_type, _prefix(where, name, step_type, flat, result), flat))
    if problems:
        raise UserError(*problems)
    return Pipeline(ends.get("msin", {}), ends.get("msout", {}), tuple(result))


def _entry(entry: Any, number: int) -> tuple[str, Mapping[str, Any] | None]:
    if isinstance(entry, str):
        return entry.strip(), None
    if isinstance(entry, Mapping) and len(entry) == 1:
        name, values = next(iter(entry.items()))
        if isinstance(name, str) and (values is None or isinstance(values, Mapping)):
            return name.strip(), values
    hint = ""
    if isinstance(entry, Mapping) and len(entry) > 1 and next(iter(entry.values())) is None:
        hint = f"; indent the parameters of {next(iter(entry))} by two more blanks"
    raise UserError(f"preprocess.steps, step {number}: {entry!r} is not {{Step: {{parameter: value}}}}{hint}")


def _step_type(where: str, name: str, flat: dict[str, Any]) -> str:
    """Find the type as DP3 does: the parameter `type`, else the name without trailing digits."""
    wanted = str(flat.pop("type", "")).lower() or name.lower().rstrip("0123456789")
    if wanted in STEP_TYPES:
        return STEP_TYPES[wanted]
    known = [_PRETTY.get(step_type, step_type) for step_type in STEP_TYPES]
    raise UserError(f"{where}: DP3 has no step {wanted!r}{near_miss(wanted, known, 'DP3 has:')}")


def _refuse_own(where: str, flat: Mapping[str, Any], own: Mapping[str, str]) -> None:
    for key in flat:
        if key in own:
            raise UserError(f"{where}: {key} cannot be set here: {own[key]}")


def _prefix(where: str, name: str, step_type: str, flat: Mapping[str, Any], before: Sequence[Step]) -> str:
    """Name the step for DP3: as the user did if that is a name of its own, else type and place in the list."""
    taken = {step.prefix for step in before} | {"msin", "msout", "steps"}
    own = name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) else ""
    if own and own.lower() not in STEP_TYPES:
        if own in taken:
            raise UserError(f"{where}: there is a step {own} already; choose another name")
        return own
    number = len(before) + 1
    while f"{step_type}{number}" in taken:
        number += 1
    return f"{step_type}{number}"


# ---- the run --------------------------------------------------------------------------------------------


def preprocess_run(
    pipeline: Pipeline,
    observation: Observation,
    extra_inputs_dir: str | None = None,
    command_is_users: bool = False,
    applycal_keys: Callable[..., dict[str, str]] | None = None,
) -> dict[str, Any]:
    """Make the DP3 run of pre-processing; a chunk's time range is still to be added.

    Parameters
    ----------
    pipeline : Pipeline
        From `stepdefaults.with_defaults`.
    observation : Observation
        What it runs on.
    extra_inputs_dir : str, optional
        Folder of relative paths.
    command_is_users : bool
        Whether DP3 is the user's own: then it chooses its aoflagger strategy itself.
    applycal_keys : callable, optional
        `chunkcal.solutions.h5parm.applycal_keys`, which tells how to apply an h5parm.

    Returns
    -------
    dict
        ``parsets``, ``links`` and ``product`` of the run; ``notes`` (list of str) for the user.

    Raises
    ------
    UserError
        A file that a step names does not exist, or an h5parm cannot be applied.
    """
    parset = {"msin": "in.ms"}
    links = {"in.ms": observation.ms}
    notes: list[str] = []
    for key, value in pipeline.ms_in.items():
        parset[f"msin.{key}"] = _text("preprocess.steps: MsIn", key, value)
    parset |= {"msout": "out.ms", "steps": "[" + ",".join(step.prefix for step in pipeline.steps) + "]"}
    for step in pipeline.steps:
        values, own_links, own_notes = _resolved(step, observation, extra_inputs_dir, command_is_users)
        if step.type == "applycal":
            stations = None if _changes_stations(pipeline, step, values) else observation.stations
            values = _applycal(step, values, own_links, stations, applycal_keys)
        parset[f"{step.prefix}.type"] = step.type
        for key, value in values.items():
            parset[f"{step.prefix}.{key}"] = _text(f"preprocess.steps: {step.name}", key, value)
        links |= own_links
        notes += own_notes
    for key, value in pipeline.ms_out.items():
        parset[f"msout.{key}"] = _text("preprocess.steps: MsOut", key, value)
    return {"parsets": [parset], "links": links, "product": "out.ms", "notes": notes}


def _text(where: str, key: str, value: Any) -> str:
    """Write a value for DP3; what no parset can hold is said here, not by every chunk."""
    text = parameters.value_text(f"{where}: {key}", value)
    try:
        dp3.parset_text({key: text})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return text


def _resolved(
    step: Step, observation: Observation, extra_inputs_dir: str | None, command_is_users: bool
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    values = dict(step.parameters)
    if step.type == "demixer":
        values.setdefault("instrumentmodel", "instrument")
    if step.type == "aoflagger" and not values.get("strategy"):
        strategy = dp3.strategy_file(observation.telescope, command_is_users)
        if strategy is not None:
            values["strategy"] = str(strategy)
    values, links, notes = parameters.link_files(
        f"preprocess.steps: {step.name}", step.type, step.prefix, values, extra_inputs_dir, command_is_users
    )
    if step.type == "demixer" and "instrumentmodel" not in step.parameters:
        notes = []
    return values, links, notes


def _changes_stations(pipeline: Pipeline, step: Step, values: Mapping[str, Any]) -> bool:
    """Tell whether the stations that reach a step may be others than those of the observation, or need no solutions."""
    before = pipeline.steps[: pipeline.steps.index(step)]
    lenient = str(values.get("missingantennabehavior", "error")).lower() != "error"
    return lenient or any(other.type in ("filter", "stationadder") for other in before)


def _applycal(
    step: Step,
    values: dict[str, Any],
    links: Mapping[str, str],
    stations: Sequence[str] | None,
    applycal_keys: Callable[..., dict[str, str]] | None,
) -> dict[str, Any]:
    """Say how to apply an h5parm, unless the user did; hand down what DP3's sub-steps do not inherit."""
    chosen = "steps" in values or any(key.rpartition(".")[2] == "correction" for key in values)
    path = links.get(str(values.get("parmdb", "")), "")
    if not chosen and str(values.get("parmdb", "")).endswith(".h5"):
        if applycal_keys is None:
            from chunkcal.solutions.h5parm import (
                applycal_keys,  # h5py is slow to import, and most step lists have no ApplyCal
            )
        options = {key: values.pop(key, None) for key in ("direction", "interpolation", "solset")}
        keys = applycal_keys(
            path,
            step.prefix,
            **{key: str(value) for key, value in options.items() if value is not None},
            invert=chunkrules.boolean(values, "invert", True),
            stations=stations,
        )
        values |= {key.removeprefix(f"{step.prefix}."): value for key, value in keys.items()}
    steps = values.get("steps")
    names = steps if isinstance(steps, list) else str(steps or "").strip("[] ").split(",")
    names = [str(name).strip() for name in names if str(name).strip()]
    for key in ("interpolation", "usemodeldata") if names else ():
        if key in values:
            value = values.pop(key)
            for name in names:
                values.setdefault(f"{name}.{key}", value)
    return values
