"""Checks names and types of DP3 step parameters: what DP3 would say in every chunk is said when the run starts.

The table data/dp3_steps.json is made by tools/dp3_steps.py from the schemas that DP3 publishes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from chunkcal.errors import UserError, near_miss

_INTEGER = re.compile(r"[+-]?(\d+|0[xX][0-9a-fA-F]+)")
_BOOLEAN = {"true", "t", "yes", "y", "1", "false", "f", "no", "n", "0"}
_WHOLE_STEP = {"*": {"any": True}, "*.*": {"any": True}}  # of a step type that the table does not have


@cache
def table() -> dict[str, dict[str, dict[str, Any]]]:
    """Give the parameters of each step type by name.

    A parameter has ``type``, and where known ``default`` and ``values`` (the words that it takes). A name ``a.*`` is
    all parameters of another ``step``; ``*.*`` is those below any word that the parameter ``named_in`` mentions.
    """
    text = files("chunkcal").joinpath("data/dp3_steps.json").read_text(encoding="utf-8")
    return json.loads(text)["steps"]


def check_step(step_type: str, parameters: Mapping[str, Any], where: str, allow_unknown: bool = False) -> None:
    """Check the parameters of one step.

    Parameters
    ----------
    step_type : str
        A value of `chunkrules.STEP_TYPES`.
    parameters : mapping
        Flattened parameters, as `parameters.flatten` gives them.
    where : str
        The step as the user wrote it, for messages.
    allow_unknown : bool
        Let names pass that the table does not have: DP3 decides.

    Raises
    ------
    UserError
        One line for each parameter that does not exist, or whose value DP3 cannot read.
    """
    problems = []
    for key, value in parameters.items():
        spec = _find(step_type, key, parameters)
        if spec is None:
            if not allow_unknown:
                problems.append(f"{where}: `{key}`: no such parameter{_meant(step_type, key, parameters)}")
        elif problem := _mistake(spec, value):
            problems.append(f"{where}: `{key}`: {problem}")
    if problems:
        raise UserError(*problems)


def _find(step_type: str, key: str, parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Find what the table says of a parameter; follow sub-steps."""
    known = table().get(step_type, _WHOLE_STEP)
    if key in known:
        return known[key]
    head, dot, rest = key.partition(".")
    family = known.get(f"{head}.*") or (_family(known, head, parameters) if dot else known.get("*"))
    if family is None:
        return None
    if "step" not in family:
        return family
    return _find(family["step"], rest, _below(parameters, head))


def _family(known: Mapping[str, Any], head: str, parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
    family = known.get("*.*")
    return family if family is not None and ("named_in" not in family or head in _names(family, parameters)) else None


def _names(family: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    return [
        word for name in family["named_in"].split() for word in re.findall(r"[\w@:+-]+", str(parameters.get(name, "")))
    ]


def _below(parameters: Mapping[str, Any], head: str) -> dict[str, Any]:
    return {name.removeprefix(f"{head}."): value for name, value in parameters.items() if name.startswith(f"{head}.")}


def _meant(step_type: str, key: str, parameters: Mapping[str, Any]) -> str:
    """Say which name was probably meant."""
    known = table().get(step_type, {})
    head, dot, rest = key.partition(".")
    below = known.get(f"{head}.*") or (_family(known, head, parameters) if dot else None)
    if dot and below is not None and "step" in below:
        return _meant(below["step"], rest, _below(parameters, head))
    others = known.get("*.*", {})
    if dot and "step" in others and rest in table()[others["step"]]:
        return f"; {others['named_in'].replace(' ', ' or ')} must name {head} first"
    return near_miss(key, [name for name in known if not name.endswith("*")])


def _mistake(spec: Mapping[str, Any], value: Any) -> str:
    """Say what is wrong with a value; empty if nothing is."""
    kind = spec.get("type", "value")
    expected, is_fine = _KINDS[kind]
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if not isinstance(value, (bool, int, float, str, list, tuple, Mapping)):
        return f"{value!r} ({type(value).__name__}) has no meaning for DP3; put it in quotes"
    if not is_fine(value):
        return f"{value!r} is not {expected}"
    words = spec.get("values")
    if words and str(value).strip().lower() not in (word.lower() for word in words):
        return f"{value!r} is none of the values it can have{near_miss(value, words)}"
    return ""


def _is_integer(value: Any) -> bool:
    if isinstance(value, str):
        return _INTEGER.fullmatch(value.strip()) is not None
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_integer(value) and not str(value).strip().startswith("-")


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        try:
            return math.isfinite(float(value)) and "_" not in value
        except ValueError:
            return False
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_bool(value: Any) -> bool:
    return isinstance(value, (bool, int, str)) and str(value).strip().lower() in _BOOLEAN


def _is_frequency(value: Any) -> bool:
    return _is_number(re.sub(r"\s*[kMG]?Hz\s*$", "", value) if isinstance(value, str) else value)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (list, tuple, Mapping))


def _is_list(value: Any) -> bool:
    return not isinstance(value, Mapping)


def _is_record(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and value.strip().startswith("{"))


# Kind to what it is called in messages, and how it is told. As DP3 6.6 reads values (common/StringTools.cc); a boolean
# that it would take by its first letter alone must be a whole word.
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "bool": ("true or false", _is_bool),
    "channels": ("a channel number, or an expression such as nchan/2", lambda v: _is_integer(v) or isinstance(v, str)),
    "count": ("a whole number, 0 or more", _is_count),
    "frequency": ("a frequency such as 48.8kHz or 48800", _is_frequency),
    "integer": ("a whole number", _is_integer),
    "list": ("a list", _is_list),
    "number": ("a number", _is_number),
    "record": ("a map such as {NEW: [CS001, CS002]}", _is_record),
    "text": ("text", _is_scalar),
    "value": ("a value", lambda value: True),
}
