"""How far a run is, from what lies in its output folder and what its cluster says when it is asked.

Only looked at, never written: nothing here can disturb a run. Standard library only, because a thread of Snakemake's
main process reports with it.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chunkcal.cluster import client, state

STAGES = ("preprocess", "calibrate", "apply")
PERIOD_S = 30.0  # between two lines
POLL_S = 1.0  # until the cluster is up
# A look at the records of a large run may cost so much of a core.
LARGEST_LOAD = 0.005
_PERCENT = re.compile(rb"(?:^|\n)0%[.0-9]*?(\d*)\.*$")


@dataclass
class Cell:
    """Chunks of one observation and stage: in all, made by this run, left by an earlier one, running, waiting."""

    total: int = 0
    made: int = 0
    kept: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def done(self) -> int:
        """Chunks that are there. Those of an earlier run count until they are made again."""
        return self.made + self.kept

    def __add__(self, other: Cell) -> Cell:
        return Cell(*(getattr(self, key) + getattr(other, key) for key in self.__dataclass_fields__))


@dataclass(frozen=True)
class Task:
    """A DP3 run in a slot: ``stage obs chunk``, for how long (s), and DP3's own progress (per cent) if it tells."""

    name: str
    seconds: float
    percent: int | None


@dataclass
class Snapshot:
    """A run at one time."""

    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    tasks: list[Task] = field(default_factory=list)
    n_slots: int = 0
    dashboard: str | None = None
    elapsed_s: float = 0.0
    remaining_s: float | None = None
    ended: bool = False

    @property
    def observations(self) -> list[str]:
        """Names, in the order of the plan."""
        return list(dict.fromkeys(obs for obs, _ in self.cells))

    @property
    def stages(self) -> list[str]:
        """Stages that are part of the plan."""
        return list(dict.fromkeys(stage for _, stage in self.cells))

    def total(self, stage: str | None = None) -> Cell:
        """Sum over observations, of one stage or all."""
        return sum((cell for (_, own), cell in self.cells.items() if stage in (None, own)), Cell())

    @property
    def per_minute(self) -> float:
        """Chunks that this run has made in a minute."""
        return 60 * self.total().made / self.elapsed_s if self.elapsed_s > 0 else 0.0


class Watcher:
    """Looks at a run again and again, and no more often than is cheap.

    Parameters
    ----------
    results
        Output folder.
    folder
        State folder of the run; None if it is not known yet.
    """

    def __init__(self, results: str | os.PathLike, folder: Path | None = None) -> None:
        self.results, self.folder = Path(results), folder
        self._plan: tuple[int, dict[str, Any]] = (0, {})
        self._cells: dict[tuple[str, str], Cell] = {}
        self._look_again = 0.0
        self._began = self._elapsed_s = 0.0

    def look(self) -> Snapshot | None:
        """Take a snapshot; None if no run is going on."""
        self.folder = self.folder or state.find(self.results)
        run = state.read_json(self.folder / "run.json") if self.folder else None
        if run is None or not state.owner_is_alive(run["owner"]):
            self.folder = None
            return None
        began = self._began = (self.folder / "run.json").stat().st_mtime
        status = client.status(self.folder) or {}
        self._count(began)
        snapshot = Snapshot(self._cells, n_slots=status.get("n_slots", 0), dashboard=status.get("dashboard"))
        snapshot.elapsed_s = self._elapsed_s = time.time() - began
        for cell in self._cells.values():
            cell.running = cell.waiting = 0
        for what in ("running", "waiting"):
            for task in status.get(what, ()):
                stage, obs, *_ = task["name"].split(" ")
                if cell := self._cells.get((obs, stage)):
                    setattr(cell, what, getattr(cell, what) + 1)
        snapshot.tasks = [Task(t["name"], t["seconds"], _percent(t["log"])) for t in status.get("running", ())]
        snapshot.remaining_s = _remaining(snapshot, status.get("finished", {}))
        return snapshot

    def last(self) -> Snapshot | None:
        """Take the snapshot of a run that has ended since the last look; None if there was none."""
        if not self._began:
            return None
        self._look_again = 0.0
        self._count(self._began)
        for cell in self._cells.values():
            cell.running = cell.waiting = 0
        return Snapshot(self._cells, elapsed_s=self._elapsed_s, ended=True)

    def _count(self, began: float) -> None:
        """Count the records, by whether they are older than the run."""
        start = time.monotonic()
        if start < self._look_again:
            return
        cells = {}
        for obs, plan in self._read_plan().items():
            for stage in STAGES:
                if plan["runs"].get(stage) is not None:
                    times = list(_record_times(self.results / obs / stage))
                    made = sum(when >= began for when in times)
                    cells[obs, stage] = Cell(len(plan["chunks"]), made, len(times) - made)
        self._cells = cells
        self._look_again = start + (time.monotonic() - start) / LARGEST_LOAD

    def _read_plan(self) -> dict[str, Any]:
        path = self.results / "plan" / "observations.json"
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._plan[0]:
                self._plan = (changed, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):  # not planned yet, or being written
            self._plan = (0, {})
        return self._plan[1]


