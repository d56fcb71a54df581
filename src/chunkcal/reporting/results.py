"""What a finished run left behind, collected for the report and the summary.

Records are read one at a time and only their sums are kept, so that ten thousand chunks are no burden.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from chunkcal.cluster import state
from chunkcal.errors import UserError
from chunkcal.flagging.flags import Flags
from chunkcal.flagging.flagsteps import FlagSteps
from chunkcal.flagging.flagtable import write_table
from chunkcal.planning.requests import STAGES

# Without any DP3 run for this long, the run was interrupted and resumed.
PAUSE_S = 120.0


@dataclass(frozen=True)
class Task:
    """One DP3 run: Unix times in s, CPU time in s, peak memory in kB."""

    obs: str
    stage: str
    host: str
    worker: str
    start: float
    end: float
    cpu_s: float
    max_rss_kb: float


@dataclass(frozen=True)
class Fit:
    """How well data fit the model, pooled over the chunks that were looked at.

    Attributes
    ----------
    raw, corrected : float or None
        Root mean square of abs(data - model) before and after calibration, Jy; None if all is flagged.
    n_visibilities, n_chunks : int
        How many went in.
    """

    raw: float | None
    corrected: float | None
    n_visibilities: int
    n_chunks: int

    @property
    def factor(self) -> float | None:
        """How many times better corrected data fit than raw ones; None if that cannot be said."""
        return self.raw / self.corrected if self.raw is not None and self.corrected else None


@dataclass
class Result:
    """One observation: its plan and what became of it.

    Attributes
    ----------
    flags : dict
        ``raw`` (input), ``preprocess`` and ``apply`` (after these stages), as far as there are records.
    flag_steps : FlagSteps
        What single flagging steps of DP3 did, called ``<stage>.<step>``.
    fit : Fit or None
        None when nothing was calibrated or no fit was found.
    solutions : dict of str to Path
        The merged h5parms that exist, by solve; the processed ones where there are any.
    ms : Path or None
        The joined MeasurementSet, if it exists.
    quality : dict or None
        What the quality gate found, as in quality.json.
    images : Path or None
        Folder of the quick-look images, if there were to be any.
    problems : list of str
        What is missing or unreadable.
    """

    name: str
    plan: Mapping[str, Any]
    flags: dict[str, Flags] = field(default_factory=dict)
    flag_steps: FlagSteps = field(default_factory=FlagSteps)
    fit: Fit | None = None
    solutions: dict[str, Path] = field(default_factory=dict)
    ms: Path | None = None
    quality: Mapping[str, Any] | None = None
    images: Path | None = None
    problems: list[str] = field(default_factory=list)

    @cached_property
    def chunk_spans(self) -> dict[str, tuple[float, float]]:
        """Start and end of each chunk, MJD s."""
        seen = self.plan["observation"]
        begin, interval = seen["first_time"] - 0.5 * seen["interval_s"], seen["interval_s"]
        return {
            chunk["name"]: (
                begin + chunk["start_slot"] * interval,
                begin + (chunk["start_slot"] + chunk["n_slots"]) * interval,
            )
            for chunk in self.plan["chunks"]
        }

    @property
    def is_calibrated(self) -> bool:
        """Whether calibration was part of the plan."""
        return bool(self.plan.get("solves"))

    @property
    def final(self) -> Flags | None:
        """Flags of the data that came out."""
        return self.flags.get("apply" if self.is_calibrated else "preprocess")


@dataclass
class Run:
    """All observations and DP3 runs of a pipeline run."""

    observations: dict[str, Result]
    tasks: list[Task] = field(default_factory=list)
    dp3_versions: set[str] = field(default_factory=set)
    threads: set[int] = field(default_factory=set)
    layout: str | None = None  # why there were so many slots and threads, where that was chosen


@dataclass(frozen=True)
class Clock:
    """Time since the first DP3 run, without the pauses between an interrupted run and its resumption.

    Attributes
    ----------
    start, end : float
        Of the first and the last DP3 run, Unix time in s.
    pauses : tuple of (start, end)
        Times without any DP3 run that count as interruptions, Unix time in s.
    """

    start: float
    end: float
    pauses: tuple[tuple[float, float], ...]

    @classmethod
    def of(cls, tasks: Iterable[Task]) -> Clock:
        """Find the pauses between tasks."""
        pauses, start, end = [], math.inf, -math.inf
        for task in sorted(tasks, key=lambda task: task.start):
            if task.start - end > PAUSE_S and end > start:
                pauses.append((end, task.start))
            start, end = min(start, task.start), max(end, task.end)
        return cls(start, end, tuple(pauses))

    def since_start(self, time: float) -> float:
        """Convert a Unix time to s since the start without pauses."""
        return time - self.start - sum(end - start for start, end in self.pauses if end <= time)

    @property
    def length(self) -> float:
        """Length of the run without pauses, s."""
        return self.since_start(self.end)


def collect(
    plan: str | os.PathLike,
    records: Iterable[str | os.PathLike] = (),
    fits: Iterable[str | os.PathLike] = (),
    solutions: Iterable[str | os.PathLike] = (),
    measurement_sets: Iterable[str | os.PathLike] = (),
    images: Iterable[str | os.PathLike] = (),
    quality: Iterable[str | os.PathLike] = (),
) -> Run:
    """Collect the results of a run; what is missing or unreadable is noted, not raised.

    Parameters
    ----------
    plan
        observations.json.
    records, fits, solutions, measurement_sets, images, quality
        Files as the workflow lays them out, ``<obs>/<stage>/<chunk>.json``, ``<obs>/fit/<chunk>.fit.json``,
        ``<obs>/solutions/<solve>.h5``, ``<obs>/<obs>.ms``, ``<obs>/image`` and ``<obs>/quality.json``; the observation
        is taken from the path. MeasurementSets are only named, and may still be in the making.

    Raises
    ------
    UserError
        The plan cannot be read.
    """
    try:
        plans = json.loads(Path(plan).read_text(encoding="utf-8"))
        run = Run({name: Result(name, one) for name, one in plans.items()})
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"plan {plan} cannot be read ({error}); run snakemake again") from error
    run.layout = (state.read_json(Path(plan).parent.parent / "cluster.json") or {}).get("layout")
    for path in map(Path, records):
        _add_record(run, path)
    by_obs: dict[str, list[dict[str, Any]]] = {}
    for path in map(Path, fits):
        found = _read(run, path, 2)
        if found is not None:
            by_obs.setdefault(path.parts[-3], []).append(found)
    for name, found in by_obs.items():
        run.observations[name].fit = _pool(found)
    for path in map(Path, quality):
        found = _read(run, path, 1)
        if found is not None:
            run.observations[path.parts[-2]].quality = found
    for kind, paths in (("ms", measurement_sets), ("images", images)):
        for path in map(Path, paths):
            if path.parent.name in run.observations:
                setattr(run.observations[path.parent.name], kind, path)
    for path in map(Path, solutions):
        if path.exists() and path.parent.parent.name in run.observations:
            run.observations[path.parent.parent.name].solutions[path.name.partition(".")[0]] = path
    for result in run.observations.values():
        _note_missing(result)
    run.tasks.sort(key=lambda task: (task.start, task.obs, task.stage))
    return run


def write_flags(
    plan: str | os.PathLike, records: Iterable[str | os.PathLike], obs: str, output: str | os.PathLike
) -> None:
    """Write the flag statistics of an observation, as `flagtable.write_table`, from the records of its chunks.

    Raises
    ------
    UserError
        A record cannot be read: sums without it would be wrong.
    """
    result = collect(plan, records).observations[obs]
    unreadable = [problem for problem in result.problems if "cannot be" in problem]
    if unreadable:
        raise UserError(f"flags of {obs}: {unreadable[0]}; remove that record and run snakemake again")
    write_table(result.flags, result.flag_steps, output)


def collect_folder(folder: str | os.PathLike) -> Run:
    """Collect a run from its output folder.

    Raises
    ------
    UserError
        The folder holds no plan.
    """
    folder = Path(folder)
    plan = folder / "plan" / "observations.json"
    if not plan.is_file():
        raise UserError(f"{folder} holds no run of chunkcal (there is no {plan}); give the output_dir of a run")
    try:
        names = list(json.loads(plan.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"plan {plan} cannot be read ({error}); run snakemake again") from error
    return collect(
        plan,
        [path for obs in names for stage in STAGES for path in sorted((folder / obs / stage).glob("t*[0-9].json"))],
        [path for obs in names for path in sorted((folder / obs / "fit").glob("*.fit.json"))],
        # gain.processed.h5 comes after gain.h5, and counts.
        [path for obs in names for path in sorted((folder / obs / "solutions").glob("*.h5"))],
        [path for obs in names if (path := folder / obs / f"{obs}.ms").exists()],
        [path for obs in names if (path := folder / obs / "image").exists()],
        [path for obs in names for path in (folder / obs).glob("quality.json")],
    )


def _read(run: Run, path: Path, levels: int) -> dict[str, Any] | None:
    """Read a JSON object `levels` folders below the output folder; None, with a note, if that fails."""
    obs = path.parts[-1 - levels] if len(path.parts) > levels else ""
    if obs not in run.observations:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        reason = "not an object"
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
    run.observations[obs].problems.append(f"{'/'.join(path.parts[-2:])} cannot be read ({reason})")
    return None


def _add_record(run: Run, path: Path) -> None:
    record = _read(run, path, 2)
    if record is None:
        return
    obs, stage, chunk = path.parts[-3], path.parts[-2], path.stem
    start, end = record.get("start"), record.get("end")
    told_by_another = "one_pass" in record and "cpu_s" not in record
    if start is not None and end is not None and not told_by_another:
        where = (str(record.get("host", "")), str(record.get("worker", "")))
        used = (float(record.get("cpu_s") or 0), float(record.get("max_rss_kb") or 0))
        run.tasks.append(Task(obs, stage, *where, float(start), float(end), *used))
    if record.get("dp3_version"):
        run.dp3_versions.add(str(record["dp3_version"]))
    if record.get("threads"):
        run.threads.add(int(record["threads"]))
    verified, result = record.get("verified") or {}, run.observations[obs]
    counted = {"raw": verified.get("flagged_before") if stage == "preprocess" else None}
    counted[stage] = verified.get("flagged_after")
    try:
        for name, found in counted.items():
            if found and found.get("counts"):
                result.flags.setdefault(name, Flags()).add(found["counts"])
        steps = [{**one, "step": f"{stage}.{one['step']}"} for one in record.get("flag_steps") or ()]
        if steps:
            result.flag_steps.add(steps, *result.chunk_spans[chunk])
    except (KeyError, TypeError, ValueError) as error:
        result.problems.append(f"the flag counts of {stage}/{chunk} cannot be added ({error})")


def _pool(fits: Sequence[Mapping[str, Any]]) -> Fit:
    good = [fit for fit in fits if fit.get("n_visibilities") and fit.get("rms_raw_jy") is not None]
    n = sum(fit["n_visibilities"] for fit in good)
    raw, corrected = (
        math.sqrt(sum(fit["n_visibilities"] * (fit[key] or 0.0) ** 2 for fit in good) / n) if n else None
        for key in ("rms_raw_jy", "rms_corrected_jy")
    )
    return Fit(raw, corrected, n, len(fits))


def _note_missing(result: Result) -> None:
    if result.ms is None:
        result.problems.append("the output MeasurementSet is missing")
    for name in result.plan.get("solves", {}):
        if name not in result.solutions:
            result.problems.append(f"the merged solutions of {name} are missing")
    if result.is_calibrated and result.fit is None:
        result.problems.append("no fit to the model was measured")
