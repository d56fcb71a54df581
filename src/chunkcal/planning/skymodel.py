"""Checks a text sky model before DP3 sees it: DP3 takes a line it cannot make sense of for a source, and returns 0.

The format is makesourcedb's, as DP3 6.6 reads it (parmdb/SkymodelToSourceDB.cc); here every value must be meant.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from chunkcal.errors import UserError

DEFAULT_FORMAT = "Name,Type,Ra,Dec,I,Q,U,V,MajorAxis,MinorAxis,Orientation"
TYPES = {"", "point", "gaussian", "disk", "shapelet"}
NUMBERS = {
    name.lower()
    for name in (
        "I Q U V ReferenceFrequency MajorAxis MinorAxis Orientation RotationMeasure PolarizedFraction"
        " PolarizationAngle ReferenceWavelength rah rad ram ras dech decd decm decs Category"
    ).split()
}
BOOLEANS = {"logarithmicsi", "orientationisabsolute"}

_HEADER = re.compile(r"\s*#\s*\((.*)\)\s*=\s*format\s*", re.IGNORECASE)
_FORMAT = re.compile(r"\s*format\s*=\s*(.*)", re.IGNORECASE)
_FIELD = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_:]*)?\s*(?:=\s*(fixed)?\s*('[^']*'|\"[^\"]*\"))?\s*", re.IGNORECASE)
_FLOAT = r"(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)"
_DECIMAL_ANGLE = re.compile(rf"[+-]?{_FLOAT}\s*(deg|rad|arcmin|arcsec|h)?")
_RA = re.compile(r"[+-]?\d{1,3}[:hd]\d{1,2}[:m]\d{1,2}(\.\d*)?s?")
_DEC = re.compile(r"[+-]?\d{1,3}(\.\d{1,2}\.\d{1,2}(\.\d*)?|d\d{1,2}m\d{1,2}(\.\d*)?s?)")
# DP3 takes names of patches for patterns, and quotes and brackets of a list for its own.
_PATCH_NAME = re.compile(r"[^\s,'\"*?@(){}\[\]\\]([^,'\"*?(){}\[\]\\\x00-\x1f]*[^\s,'\"*?(){}\[\]\\])?")


@dataclass(frozen=True)
class SkyModel:
    """What a sky model holds: the names of its patches, in the order of the file, and the number of its sources."""

    patches: tuple[str, ...]
    n_sources: int


@dataclass(frozen=True)
class _Field:
    name: str  # lower case
    separator: str  # what ends its value in a line
    value: str  # default or fixed, "" if none
    fixed: bool


def read_patches(path: str | os.PathLike) -> SkyModel:
    """Read and verify a text sky model.

    A source without patch is a patch of its own, with the source's name, as in DP3.

    Raises
    ------
    UserError
        Naming file and line: it cannot be read, has no source, or has a line that is neither comment, format, patch
        nor a complete source.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            lines = stream.read().splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise UserError(
            f"sky model {path} cannot be read ({reason}); it should be a text file as makesourcedb reads"
        ) from None
    fields = _read_format(lines, path)
    patches: dict[str, int] = {}  # to the number of sources
    sources: dict[str, int] = {}  # to the line
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#") or _FORMAT.fullmatch(line):
            continue
        try:
            _add(_values(line, fields), patches, sources, number)
        except ValueError as error:
            raise UserError(f"sky model {path}, line {number}: {error}: {line.strip()[:80]!r}") from None
    if not sources:
        raise UserError(f"sky model {path} has no source")
    empty = [patch for patch, n_sources in patches.items() if not n_sources]
    if empty:
        raise UserError(f"sky model {path}: patch {empty[0]} has no source; remove the patch")
    return SkyModel(tuple(patches), len(sources))


