"""Make one chunk again, from the provenance alone, and say whether it holds the same bits."""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chunkcal.errors import UserError
from chunkcal.lineage import contents, digest, versions
from chunkcal.lineage.provenance import STAGES, load_provenance
from chunkcal.products import ProductError


@dataclass(frozen=True)
class Outcome:
    """What came of one stage.

    Attributes
    ----------
    stage : str
        Name of the stage.
    differing : tuple of str
        Columns, or datasets (``<solve>: sol000/phase000/val``), that do not hold the same bits.
    """

    stage: str
    differing: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``chunkcal replay``."""
    parser.add_argument("obs", help="name of the observation")
    parser.add_argument("chunk", help="name of the chunk, for instance t0003")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="what to make again (default: all)")
    parser.add_argument("--results", default="results", help="output folder of the run (default: results)")


def run(args: argparse.Namespace) -> int:
    """Replay and print what came of it; 0 if all bits agree."""
    found = list(replay(args.obs, args.chunk, args.stage, args.results, say=print))
    return int(any(outcome.differing for outcome in found))


def replay(
    obs: str, chunk: str, stage: str = "all", results: str | os.PathLike = "results", say: Callable[[str], Any] = print
) -> Iterator[Outcome]:
    """Make a chunk again, one stage after the other, in a temporary folder.

    Stages before the one that is asked for are made again, too, if their products are gone.

    Parameters
    ----------
    obs, chunk
        Names of the observation and of the chunk.
    stage
        One of `provenance.STAGES`, or ``all``.
    results
        Output folder of the run; it may have been moved.
    say
        Is told, line by line, what is found.

    Yields
    ------
    Outcome
        For each stage that was asked for and has a digest to compare with.

    Raises
    ------
    UserError
        There is no such chunk or stage; an input is not what it was; DP3 failed.
    """
    found = load_provenance(results, obs)
    record = _moved(found, os.path.abspath(results))
    stages = _stages(record["chunks"], obs, chunk, stage)
    chunks = {name: record["chunks"][name][chunk] for name in stages}
    _check_inputs(record, chunks, say)
    _compare_versions(record, chunks, say)
    with tempfile.TemporaryDirectory(prefix="chunkcal-replay-") as folder:
        products: dict[str, str] = {}
        for name, entry in chunks.items():
            if "failed" in entry:
                say(f"{name} {chunk}: DP3 failed on it then ({entry['failed']}); there is nothing to compare")
                continue
            entry["links"] = _links(entry["links"], name, products)
            product, digests = _make(Path(folder, name), f"{name} {obs} {chunk}", entry, record["config"]["dp3"])
            products[name] = product
            if stage not in ("all", name):
                continue
            outcome = _compare(name, entry["digest"], digests)
            say(f"{name} {chunk}: {_verdict(outcome, entry['digest'])}")
            if outcome:
                yield outcome


def _moved(found: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """Let all paths below the output folder point to where it is now."""
    found, before = copy.deepcopy(dict(found)), found["output_dir"]
    for stage in found["chunks"].values():
        for entry in stage.values():
            entry["links"] = {
                name: os.path.join(folder, os.path.relpath(path, before)) if _is_below(path, before) else path
                for name, path in entry["links"].items()
            }
    return found | {"output_dir": folder}


def _is_below(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def _stages(chunks: Mapping[str, Any], obs: str, chunk: str, stage: str) -> list[str]:
    """List the stages that must be run, in their order."""
    if stage not in (*chunks, "all"):
        raise UserError(f"{obs} has no stage {stage}; there are {', '.join(chunks)}")
    names = list(chunks["preprocess"])
    if chunk not in names:
        raise UserError(f"{obs} has no chunk {chunk}; there are {names[0]} to {names[-1]}")
    wanted = list(chunks) if stage == "all" else [stage]
    data = chunks[wanted[-1]][chunk]["links"].get("in.ms")
    if wanted == ["preprocess"] or (stage != "all" and data and os.path.isdir(data)):
        return wanted
    return [name for name in chunks if name == "preprocess" or name in wanted]


def _check_inputs(record: Mapping[str, Any], chunks: Mapping[str, Any], say: Callable[[str], Any]) -> None:
    """Refuse to run on other inputs than those that were used."""
    targets = sorted({path for entry in chunks.values() for path in entry["links"].values()})
    depth = record["config"]["provenance"]["digest"]
    n = 0
    for path in targets:
        known = record["inputs"].get(path) or _known_product(record, path)
        if known is None:
            continue  # gone, and made again
        if not os.path.exists(path):
            raise UserError(f"input {path} is missing; nothing was run")
        now = digest.of_input(path, depth) if path in record["inputs"] else _digest_product(path, known)
        changed = [key for key in known if now.get(key) != known[key]]
        if changed:
            raise UserError(f"input {path} has CHANGED since the run ({', '.join(changed)} differ); nothing was run")
        n += 1
    say(f"inputs: {n} are what they were")


def _known_product(record: Mapping[str, Any], path: str) -> dict[str, Any] | None:
    """Give the digest of a product of the run that a later stage reads."""
    relative = os.path.relpath(path, record["output_dir"])
    for product in record["products"]["solutions"].values():
        if product["path"] == relative:
            return product["digest"]
    found = record["chunks"]["preprocess"].get(Path(path).stem)
    return found["digest"] if found and os.path.isdir(path) and Path(path).parent.name == "preprocess" else None


def _digest_product(path: str, known: Mapping[str, str]) -> dict[str, str]:
    try:
        return (contents.of_ms if os.path.isdir(path) else contents.of_h5parm)(path, _algorithm(known))
    except (ProductError, OSError) as error:
        raise UserError(f"input {path} cannot be read ({error}); nothing was run") from error


def _compare_versions(record: Mapping[str, Any], chunks: Mapping[str, Any], say: Callable[[str], Any]) -> None:
    """Say which versions are not those of the run; the bits then tell whether that matters."""
    settings = record["config"]["dp3"]
    for version in sorted({entry["dp3_version"] for entry in chunks.values() if entry.get("dp3_version")}):
        now = versions.dp3_here(settings["command"])
        say(f"DP3 {version}, as then" if now == version else f"DP3 is {now or 'missing'} here, it was {version} then")
    before, now = record["software"]["packages"], versions.packages()
    for name in ("h5py", "numpy", "python-casacore"):
        if before.get(name) != now.get(name):
            say(f"{name} is {now.get(name)} here, it was {before.get(name)} then")


def _links(links: Mapping[str, str], stage: str, products: Mapping[str, str]) -> dict[str, str]:
    """Let a stage read the chunk that was made again."""
    again = {"in.ms": products["preprocess"]} if stage != "preprocess" and "preprocess" in products else {}
    return {**links, **again}


def _make(folder: Path, name: str, entry: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Run one stage as a worker does; return its product and the digests of what it holds."""
    from chunkcal.cluster import dp3run, task  # imports dask: 0.7 s

    folder.mkdir()
    request = {
        "name": name,
        "run": {key: entry[key] for key in ("parsets", "links", "product")},
        "expect": entry["expect"],
        "pieces": entry.get("pieces"),
        "log": str(folder.with_suffix(".log")),
    }
    settings = {**settings, "task_timeout_s": None, "product_digests": _algorithm(entry["digest"] or {})}
    try:
        made = task.run_in(folder, request, settings, "replay", entry["threads"], lambda: True)
    except (dp3run.TaskError, ProductError, OSError) as error:
        raise UserError(f"{name}: {error}") from error
    return made["product"], made["record"]["verified"]["digest"]


def _compare(stage: str, before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> Outcome | None:
    """Compare the digests of a product; None if none were taken then."""
    if before is None:
        return None
    one, other = _flat(before), _flat(now)
    return Outcome(stage, tuple(sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key))))


def _algorithm(digests: Mapping[str, Any]) -> str:
    """Name the algorithm of the digests that were taken then; the present one if there are none."""
    return next((contents.algorithm_of(one) for one in _flat(digests).values()), contents.ALGORITHM)


def _flat(digests: Mapping[str, Any]) -> dict[str, str]:
    """Name the datasets of the h5parms of several solves."""
    found = {}
    for name, value in digests.items():
        found |= {f"{name}: {key}": one for key, one in value.items()} if isinstance(value, Mapping) else {name: value}
    return found


def _verdict(outcome: Outcome | None, before: Mapping[str, Any] | None) -> str:
    if outcome is None:
        return "made again; nothing to compare with (provenance.product_digests was false)"
    if outcome.differing:
        return f"DIFFERS in {', '.join(outcome.differing)}"
    return f"same bits in all {len(_flat(before or {}))} columns or datasets"
