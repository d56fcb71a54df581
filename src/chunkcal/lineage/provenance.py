"""How every product of an observation was made, in one file.

Enough to make each chunk again, see `chunkcal.lineage.replay`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from chunkcal.errors import UserError
from chunkcal.lineage import digest, versions
from chunkcal.planning import requests

FORMAT = 1
STAGES = ("preprocess", "calibrate", "apply")
_FROM_RECORD = (
    *("argv", "parsets", "links", "host", "worker", "threads", "start", "end"),
    *("dp3_version", "casacore", "measures", "failed", "one_pass", "pieces", "attempts"),
)


def write_provenance(
    *,
    plan: str | os.PathLike,
    records: Iterable[str | os.PathLike],
    solutions: Iterable[str | os.PathLike],
    ms: str | os.PathLike,
    cluster: str | os.PathLike,
    config: Mapping[str, Any],
    output: str | os.PathLike,
) -> None:
    """Write the provenance of one observation.

    Parameters
    ----------
    plan
        Plans of all observations.
    records
        Records of the observation's chunks, ``<obs>/<stage>/<chunk>.json``.
    solutions
        Its merged h5parms.
    ms
        Its joined MeasurementSet.
    cluster
        Description of the cluster.
    config
        The validated configuration, without the cluster and where chunks lie.
    output
        ``<output_dir>/<obs>/provenance.json``.
    """
    output = Path(output).absolute()
    obs, folder = output.parent.name, output.parent.parent
    own_plan = requests.load_plan(plan)[obs]
    chunks = _chunks(own_plan, map(Path, records))
    depth = config["provenance"]["digest"]
    links = {target for stage in chunks.values() for chunk in stage.values() for target in chunk["links"].values()}
    # Chunks may have lain in a scratch_dir: what is a product of the run is told by the plan, not by its path.
    given = {target for run in own_plan["runs"].values() if run for target in run["links"].values()}
    inputs = sorted(target for target in links & given if not Path(target).is_relative_to(folder))
    head = {
        "format": FORMAT,
        "observation": obs,
        "output_dir": str(folder),
        "software": versions.software(),
        "config": dict(config) | {"cluster": json.loads(Path(cluster).read_text(encoding="utf-8"))},
        "inputs": {target: digest.of_input(target, depth) for target in inputs},
        "products": {
            "solutions": {Path(path).stem: _solutions(Path(path), folder) for path in solutions},
            "ms": {"path": os.path.relpath(ms, folder), **digest.of_input(ms, depth)},
        },
    }
    temporary = output.with_name(f"{output.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        _write(stream, head, chunks)
    temporary.replace(output)


def _solutions(path: Path, folder: Path) -> dict[str, Any]:
    from chunkcal.lineage import contents  # h5py is slow to import, and who reads provenance has no use for it

    own = {"path": os.path.relpath(path, folder), **digest.of_input(path)}
    return own | {"digest": contents.of_h5parm(path)}


def _chunks(plan: Mapping[str, Any], records: Iterable[Path]) -> dict[str, dict[str, dict[str, Any]]]:
    """Put what the records say, and what was expected of each product, in order: by stage and chunk."""
    chunks: dict[str, dict[str, dict[str, Any]]] = {stage: {} for stage in STAGES if plan["runs"][stage]}
    for path in records:
        stage, chunk = path.parent.name, path.stem
        record = json.loads(path.read_text(encoding="utf-8"))
        request = requests.chunk_request(plan, stage, chunk)
        chunks[stage][chunk] = {
            **{key: record[key] for key in _FROM_RECORD if key in record},
            "links": record.get("links", {}),
            "product": request["run"]["product"],
            "expect": request["expect"],
            "digest": record.get("verified", {}).get("digest"),
        }
    return chunks


def _write(stream: Any, head: Mapping[str, Any], chunks: Mapping[str, Mapping[str, Any]]) -> None:
    """Write JSON with one line per chunk, so that it stays readable with thousands of them."""
    text = json.dumps(head, indent=1)
    stream.write(text.removesuffix("\n}") + ',\n "chunks": {')
    for number, (stage, found) in enumerate(chunks.items()):
        stream.write(("," if number else "") + f"\n  {json.dumps(stage)}: {{\n")
        stream.write(",\n".join(f"   {json.dumps(name)}: {json.dumps(chunk)}" for name, chunk in found.items()))
        stream.write("\n  }")
    stream.write("\n }\n}\n")


def load_provenance(folder: str | os.PathLike, obs: str) -> dict[str, Any]:
    """Read the provenance of an observation.

    Raises
    ------
    UserError
        There is none, or it cannot be read.
    """
    path = Path(folder, obs, "provenance.json")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(each.parent.name for each in Path(folder).glob("*/provenance.json"))
        hint = f"there are {', '.join(known)}" if known else "give --results, or let snakemake finish the run"
        raise UserError(f"{path} does not exist: {hint}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); run snakemake again") from error
    if found.get("format") != FORMAT:
        raise UserError(f"{path} has format {found.get('format')}, this chunkcal reads {FORMAT}; use the one it names")
    return found
