"""Parameters of DP3 steps: natural YAML values as DP3's text, and the files among them as links with safe names."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chunkcal import dp3
from chunkcal.errors import UserError, refuse_braces
from chunkcal.planning.skymodel import read_patches

# Last part of the keys of DP3 6.6 that name files or folders to read; docs/schemas and the readers in steps/.
INPUT_FILES = {"coefficients_path", "images", "parmdb", "regions", "skymodel", "source_ms", "sourcedb", "sourcelist"}
# Whole keys, where the last part alone would be ambiguous.
INPUT_KEYS = {("ddecal", "initialsolutions.h5parm"), ("aoflagger", "strategy")}
# What a step writes beside its output, and the name it gets in the run's private folder, which is thrown away: a path
# of the user's would be written by all chunks at once.
OUTPUT_KEYS = {
    ("counter", "jsonfilename"): "flags.json",
    ("counter", "path"): ".",
    ("ddecal", "h5parm"): "solutions.h5",
    ("ddecal", "statfilename"): "steps.txt",
    ("demixer", "instrumentmodel"): "instrument",
    ("gaincal", "parmdb"): "solutions.h5",
}
SKY_MODELS = (".skymodel", ".txt")  # what DP3 takes for a text sky model
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


def flatten(where: str, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Turn nested maps into dotted keys (``count: {save: true}`` is ``count.save``); drop values that are null.

    Raises
    ------
    UserError
        A key is no DP3 parameter name, or is given twice.
    """
    result: dict[str, Any] = {}

    def add(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            name = f"{prefix}{key}"
            if not isinstance(key, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*", key):
                raise UserError(f"{where}: {key!r} is not a DP3 parameter name")
            if isinstance(value, Mapping) and key != "stations":  # stationadder's is a record
                add(f"{name}.", value)
            elif name in result:
                raise UserError(f"{where}: {name} is given twice")
            elif value is not None:
                result[name] = value

    add("", parameters or {})
    return result


def value_text(where: str, value: Any) -> str:
    """Write a YAML value as DP3 reads it: ``true``, ``1.5``, ``[a,[b,c]]``, ``{a:[b]}``; text as it is.

    Text that looks like DP3's own lists and records stays as it is, so that expressions from its documentation work.
    `dp3.parset_text` quotes what its reader would misread.

    Raises
    ------
    UserError
        A type that DP3 has no text for.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where}: {value} is not a finite number")
        return repr(value)
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_element(where, k)}:{_element(where, v)}" for k, v in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return "[" + ",".join("" if item is None else _element(where, item) for item in value) + "]"
    raise UserError(f"{where}: {value!r} ({type(value).__name__}) has no meaning for DP3; put it in quotes")


def _element(where: str, value: Any) -> str:
    """Write an element of a list, quoted if a comma or bracket in it would break the list."""
    text = value_text(where, value)
    if not isinstance(value, str) or not _breaks_lists(text):
        return text
    quote = next((quote for quote in "'\"" if quote not in text), None)
    if quote is None:
        raise UserError(f"{where}: {value!r} has both kinds of quotes, which DP3's lists cannot hold")
    return f"{quote}{text}{quote}"


def _breaks_lists(text: str) -> bool:
    depth, quote = [], ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            if char not in text[place + 1 :]:
                return True
            quote = char
        elif char in "([{":
            depth.append(")]}"["([{".index(char)])
        elif char in ")]}":
            if not depth or depth.pop() != char:
                return True
        elif char == "," and not depth:
            return True
    return bool(depth) or text == ""


def link_files(
    where: str,
    step_type: str,
    prefix: str,
    parameters: Mapping[str, Any],
    base: str | os.PathLike | None,
    command_is_users: bool = False,
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Replace files that a step reads by names in the run's folder, and files that it writes by throw-away ones.

    Parameters
    ----------
    where : str
        The step as the user wrote it, for messages.
    step_type, prefix : str
        Type of the step (a value of `chunkrules.STEP_TYPES`) and its DP3 name.
    parameters : mapping
        Its flattened parameters.
    base : path, optional
        Folder of relative paths; the current one if not given.
    command_is_users : bool
        The user's own DP3 may know strategies by name.

    Returns
    -------
    parameters : dict
        With safe names instead of paths.
    links : dict of str to str
        Safe name to absolute path.
    notes : list of str
        What is written but not kept.

    Raises
    ------
    UserError
        A file does not exist, or is a sky model that cannot be meant.
    """
    result: dict[str, Any] = {}
    links: dict[str, str] = {}
    notes: list[str] = []
    for key, value in parameters.items():
        last = key.rpartition(".")[2]
        if (step_type, key) in OUTPUT_KEYS:
            result[key] = OUTPUT_KEYS[step_type, key]
            if result[key] != ".":
                result[key] = f"{prefix}-{result[key]}"
            notes.append(f"{where}: what it writes to {key} is not kept")
        elif key == "count.path":
            result[key] = "."
        elif (last in INPUT_FILES or (step_type, key) in INPUT_KEYS) and value not in ("", []):
            paths = value if isinstance(value, list) else _text_list(str(value))
            names = [
                _link(f"{where}: {key}", f"{prefix}-{key.replace('.', '-')}", path, base, links, command_is_users)
                for path in paths
            ]
            result[key] = names if isinstance(value, list) or str(value).startswith("[") else names[0]
        else:
            result[key] = value
    return result, links, notes


def _text_list(text: str) -> list[str]:
    """Split ``[a, b]`` that was given as text; anything else is one path."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [item.strip().strip("'\"") for item in text[1:-1].split(",")]
    return [text]


def _link(
    where: str, stem: str, value: Any, base: str | os.PathLike | None, links: dict[str, str], command_is_users: bool
) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: {value!r} is not a path")
    path = find_file(where, value, base, command_is_users)
    if path is None:
        return value
    name = f"{stem}{_suffix(path)}"
    for number in range(2, 10_000):
        if links.get(name, str(path)) == str(path):
            break
        name = f"{stem}-{number}{_suffix(path)}"
    links[name] = str(path)
    return name


def find_file(where: str, value: str, base: str | os.PathLike | None, command_is_users: bool = False) -> Path | None:
    """Find a file that a step names; None for an aoflagger strategy that the user's own DP3 may know.

    Raises
    ------
    UserError
        It does not exist, or is a text sky model with a mistake.
    """
    folder = Path(os.path.abspath(base or "."))
    path = Path(os.path.abspath(folder / os.path.expanduser(value)))
    if os.path.exists(path):  # Path.exists raises for a name that is too long
        refuse_braces(where, str(path))
        if path.is_file() and path.suffix in SKY_MODELS and where.endswith(("sourcedb", "skymodel")):
            read_patches(path)
        return path
    if where.endswith("strategy"):
        if command_is_users:
            return None
        strategies = dp3.strategies_dir()
        for name in (value, f"{value}.lua"):
            if strategies and "/" not in name and os.path.isfile(strategies / name):
                return strategies / name
    hint = "" if os.path.isabs(value) else f"; relative paths are looked up in {folder} (extra_inputs_dir)"
    raise UserError(f"{where}: {path} does not exist{hint}")


def _suffix(path: Path) -> str:
    """Give the ending that a link must have for DP3 to tell the file's kind: it goes by names, not by contents."""
    if path.is_file():
        with path.open("rb") as stream:
            if stream.read(8) == _HDF5_SIGNATURE:
                return ".h5"
    return path.suffix if re.fullmatch(r"\.[A-Za-z0-9]{1,10}", path.suffix) else ""