def _read_format(lines: list[str], path: str | os.PathLike) -> list[_Field]:
    """Find the format as DP3 does: in a comment before the first other line, else in that line, else the default."""
    text = DEFAULT_FORMAT
    for line in lines:
        if line.lstrip().startswith("#"):
            match = _HEADER.fullmatch(line)
        elif line.strip():
            match = _FORMAT.fullmatch(line)
            text = match.group(1) if match else text
            break
        else:
            continue
        if match:
            text = match.group(1)
            break
    fields = []
    place = 0
    text = text.strip()
    while place < len(text):
        match = _FIELD.match(text, place)
        end = match.end()
        separator = " "
        if end < len(text) and not re.match(r"[A-Za-z0-9_]", text[end]):
            separator = text[end]
            end += 1
        if end == place or separator in "'\"=":
            raise UserError(f"sky model {path}: the format cannot be read from {text[place:][:40]!r} on")
        value = (match.group(3) or "")[1:-1]
        fields.append(_Field((match.group(1) or "").lower(), separator, value, match.group(2) is not None))
        place = end + len(text[end:]) - len(text[end:].lstrip())
    names = {field.name for field in fields}
    if "name" not in names or not names & {"ra", "rah", "rad"} or not names & {"dec", "dech", "decd"}:
        raise UserError(f"sky model {path}: the format {text[:80]!r} lacks Name, Ra or Dec")
    return fields


def _values(line: str, fields: list[_Field]) -> dict[str, str]:
    """Split a line; quotes and square brackets protect separators."""
    rest = line.strip()
    values = {}
    for field in fields:
        if field.fixed:
            values[field.name] = field.value
            continue
        value, rest = _next_value(rest, field.separator)
        values[field.name] = _unquoted(value) or field.value
    if rest:
        raise ValueError(f"more values than the format has fields, from {rest[:30]!r} on")
    return values


def _next_value(text: str, separator: str) -> tuple[str, str]:
    depth, quote = 0, ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "[]":
            depth += 1 if char == "[" else -1
            if depth < 0:
                raise ValueError("a ] without its [")
        elif char == separator and depth == 0:
            return text[:place].strip(" \t"), text[place + 1 :].lstrip(" \t")
    if quote or depth:
        raise ValueError("a quote or a [ is not closed")
    return text.strip(" \t"), ""


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _add(values: dict[str, str], patches: dict[str, int], sources: dict[str, int], number: int) -> None:
    """Verify one line and count it; ValueError says what is wrong with it."""
    name, patch = values["name"], values.get("patch", "")
    if not name and not patch:
        raise ValueError("neither a source name nor a patch name")
    _check_values(values, is_source=bool(name))
    if not name:
        if patch in patches:
            raise ValueError(f"patch {patch} is defined twice")
        patches[patch] = 0
    elif name in sources:
        raise ValueError(f"source {name} stands in line {sources[name]} already")
    else:
        if patch and patch not in patches:
            raise ValueError(
                f"patch {patch} is used before it is defined; a line ', , {patch}, RA, DEC' must come first"
            )
        sources[name] = number
        patches[patch or name] = patches.get(patch or name, 0) + 1
    if not _PATCH_NAME.fullmatch(patch or name):
        raise ValueError(
            f"{patch or name!r} cannot be the name of a patch: DP3 reads brackets, quotes, * ? @ as its own"
        )


def _check_values(values: dict[str, str], is_source: bool) -> None:
    if values.get("type", "").lower() not in TYPES:
        raise ValueError(f"{values['type']!r} is no source type (POINT, GAUSSIAN, DISK, SHAPELET)")
    for name, pattern in (("ra", _RA), ("dec", _DEC)):
        if name in values and (values[name] or is_source):
            if not (pattern.fullmatch(values[name]) or _DECIMAL_ANGLE.fullmatch(values[name])):
                raise ValueError(f"{name.capitalize()} {values[name]!r} is no angle such as {_EXAMPLE[name]}")
    for name, value in values.items():
        if name in NUMBERS and value and not _is_number(value):
            raise ValueError(f"{name} {value!r} is not a number")
        if name in BOOLEANS and value and value[0].lower() not in "tf10yn":
            raise ValueError(f"{name} {value!r} is neither true nor false")
    index = values.get("spectralindex", "").strip("[] ")
    terms = [term.strip() for term in index.split(",")] if index else []
    if not all(_is_number(term) for term in terms):
        raise ValueError(f"SpectralIndex {values['spectralindex']!r} is not a list of numbers")
    if (
        is_source
        and terms
        and not (_is_number(values.get("referencefrequency", "")) and float(values["referencefrequency"]) > 0)
    ):
        raise ValueError("a SpectralIndex but no ReferenceFrequency")


_EXAMPLE = {"ra": "12:34:56.7 or 188.7deg", "dec": "+12.34.56.7 or 12.58deg"}


def _is_number(text: str) -> bool:
    return re.fullmatch(rf"[+-]?{_FLOAT}", text.strip()) is not None
