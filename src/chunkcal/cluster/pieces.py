"""A chunk that had too little memory, made in pieces on a worker; `chunkcal.planning.pieces` says where it is cut.

The product is, bit for bit, that of one DP3 run over the chunk. Only rounding stands between: DP3 counts TIME from
the first slot of each run, so that of the whole is put back. What cannot be proven to be the same is refused.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chunkcal.errors import UserError
from chunkcal.join import join
from chunkcal.products import opened
from chunkcal.solutions.h5parm import solution_times
from chunkcal.solutions.merge import Grid, merge


def runs(work: Path, request: Mapping[str, Any]) -> list[tuple[Path, int, dict[str, str]]]:
    """List the DP3 runs of a request, and make the folders that they need, with what these are linked to.

    Returns
    -------
    list of (path, int, dict)
        Of each run its folder, which is the work folder itself or one below it for each piece; its number there, from
        1 on; and its parset.
    """
    run, parts = request["run"], {work: {}}
    if request.get("pieces"):
        parts |= {work / f"piece{n}": piece["select"] for n, piece in enumerate(request["pieces"]["runs"], start=1)}
    for folder in parts:
        folder.mkdir(exist_ok=True)
        for name, target in run["links"].items():
            (folder / name).symlink_to(target)
        if request["expect"]["kind"] == "h5parms":
            (folder / run["product"]).mkdir()
    if len(parts) > 1:
        del parts[work]  # it only gets the product
    return [
        (folder, number, parset | select)
        for folder, select in parts.items()
        for number, parset in enumerate(run["parsets"], start=1)
    ]


def described(request: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the pieces for the record: as they were asked for, with the parsets that DP3 got."""
    asked = request["pieces"]
    parsets = request["run"]["parsets"]
    return asked | {"runs": [one | {"parsets": [keys | one["select"] for keys in parsets]} for one in asked["runs"]]}


def put_together(work: Path, request: Mapping[str, Any], pieces: Sequence[Path]) -> None:
    """Make the product of a chunk from those of its pieces, which are removed.

    Parameters
    ----------
    work
        Work folder, with the link to the input; gets the product.
    request
        With ``pieces``, as `chunkcal.planning.pieces.halved` gives them.
    pieces
        Folders of the pieces, in time order.

    Raises
    ------
    ProductError, UserError
        A piece is not what is expected of it, or the whole would not have the bits of one run.
    """
    product, expect = request["run"]["product"], request["expect"]
    expects = [run["expect"] for run in request["pieces"]["runs"]]
    if expect["kind"] == "h5parms":
        with opened(work / "in.ms") as table:  # the first slot of a chunk is that of its first piece
            start = float(table.getcell("TIME", 0) - 0.5 * table.getcell("INTERVAL", 0))
        for name, solve in expect["solves"].items():
            counts = [one["solves"][name]["n_solutions"] for one in expects]
            parts = [piece / product / f"{name}.h5" for piece in pieces]
            whole = Grid.of([piece.name for piece in pieces], counts, start_s=start, interval_s=solve["interval_s"])
            merge(parts, work / product / f"{name}.h5", whole)
            times = solution_times(work / product / f"{name}.h5")
            _refuse_other_times(solution_times(parts[0]), times[: counts[0]], parts[0])
    else:
        parts = [piece / product for piece in pieces]
        # By default TIME is counted from the first slot of the first piece, as one run over the chunk counts it. That
        # the input may be raw, and averaged, makes no difference: what is added to a time of MJD seconds is rounded to
        # the same microsecond wherever it is added.
        join(parts, work / product, expects)
        with opened(parts[0]) as first, opened(work / product) as joined:
            _refuse_other_times(first.getcol("TIME"), joined.getcol("TIME", nrow=first.nrows()), parts[0])
    for piece in pieces:
        shutil.rmtree(piece / product)


def _refuse_other_times(first: np.ndarray, whole: np.ndarray, piece: Path) -> None:
    """Refuse times of the whole that are not, bit for bit, those of the first piece: it counts from the same slot."""
    if first.tobytes() != whole.tobytes():
        # Nothing is wrong with the data, so no ProductError, which would make it a bad chunk.
        raise UserError(f"{piece}: put together, its times would not be those of one run; give its slot more memory")


def add_up(found: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    """Add up what `dp3log.convergence` tells of each piece."""
    sums: dict[str, Counter[str]] = {}
    for piece in found:
        for step, counts in piece.items():
            sums.setdefault(step, Counter()).update(counts)
    return {step: dict(counts) for step, counts in sums.items()}
