"""A chunk whose DP3 has run out of memory, cut into pieces that together give the same bits.

A piece is what a shorter chunk would be: it begins at a multiple of the plan's unit. Where the plan knows of anything
that is not the same to the last bit at such a boundary, the chunk stays whole.

Standard library only: the scripts of chunks ask for this, when it happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chunkcal.errors import counted
from chunkcal.planning import requests
from chunkcal.planning.chunkrules import grid_is_exact

KINDS = ("ms", "h5parms")  # of products that `chunkcal.cluster.pieces` can put together


class Uncuttable(Exception):
    """A chunk cannot be cut further: the message says why, to be put behind a "because"."""


def halved(plan: Mapping[str, Any], stage: str, name: str, pieces: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Cut a chunk into pieces half as long as before.

    Parameters
    ----------
    plan
        Plan of the observation.
    stage
        Whose DP3 run is cut.
    name
        Of the chunk.
    pieces
        What this gave before; None for the whole chunk.

    Returns
    -------
    dict
        ``n_units``, units of the plan in a piece. ``runs``, in time order: ``select``, the parameters that make
        the chunk's parsets those of the piece, and ``expect``, as of `requests.chunk_request`.

    Raises
    ------
    Uncuttable
        Pieces would not give the same bits, or there are no shorter ones.
    """
    chunk, unit = requests.find_chunk(plan, name), plan["unit"]
    _refuse_inexact(plan, stage, chunk)
    end = chunk["start_slot"] + chunk["n_slots"]
    boundaries = list(range(chunk["start_slot"], end, unit["n_slots"]))
    if end - boundaries[-1] < unit["shortest"]:
        boundaries.pop()  # as of chunks: a tail that is shorter than what is averaged joins what is before it
    longest = pieces["n_units"] if pieces else len(boundaries)
    length = -(-longest // 2)
    if length == longest:
        raise Uncuttable(f"the shortest chunk of this plan has {counted(unit['n_slots'], 'slot')}")
    starts = boundaries[::length]
    cut = [
        {"start_slot": start, "n_slots": stop - start} for start, stop in zip(starts, [*starts[1:], end], strict=True)
    ]
    return {
        "n_units": length,
        "runs": [
            {"select": _selection(plan, stage, piece), "expect": requests.expectation(plan, stage, piece)}
            for piece in cut
        ],
    }


def _refuse_inexact(plan: Mapping[str, Any], stage: str, chunk: Mapping[str, Any]) -> None:
    """Refuse to cut where the product might have other bits, be it by rounding."""
    unit = plan["unit"]
    if requests.expectation(plan, stage, chunk)["kind"] not in KINDS:
        raise Uncuttable(f"{stage} is not made in pieces")
    # Also that of a plan with one chunk, which is exact because nothing was cut.
    notes = [*unit["whole"], *unit["inexact"]]
    # That of gaps is about the chunk with the gap.
    notes += [note for note in unit["rounding"] if _stage_of(note) == stage and not note.startswith("gaps: ")]
    if stage == "preprocess" and chunk["n_rows"] < chunk["n_slots"] * plan["observation"]["n_baselines"]:
        notes.append("it has a gap, whose UVW DP3 calculates afresh in each run")
    grid = plan["observation" if stage == "preprocess" else "data"]
    if not grid_is_exact(grid["first_time"], grid["interval_s"], grid["n_slots"]):
        values = (item for parset in plan["runs"][stage]["parsets"] for item in parset.items())
        if any(key.endswith("interpolation") and value == "linear" for key, value in values):
            notes.append("linear interpolation follows the rounding of slot times; nearest does not")
    if notes:
        raise Uncuttable(f"the pieces might not give the same bits ({notes[0]})")


def _stage_of(note: str) -> str:
    """Tell what stage a note of the plan is about, by what it begins with."""
    return {"solve": "calibrate", "apply": "apply"}.get(note.partition(":")[0].partition(" ")[0], "preprocess")


def _selection(plan: Mapping[str, Any], stage: str, piece: Mapping[str, int]) -> dict[str, str]:
    if stage == "preprocess":
        return requests.chunk_time_range(plan["observation"], piece)
    factor = plan["time_factor"]
    slots = {"start_slot": piece["start_slot"] // factor, "n_slots": -(-piece["n_slots"] // factor)}
    return requests.chunk_time_range(plan["data"], slots)


def remedy(plan: Mapping[str, Any], stage: str) -> str:
    """Say what a user can do about a chunk that has too little memory and cannot be cut."""
    ways = [
        "give each slot more memory (fewer slots on a machine; cluster.job.memory_gb of batch jobs)",
        "fewer threads",
    ]
    values = [value for parset in plan["runs"][stage]["parsets"] for value in parset.values()]
    ways += [f"a shorter {key}" for step, key in _HUNGRY.items() if step in values]
    return ", ".join(ways[:-1]) + f" or {ways[-1]}"


# What the memory of a step grows with, whatever the length of the chunk.
_HUNGRY = {"aoflagger": "timewindow of AOFlagger", "demixer": "demixtimestep of Demixer", "ddecal": "solint_s"}
