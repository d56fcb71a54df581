"""Which observations a run is about: paths, globs or a sample sheet, each with a name that is safe in a path."""

from __future__ import annotations

import glob
import os
import re
from typing import Any

from chunkcal.errors import UserError, refuse_braces

MAGIC = re.compile(r"[*?\[]")


def resolve_observations(config: dict[str, Any]) -> list[dict[str, str | None]]:
    """List the observations of a validated configuration.

    Returns
    -------
    list of dict
        ``obs`` (name), ``ms`` (path), ``sky_model`` (path, or None without calibration) and ``band_of`` (name of the
        observation that it is a band of, or None), in the order of the configuration; the matches of one glob are
        sorted by name. Relative paths stay relative.

    Raises
    ------
    UserError
        Nothing given, nothing found, a path that no workflow can have, or two MSs with the same name.
    """
    if config["observations"] is not None:
        rows = _from_sheet(config["observations"])
    else:
        rows = [{"ms": path} for path in _expand(config["input"])]
    base = config["extra_inputs_dir"] or ""
    default_model = config["calibrate"]["sky_model"] if config["calibrate"] else None
    observations: dict[str, dict[str, str | None]] = {}
    for row in rows:
        ms = os.path.normpath(row["ms"])
        refuse_braces("input", ms)
        obs = row.get("obs") or observation_name(ms)
        if obs in observations:
            raise UserError(
                f"two MeasurementSets are both called {obs!r}: {observations[obs]['ms']} and {ms}; "
                "give them names of their own in a sample sheet (observations: FILE.tsv)"
            )
        model = (row.get("sky_model") or default_model) if default_model else None
        if model is not None:
            model = model.replace("{obs}", obs).replace("{ms_dir}", os.path.dirname(ms) or ".")
            model = os.path.normpath(os.path.join(base, os.path.expanduser(model)))
            refuse_braces("calibrate.sky_model", model)
        observations[obs] = {"obs": obs, "ms": ms, "sky_model": model, "band_of": row.get("band_of") or None}
    return list(observations.values())


def refuse_output_dir(path: str) -> None:
    """Refuse a folder that cannot be made or written to, before anything is.

    Raises
    ------
    UserError
        A part of the path is no folder, or the user may not write there.
    """
    place = os.path.abspath(path)
    while not os.path.lexists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"output_dir: {path} cannot be a folder, because {place} is none; choose another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"output_dir: {place} cannot be written to; choose another folder, or see to it that you may")


def observation_name(ms: str) -> str:
    """Name an observation after its MS: the file name without ``.ms``, with ``_`` for what is not safe in a path."""
    stem = re.sub(r"\.ms$", "", os.path.basename(ms.rstrip("/")), flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9_.+-]", "_", stem).lstrip(".-") or "observation"


def _expand(patterns: str | list[str]) -> list[str]:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not patterns:
        raise UserError("no input: set input (paths or globs of MeasurementSets) or observations (a sample sheet)")
    paths: list[str] = []
    for pattern in map(os.path.expanduser, patterns):
        # A name that exists is that name, even when it has a bracket in it.
        if os.path.exists(pattern) or not MAGIC.search(pattern):
            paths.append(pattern)
            continue
        found = sorted(glob.glob(pattern))
        if not found:
            raise UserError(f"input: no MeasurementSet matches {pattern!r}; check the path")
        paths.extend(found)
    return list(dict.fromkeys(path.rstrip("/") for path in paths))


def _from_sheet(path: str) -> list[dict[str, str]]:
    import pandas as pd  # 0.4 s, paid only by runs with a sample sheet

    if not os.path.isfile(path):
        raise UserError(f"observations: {path} does not exist; it should be a tab-separated file with a column ms")
    try:
        table = pd.read_csv(path, sep="\t", dtype=str, comment="#", keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UserError(
            f"observations: {path} cannot be read ({reason}); it should be a tab-separated file with a column ms"
        ) from None
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the surplus for names of rows, and shifts the rest
        raise UserError(f"observations: {path} has lines with more values than the {len(table.columns)} columns")
    unknown = set(table.columns) - {"obs", "ms", "sky_model", "band_of"}
    if "ms" not in table.columns or unknown:
        raise UserError(
            f"observations: {path} has the columns {', '.join(table.columns)}; wanted: ms, optionally obs, sky_model"
            " and band_of"
        )
    rows = [{key: value.strip() for key, value in row.items()} for row in table.to_dict("records")]
    for number, row in enumerate(rows, start=2):
        if not row["ms"]:
            raise UserError(f"observations: {path}, line {number}: the column ms is empty")
        for key in ("obs", "band_of"):
            if row.get(key) and row[key] != observation_name(row[key] + ".ms"):
                raise UserError(
                    f"observations: {path}, line {number}: {key} {row[key]!r} may hold only letters, digits and _ . + -"
                )
    if not rows:
        raise UserError(f"observations: {path} lists no observation")
    return rows