def has_kept_chunks(results: str | os.PathLike) -> bool:
    """Tell whether an earlier run has pre-processed chunks by a task of its own, and kept them."""
    for record in Path(results).glob("*/preprocess/t*.json"):
        name = (state.read_json(record) or {}).get("name", "")
        return name.startswith("preprocess ") and record.with_suffix(".ms").exists()
    return False


def _record_times(folder: Path) -> Iterator[float]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".json"):
                    yield entry.stat().st_mtime
    except FileNotFoundError:  # nothing made yet, or a file that has just been replaced
        return


def _percent(log: str) -> int | None:
    """Read DP3's progress from the end of its log: ``0%....10....20``."""
    try:
        with open(log, "rb") as stream:
            stream.seek(max(0, os.path.getsize(log) - 200))
            found = _PERCENT.search(stream.read())
    except OSError:
        return None
    return int(found[1] or 0) if found else None


def _remaining(snapshot: Snapshot, finished: dict[str, list[float]]) -> float | None:
    """Estimate the time that is left, s, from the mean time of a chunk in each stage; None while one is unknown."""
    work = 0.0
    for stage in snapshot.stages:
        cell = snapshot.total(stage)
        left = cell.total - cell.done
        if left <= 0:
            continue
        n, seconds = finished.get(stage, (0, 0.0))
        if not n and stage == "preprocess" and "calibrate" in finished:
            continue  # it is done in the same task
        if not n:
            return None
        work += left * seconds / n
    return work / snapshot.n_slots if snapshot.n_slots else None


def line(snapshot: Snapshot) -> str:
    """Say in one line how far a run is."""
    if not snapshot.cells:
        if snapshot.ended:
            return "the run has ended before there was a plan"
        return f"planning, since {snapshot.elapsed_s:.0f} s"
    parts = [f"{stage} {cell.done}/{cell.total}" for stage in snapshot.stages if (cell := snapshot.total(stage))]
    text = f"{', '.join(parts)} chunks"
    if not snapshot.ended:
        waiting = snapshot.total().waiting
        text += f"; {len(snapshot.tasks)} of {snapshot.n_slots} slots busy, {waiting} waiting"
    return f"{text}; {snapshot.per_minute:.1f} chunks/min; {end_text(snapshot)}"


def end_text(snapshot: Snapshot) -> str:
    """Say when the chunks will be done."""
    total = snapshot.total()
    if total.total and total.done >= total.total and not total.running and not total.waiting:
        return "all chunks are done"
    if snapshot.ended:
        return "the run has ended before all chunks were done"
    if snapshot.remaining_s is None:
        return "end not known yet"
    minutes = snapshot.remaining_s / 60
    when = time.strftime("%H:%M", time.localtime(time.time() + snapshot.remaining_s))
    left = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1.5 else "a minute"
    return f"chunks done in about {left} ({when})"


def report(results: str | os.PathLike, folder: Path, write: Callable[[str], Any] | None = None) -> threading.Event:
    """Report a run from a thread of its own: the dashboard's address once, then a line every `PERIOD_S`.

    Parameters
    ----------
    results, folder
        Output folder and state folder of the run.
    write
        Takes each line; standard error by default.

    Returns
    -------
    Event
        Set it to stop.
    """
    ended = threading.Event()
    arguments = (Watcher(results, folder), write or _to_terminal, ended)
    threading.Thread(target=_report, args=arguments, name="chunkcal-progress", daemon=True).start()
    return ended


def _to_terminal(text: str) -> None:
    print(f"chunkcal: {text}", file=sys.stderr, flush=True)


def _report(watcher: Watcher, write: Callable[[str], Any], ended: threading.Event) -> None:
    told = False
    due = time.monotonic() + PERIOD_S
    try:
        while not ended.wait(PERIOD_S if told else POLL_S):
            if told or time.monotonic() > due:
                snapshot = watcher.look()
                if snapshot is None:
                    return
                write(line(snapshot))
                due = time.monotonic() + PERIOD_S
            supervisor = None if told else state.read_json(watcher.folder / "supervisor.json")
            if supervisor:
                told = True
                where = f"the cluster's dashboard is {supervisor['dashboard']}; " if supervisor["dashboard"] else ""
                write(f"{where}watch the run with: chunkcal watch {watcher.results}")
    except Exception as error:  # whatever it is, the run goes on
        write(f"progress is not reported any more: {error!r}")
