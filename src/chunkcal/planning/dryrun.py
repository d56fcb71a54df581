"""Plans for a dry run, which must not make a file, but shall show every job.

Standard library only, until it is run as a program of its own (``python -m ...dryrun``): Snakemake evaluates this.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chunkcal.errors import UserError


def plans_for_dry_run(
    observations: Sequence[Mapping[str, Any]],
    sections: Mapping[str, Any],
    dp3_version: str | None,
    demo: Mapping[str, Mapping[str, Any]],
    slots_each: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Plan as `plan.make_plan`, without leaving a trace.

    Parameters
    ----------
    observations, sections, dp3_version, slots_each
        As `plan.make_plan`.
    demo
        Settings of the demo's simulations by name. Where ``demo/<name>.ms`` has not been simulated yet, it is simulated
        elsewhere for as long as this takes.

    Returns
    -------
    dict
        The plans by observation, as read from JSON.

    Raises
    ------
    UserError
        Whatever planning refuses.
    """
    with tempfile.TemporaryDirectory(prefix="chunkcal-dry-run-") as folder:
        question = {"observations": observations, "sections": sections, "demo": demo}
        question |= {"rest": [dp3_version, slots_each]}
        Path(folder, "question.json").write_text(json.dumps(question), encoding="utf-8")
        # A process of its own: this one is Snakemake's, where casacore and its messages have no place.
        done = subprocess.run(
            [sys.executable, "-m", __name__, folder], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        answer = Path(folder, "answer.json")
        if done.returncode or not answer.exists():
            raise UserError(f"planning for the dry run failed: {done.stdout[-600:]}")
        found = json.loads(answer.read_text(encoding="utf-8"))
    if "problems" in found:
        raise UserError(*found["problems"])
    return found["plans"]


def main(folder: Path) -> None:
    """Answer the question in a folder."""
    from chunkcal.planning.plan import make_plan
    from chunkcal.simulate import Simulation, simulate

    question = json.loads((folder / "question.json").read_text(encoding="utf-8"))
    observations = [dict(entry) for entry in question["observations"]]
    for entry in observations:
        ms = Path(entry["ms"])
        if ms.parent != Path("demo") or ms.stem not in question["demo"] or ms.exists():
            continue
        simulate(Simulation(**question["demo"][ms.stem]), folder / ms.name)
        entry["ms"] = str(folder / ms.name)
        if entry["sky_model"] and Path(entry["sky_model"]).parent == Path("demo"):
            entry["sky_model"] = str(folder / Path(entry["sky_model"]).name)
    try:
        answer = {"plans": make_plan(observations, question["sections"], *question["rest"]).observations}
    except UserError as error:
        answer = {"problems": error.lines}
    (folder / "answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
