"""Where an observation is cut into time chunks.

Chunks begin at multiples of the boundary unit (`chunkrules`), so that what they give, joined, is bit for bit what one
run over everything gives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from chunkcal.errors import UserError, counted
from chunkcal.ms import Observation
from chunkcal.planning.chunkrules import Unit
from chunkcal.planning.requests import AUTO
from chunkcal.planning.solves import Solve, SolveInput
from chunkcal.planning.steps import Pipeline

# What a chunk with `length: auto` is at most. Each task costs 0.6 s whatever it does (start of DP3, worker, Snakemake),
# 1 % of a minute; longer ones would only lengthen the wait for the last, and what is done again when one fails.
AUTO_TASK_S = 60.0
AUTO_CHUNK_BYTES = 512 << 20  # input, where there is little to do with it: some ten seconds of flagging
AUTO_MIN_CHUNKS = 8  # so that small observations use several slots, too
AUTO_MAX_CHUNKS = 2000  # beyond, Snakemake's own work grows faster than anything is gained
AUTO_CHUNKS_PER_SLOT = 3  # so that slots which end early find something to do
# A chunk that is worth a slot of its own has so much input, or makes so much work.
AUTO_LEAST_BYTES = 32 << 20
AUTO_LEAST_TASK_S = 6.0


@dataclass(frozen=True)
class Chunk:
    """A time chunk: slots of the grid and rows of the MeasurementSet; `start_time` is the centre of its first slot."""

    name: str
    start_slot: int
    n_slots: int
    start_time: float
    row_start: int
    n_rows: int


@dataclass(frozen=True)
class Length:
    """A chunk length in slots, and what to tell the user about how it came about."""

    n_slots: int
    note: str = ""


def boundary_unit(pipeline: Pipeline, solves: Sequence[Solve], given: SolveInput, observation: Observation) -> Unit:
    """Find where chunks of a configuration may begin.

    Parameters
    ----------
    pipeline : Pipeline
        The steps, from `stepdefaults.with_defaults`.
    solves, given : sequence of Solve, SolveInput
        The solves that follow, and what they get.
    observation : Observation
        What it runs on.
    """
    unit = pipeline.unit(observation)
    for solve in solves:
        unit = solve.unit(unit, given)
    notes = list(unit.rounding)
    if observation.missing:
        notes.append("gaps: UVW of the flagged slots that DP3 inserts is calculated afresh in each run, to some 1e-5 m")
    return replace(unit, rounding=tuple(notes))


def choose_length(
    setting: Mapping[str, Any],
    unit: Unit,
    observation: Observation,
    slots_each: int | None = None,
    previous: int | None = None,
    slot_s: float = 0.0,
) -> Length:
    """Choose the chunk length, a multiple of the unit, at least one.

    Parameters
    ----------
    setting
        One of ``length: auto``, ``duration_s``, ``n_slots``, ``count``; lengths are rounded up to the unit.
    unit, observation
        The boundary unit, and what is cut.
    slots_each
        Slots of the cluster that the observation can count on; for ``auto``.
    previous
        Length in an earlier plan of the observation. ``auto`` stays with it while it is a legal one: another number of
        slots must not make everything again.
    slot_s
        Estimated work of pre-processing and solving for one time slot, CPU s; for ``auto``. (The memory of a DP3 is no
        matter here: it goes by flagging windows and solution intervals, not by the length of its chunk.)
    """
    total = observation.n_slots
    if setting.get("duration_s") is not None:
        what, wanted = f"duration_s {setting['duration_s']:g}", setting["duration_s"] / observation.interval_s
    elif setting.get("n_slots") is not None:
        what, wanted = f"n_slots {setting['n_slots']}", setting["n_slots"]
    elif setting.get("count") is not None:
        what, wanted = f"count {setting['count']}", math.ceil(total / setting["count"])
    elif previous and previous % unit.n_slots == 0:
        return Length(min(previous, _whole(total, unit)))
    else:
        slot_bytes = max(1.0, observation.size_bytes / observation.present(0, total))
        target = max(AUTO_CHUNK_BYTES, observation.size_bytes / AUTO_MAX_CHUNKS)
        if slots_each:
            return _balanced_length(unit, observation, slot_bytes, target, slots_each, slot_s)
        wanted = min(target / slot_bytes, total / AUTO_MIN_CHUNKS)
        return Length(min(max(1, int(wanted / unit.n_slots)) * unit.n_slots, _whole(total, unit)))
    # A duration that is a whole number of slots but for rounding is that number.
    n_units = max(1, math.ceil(wanted / unit.n_slots - 1e-6))
    length = min(n_units * unit.n_slots, _whole(total, unit))
    if length >= total or abs(length - wanted) < 1e-6 * wanted:
        return Length(length)
    return Length(
        length,
        f"chunks: {what} was rounded up to {length} slots ({length * observation.interval_s:.6g} s), a multiple of the"
        f" unit of {unit.n_slots} slots; that makes {math.ceil(total / length)} chunks",
    )


def _balanced_length(
    unit: Unit, observation: Observation, slot_bytes: float, target: float, n_slots: int, slot_s: float
) -> Length:
    """Choose a length with which `n_slots` slots of the cluster are busy to the end, all of them about as long.

    Enough chunks for the target size and task, and for several rounds of the slots, unless chunks would be tiny; then,
    of the lengths near that, the one whose rounds take the fewest units.
    """
    total = observation.n_slots
    size, work = slot_bytes * total, slot_s * total
    n_units = -(-total // unit.n_slots)
    worth = max(int(size / AUTO_LEAST_BYTES), int(work / AUTO_LEAST_TASK_S))
    wanted = {
        f"at least {AUTO_MIN_CHUNKS} chunks": AUTO_MIN_CHUNKS,
        f"at most {target / 1e6:.3g} MB each": math.ceil(size / target),
        f"at most about {AUTO_TASK_S:g} s of work each": min(math.ceil(work / AUTO_TASK_S), AUTO_MAX_CHUNKS),
        f"at least {AUTO_CHUNKS_PER_SLOT} chunks per slot": min(AUTO_CHUNKS_PER_SLOT * n_slots, AUTO_MAX_CHUNKS),
    }
    if worth < AUTO_CHUNKS_PER_SLOT * n_slots:
        del wanted[f"at least {AUTO_CHUNKS_PER_SLOT} chunks per slot"]
        wanted["as many as are worth a slot"] = min(worth, AUTO_MAX_CHUNKS)
    reason = max(wanted, key=lambda name: wanted[name])
    longest = n_units // wanted[reason]
    if not longest:
        longest, reason = 1, "the unit leaves no more"

    def units_in_a_row(length: int) -> int:
        return math.ceil(math.ceil(n_units / length) / n_slots) * length

    length = min(range(longest, max(1, longest * 3 // 4) - 1, -1), key=units_in_a_row)
    n_chunks = math.ceil(n_units / length)
    length *= unit.n_slots
    seconds = f", about {length * slot_s:.2g} s of work" if slot_s else ""
    return Length(
        length,
        f"{AUTO} {counted(length, 'slot')} ({length * observation.interval_s:.6g} s,"
        f" {length * slot_bytes / 1e6:.3g} MB{seconds}): {counted(n_chunks, 'chunk')} for"
        f" {counted(n_slots, 'slot')} of the cluster, multiples of the unit of {counted(unit.n_slots, 'slot')};"
        f" {reason}",
    )


def _whole(total: int, unit: Unit) -> int:
    return -(-total // unit.n_slots) * unit.n_slots


def cut(observation: Observation, unit: Unit, length: int) -> list[Chunk]:
    """Cut an observation into chunks.

    Chunks begin at multiples of `length`. One without any data joins the one before it, and so does a last one that is
    shorter than what the steps average: DP3 would average over what there is, and make slots of another length. That a
    chunk begins or ends in a gap does no harm: DP3 inserts the same flagged slots as in a run over everything (tried).

    Parameters
    ----------
    observation, unit
        What is cut, and its boundary unit.
    length : int
        Input slots; a multiple of ``unit.n_slots``.
    """
    if length < 1 or length % unit.n_slots:
        raise ValueError(f"a chunk length of {length} slots is no multiple of the unit of {unit.n_slots}")
    total = observation.n_slots
    starts = [0]
    for start in range(length, total, length):
        if observation.present(start, min(start + length, total)) and total - start >= unit.shortest:
            starts.append(start)
    chunks = []
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], total], strict=True)):
        chunks.append(
            Chunk(
                name=f"t{number:04d}",
                start_slot=start,
                n_slots=end - start,
                start_time=observation.first_time + start * observation.interval_s,
                row_start=observation.present(0, start) * observation.n_baselines,
                n_rows=observation.present(start, end) * observation.n_baselines,
            )
        )
    return chunks


def refuse_inexact(unit: Unit, n_chunks: int, allow_approximate: bool, name: str) -> bool:
    """Decide if the chunks give exactly what one run gives.

    Returns
    -------
    bool
        False if they do not, and the user allows that.

    Raises
    ------
    UserError
        They do not, with all reasons and the remedy.
    """
    if n_chunks == 1 or not (unit.inexact or unit.whole):
        return True
    if allow_approximate and not unit.whole:
        return False
    remedy = "change the steps, or take the whole observation as one chunk (chunks: {count: 1})"
    if not unit.whole:
        remedy += ", or accept small differences (chunks: {allow_approximate: true})"
    raise UserError(
        f"{name}: time chunks would not give what a run over the whole observation gives: "
        f"{'; '.join((*unit.whole, *unit.inexact))}. Remedy: {remedy}"
    )
