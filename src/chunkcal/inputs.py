"""Which observations a run is about: paths, globs or a sample sheet, each with a name that is safe in a path."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from chunkcal.errors import UserError, refuse_braces

MAGIC = re.compile(r"[*?\[]")
# Columns of a sample sheet.
COLUMNS = ("obs", "ms", "sky_model", "h5parm", "chunk_s", "reference_station", "band_of")


def resolve_observations(config: dict[str, Any]) -> list[dict[str, Any]]:
    """List the observations of a validated configuration.

    Returns
    -------
    list of dict
        ``obs`` (name), ``ms`` (path), ``sky_model`` (path, or None without calibration) and ``band_of`` (name of the
        observation that it is a band of, or None), in the order of the configuration; the matches of one glob are
        sorted by name. Relative paths stay relative. From a sample sheet, None where it says nothing: ``h5parm``
        (path, for ``{h5parm}``), ``chunk_s`` (length of a chunk, s) and ``reference_station`` (for `process`).

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
    observations: dict[str, dict[str, Any]] = {}
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
        h5parm = row.get("h5parm") or None
        if h5parm is not None:
            h5parm = os.path.normpath(os.path.join(base, os.path.expanduser(h5parm)))
            refuse_braces("observations: h5parm", h5parm)
        observations[obs] = {
            "obs": obs,
            "ms": ms,
            "sky_model": model,
            "h5parm": h5parm,
            "chunk_s": float(row["chunk_s"]) if row.get("chunk_s") else None,
            "reference_station": row.get("reference_station") or None,
            "band_of": row.get("band_of") or None,
        }
    stations = [row["reference_station"] for row in observations.values() if row["reference_station"]]
    solves = config["calibrate"]["solves"] if stations and config["calibrate"] else []
    if solves and not any("reference" in step for solve in solves for step in solve["process"]):
        raise UserError(
            f"observations: reference_station is {stations[0]}, but no solve has the step reference in its process;"
            " add process: [{reference: {}}] to a solve, or remove the column"
        )
    return list(observations.values())


def for_observation(section: Any, row: Mapping[str, Any]) -> Any:
    """Put an observation's own into a section of the configuration: ``{obs}``, ``{ms_dir}`` and ``{h5parm}`` in texts.

    Raises
    ------
    UserError
        ``{h5parm}`` is named, and the sample sheet gives the observation none.
    """
    if isinstance(section, str):
        if "{h5parm}" in section and not row.get("h5parm"):
            raise UserError(
                f"{row['obs']}: the configuration names {{h5parm}}, and there is none for this observation; fill the"
                " column h5parm of the sample sheet (observations: FILE.tsv)"
            )
        folder = os.path.abspath(os.path.dirname(row["ms"]))
        h5parm = os.path.abspath(row["h5parm"]) if row.get("h5parm") else ""
        return section.replace("{obs}", row["obs"]).replace("{ms_dir}", folder).replace("{h5parm}", h5parm)
    if isinstance(section, Mapping):
        return {key: for_observation(value, row) for key, value in section.items()}
    if isinstance(section, list):
        return [for_observation(value, row) for value in section]
    return section


def refuse_output_dir(path: str) -> None:
    """Refuse a folder that cannot be made or written to, before anything is.

    Raises
    ------
    UserError
        A part of the path is no folder, or the user may not write there, or casacore would look elsewhere.
    """
    _refuse_variables("output_dir", path)
    place = os.path.abspath(path)
    while not os.path.lexists(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise UserError(f"output_dir: {path} cannot be a folder, because {place} is none; choose another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"output_dir: {place} cannot be written to; choose another folder, or see to it that you may")


def refuse_scratch_dir(path: str | None) -> None:
    """Refuse a folder for chunks that is not there or cannot be written to; it is not made, for it may be a mount.

    Raises
    ------
    UserError
        Saying which.
    """
    if path is None:
        return
    _refuse_variables("scratch_dir", path)
    place = os.path.expanduser(path)
    if not os.path.isdir(place):
        reason = "is no folder" if os.path.lexists(place) else "does not exist"
        raise UserError(f"scratch_dir: {path} {reason}; make the folder (is the disk mounted?), or choose another one")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"scratch_dir: {path} cannot be written to; choose another folder, or see to it that you may")


def _refuse_variables(key: str, path: str) -> None:
    place = os.path.abspath(os.path.expanduser(path))
    if os.path.expandvars(place) != place:
        raise UserError(
            f"{key}: {place} names an environment variable, which casacore replaces by its value; choose another folder"
        )


def chunks_dir(config: Mapping[str, Any]) -> str:
    """Name the folder in which chunks lie, as ``<obs>/<stage>/<chunk>``, while they are needed.

    It is `output_dir`, or a folder in `scratch_dir` that no other output folder has: runs may share a `scratch_dir`.
    Chunks that are kept are products like any other, and so in `output_dir`.
    """
    output_dir = config["output_dir"].rstrip("/")
    if config["scratch_dir"] is None or config["keep_chunks"]:
        return output_dir
    own = hashlib.sha256(os.path.abspath(output_dir).encode(errors="surrogateescape")).hexdigest()[:12]
    return os.path.join(os.path.expanduser(config["scratch_dir"]), f"chunkcal-{own}")


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
    unknown = set(table.columns) - set(COLUMNS)
    if "ms" not in table.columns or unknown:
        others = [name for name in COLUMNS if name != "ms"]
        raise UserError(
            f"observations: {path} has the columns {', '.join(table.columns)}; wanted: ms, optionally"
            f" {', '.join(others[:-1])} and {others[-1]}"
        )
    rows = [{key: value.strip() for key, value in row.items()} for row in table.to_dict("records")]
    for number, row in enumerate(rows, start=2):
        if not row["ms"]:
            raise UserError(f"observations: {path}, line {number}: the column ms is empty")
        if row.get("chunk_s") and not _is_length(row["chunk_s"]):
            raise UserError(
                f"observations: {path}, line {number}: chunk_s {row['chunk_s']!r} is not a length in seconds"
            )
        for key in ("obs", "band_of"):
            if row.get(key) and row[key] != observation_name(row[key] + ".ms"):
                raise UserError(
                    f"observations: {path}, line {number}: {key} {row[key]!r} may hold only letters, digits and _ . + -"
                )
    if not rows:
        raise UserError(f"observations: {path} lists no observation")
    return rows


def _is_length(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False
