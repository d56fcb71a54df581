"""Watch a run: a live view on a terminal, a line now and then elsewhere.

It is a process of its own, so that it can neither disturb the run nor be disturbed by what Snakemake prints; it may
come and go, and several people may watch one run.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chunkcal.errors import UserError
from chunkcal.reporting import progress
from chunkcal.reporting.progress import Cell, Snapshot

LIVE_PERIOD_S = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``chunkcal watch``."""
    parser.add_argument("output_dir", nargs="?", default="results", help="output folder of the run")
    parser.add_argument("--quiet", action="store_true", help="lines instead of a live view, also on a terminal")


def run(args: argparse.Namespace) -> int:
    """Watch until the run ends.

    Raises
    ------
    UserError
        No run is going on in the folder.
    """
    watcher = progress.Watcher(Path(args.output_dir).absolute())
    first = watcher.look()
    if first is None:
        raise UserError(f"no run of this machine and user writes to {watcher.results} now; start snakemake first")
    live = sys.stdout.isatty() and not args.quiet
    # A shell that starts us in the background lets SIGINT be ignored, which Python then leaves so.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        (_show_live if live else _show_lines)(_snapshots(watcher, first, LIVE_PERIOD_S if live else progress.PERIOD_S))
    except KeyboardInterrupt:
        return 130
    print(f"the run in {watcher.results} has ended; chunkcal summary {args.output_dir} tells what it has made")
    return 0


def _snapshots(watcher: progress.Watcher, first: Snapshot, period_s: float) -> Iterator[Snapshot]:
    snapshot: Snapshot | None = first
    shown = time.monotonic()
    while snapshot is not None:
        yield snapshot
        while time.monotonic() < shown + period_s and _goes_on(watcher):
            time.sleep(min(1.0, period_s))
        shown = time.monotonic()
        snapshot = watcher.look()
    last = watcher.last()
    if last is not None:
        yield last


def _goes_on(watcher: progress.Watcher) -> bool:
    return watcher.folder is not None and watcher.folder.exists()


def _show_lines(snapshots: Iterator[Snapshot]) -> None:
    dashboard = None
    for snapshot in snapshots:
        if snapshot.dashboard and snapshot.dashboard != dashboard:
            dashboard = snapshot.dashboard
            print(f"dashboard: {dashboard}")
        print(f"{time.strftime('%H:%M:%S')} {progress.line(snapshot)}", flush=True)


def _show_live(snapshots: Iterator[Snapshot]) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, auto_refresh=False) as live:
        for snapshot in snapshots:
            live.update(view(snapshot, console.height), refresh=True)


def view(snapshot: Snapshot, height: int = 40) -> Any:
    """Lay out a snapshot for a terminal of so many lines: observations by stages, then slots, then the outlook."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("observation", no_wrap=True)
    for stage in snapshot.stages:
        table.add_column(stage, justify="right", no_wrap=True)
    names = _most_interesting(snapshot, max(1, height - len(snapshot.tasks) - 6))
    for name in names:
        table.add_row(name, *(_cell_text(snapshot.cells[name, stage]) for stage in snapshot.stages))
    others = len(snapshot.observations) - len(names)
    if len(snapshot.observations) > 1:
        title = f"all {len(snapshot.observations)}" + (f" ({others} not shown)" if others else "")
        table.add_row(title, *(_cell_text(snapshot.total(stage)) for stage in snapshot.stages), style="bold")
    tasks = [Text(_task_text(task), style="dim", no_wrap=True, overflow="ellipsis") for task in snapshot.tasks]
    outlook = [Text(progress.line(snapshot))]
    if snapshot.dashboard:
        outlook.append(Text(f"dashboard: {snapshot.dashboard}", style="dim"))
    return Group(*([table] if snapshot.cells else []), *tasks, *outlook)


def _most_interesting(snapshot: Snapshot, n: int) -> list[str]:
    """Choose the observations that are shown: those that something happens to, then those that are not done."""

    def rank(name: str) -> tuple[bool, bool]:
        cells = [snapshot.cells[name, stage] for stage in snapshot.stages]
        return not any(cell.running or cell.waiting for cell in cells), all(cell.done >= cell.total for cell in cells)

    chosen = set(sorted(snapshot.observations, key=rank)[:n])
    return [name for name in snapshot.observations if name in chosen]


def _cell_text(cell: Cell) -> str:
    now = [f"{n} {what}" for n, what in ((cell.running, "running"), (cell.waiting, "waiting")) if n]
    return f"{cell.done}/{cell.total}" + (f" ({', '.join(now)})" if now else "")


def _task_text(task: progress.Task) -> str:
    percent = f", {task.percent} %" if task.percent is not None else ""
    return f"  {task.name}: {task.seconds:.0f} s{percent}"
