"""The verdict on one observation: from its records, its solutions and its plan to quality.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from chunkcal.errors import UserError
from chunkcal.planning import requests
from chunkcal.quality.words import describe


def judge_observation(
    obs: str,
    plan: Mapping[str, Any],
    records: Iterable[str | os.PathLike],
    solutions: Sequence[str | os.PathLike],
    limits: Mapping[str, Any],
    output: str | os.PathLike,
) -> dict[str, Any]:
    """Judge the solutions of an observation and write what was found.

    Parameters
    ----------
    obs, plan
        The observation and its plan.
    records
        Of the calibration of each chunk, in time order.
    solutions
        The h5parm of each solve that is applied, in their order.
    limits
        Section ``quality.limits`` of the configuration.
    output
        quality.json.

    Returns
    -------
    dict
        As `judge`, and ``summary``: a line per figure that is not good.
    """
    from chunkcal.quality.gate import judge  # h5py is slow to import, and `require_quality` has no use for it

    failed: dict[str, list[tuple[str, int, int]]] = {name: [] for name in plan["solves"]}
    converged = {name: {"n": 0, "converged": 0} for name in plan["solves"]}
    for chunk, path in zip(plan["chunks"], records, strict=True):
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        for name in plan["solves"]:
            if "failed" in record:
                first, n = requests.first_solution(plan, name, chunk), requests.n_solutions(plan, name, chunk)
                failed[name].append((chunk["name"], first, n))
                continue
            for key, count in (record["verified"]["solves"][name].get("convergence") or {}).items():
                converged[name][key] += count
    found = judge(
        obs,
        dict(zip(plan["solves"], solutions, strict=True)),
        requests.seams(plan),
        limits,
        failed,
        {name: counts for name, counts in converged.items() if counts["n"]},
    )
    found["summary"] = describe(found)
    Path(output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def require_quality(report: str | os.PathLike, policy: str) -> None:
    """Stop an observation whose verdict is fail.

    Parameters
    ----------
    report
        quality.json.
    policy : {"stop", "continue"}
        The configuration's ``quality.on_quality_fail``.

    Raises
    ------
    UserError
        The verdict is fail, and the policy is stop.
    """
    found = json.loads(Path(report).read_text(encoding="utf-8"))
    if found["verdict"] != "fail" or policy == "continue":
        return
    reasons = [line for line in found["summary"] if line.startswith("FAIL")]
    raise UserError(
        "; ".join(reasons) + f". The solutions are not applied; all figures are in {report}. Look at the report, change"
        " the strategy or quality.limits, or go on with quality.on_quality_fail: continue"
    )
