"""The live view of a run in Snakemake's own terminal: one screen that stays, instead of pages that scroll by.

Snakemake's log handler for it is `snakemake_logger_plugin_chunkcal`. What is lost from view is in Snakemake's log file;
errors and warnings, and whatever the scripts of the rules print, appear above the view. Standard library only until a
view begins, because every Snakemake process of a run imports it.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chunkcal.reporting.progress import Watcher

PERIOD_S = 1.0
# What the scripts have printed last may still be on its way when a view ends.
DRAIN_S = 0.2
MAX_JOBS = 4  # of the rules that are no chunks, as many as are named

_wanted = False
_screen: Screen | None = None


def offer() -> None:
    """Let a view begin when the run does: there is a log handler that gives way to it."""
    global _wanted
    _wanted = True


def begin(results: str | os.PathLike, folder: Path) -> bool:
    """Begin the view of a run, if one is wanted.

    Parameters
    ----------
    results, folder
        Output folder and state folder of the run.

    Returns
    -------
    bool
        Whether it has begun.
    """
    global _screen
    if not _wanted or _screen is not None:
        return False
    _screen = Screen(Watcher(results, folder))
    atexit.register(end)
    return True


def end() -> None:
    """End the view, if there is one: from now on everything is printed as usual."""
    global _screen
    screen, _screen = _screen, None
    if screen is not None:
        screen.end()


def screen() -> Screen | None:
    """Return the view that is shown now."""
    return _screen


class Screen:
    """A view that is drawn at the bottom of the terminal, with what is printed meanwhile above it.

    Parameters
    ----------
    watcher
        Of the run.
    """

    def __init__(self, watcher: Watcher) -> None:
        from rich.console import Console
        from rich.live import Live

        self._watcher = watcher
        self._jobs: dict[int, tuple[str, float]] = {}
        self._steps = ""
        self._captured = _captured(self.show)
        terminal = self._captured.__enter__()
        self._console = Console(file=terminal, force_terminal=True)
        # Our own thread refreshes: a look at the run and its picture belong together.
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="chunkcal-screen", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Leave the last picture where it is, and give the terminal back."""
        self._ended.set()
        self._thread.join()
        self._captured.__exit__(None, None, None)
        self._live.stop()

    def show(self, text: str) -> None:
        """Print a text, which may bring colours of its own, above the view."""
        from rich.text import Text

        self._console.print(Text.from_ansi(text))

    def job_began(self, number: int, name: str) -> None:
        """Note that a job of Snakemake's is at work."""
        self._jobs[number] = (name, time.monotonic())

    def job_ended(self, number: int) -> None:
        """Note that it no longer is."""
        self._jobs.pop(number, None)

    def steps_done(self, done: int, total: int) -> None:
        """Note how many of Snakemake's jobs are done."""
        self._steps = f"{done} of {total} jobs done"

    def _refresh(self) -> None:
        while True:
            last = self._ended.wait(PERIOD_S)
            try:
                self._draw()
            except Exception as error:  # whatever it is, the run goes on
                self.show(f"chunkcal: progress is not shown any more: {error!r}")
                return
            if last:
                return

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        from chunkcal.reporting.watch import view

        snapshot = self._watcher.look() or self._watcher.last()
        if snapshot is None:
            return
        jobs = [] if snapshot.ended else list(self._jobs.values())
        others = [f"{name} ({time.monotonic() - began:.0f} s)" for name, began in jobs]
        now = ", ".join(others[:MAX_JOBS]) + (f" and {len(others) - MAX_JOBS} more" if len(others) > MAX_JOBS else "")
        steps = Text("; ".join(filter(None, (self._steps, now))), style="dim")
        self._live.update(Group(Text(), view(snapshot, self._console.height - 2), steps), refresh=True)


@contextmanager
def _captured(show: Callable[[str], None]) -> Iterator[Any]:
    """Show, line by line, what this process and its children write to their standard output and error.

    Written straight to the terminal it would be in the picture, and wiped away with it.

    Yields
    ------
    file
        The terminal.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace")
    reading, writing = os.pipe()
    redirected = [number for number in (1, 2) if os.isatty(number)]
    for number in redirected:
        os.dup2(writing, number)
    os.close(writing)
    ended = threading.Event()
    reader = threading.Thread(target=_pass_on, args=(reading, show, ended), name="chunkcal-output", daemon=True)
    reader.start()
    try:
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number in redirected:
            os.dup2(saved[number], number)
        for number in saved.values():
            os.close(number)
        ended.set()
        reader.join()


def _pass_on(reading: int, show: Callable[[str], None], ended: threading.Event) -> None:
    """Show the lines that arrive; after the end, those that have been written until then."""
    rest = b""
    while True:
        ready = select.select([reading], [], [], DRAIN_S)[0]
        piece = os.read(reading, 1 << 16) if ready else b""
        if not piece and (ready or ended.is_set()):
            break
        *lines, rest = (rest + piece).split(b"\n")
        if lines:
            show(b"\n".join(lines).decode(errors="replace"))
    if rest:
        show(rest.decode(errors="replace"))
    # Stays open: a child that outlives the view must not die of a closed pipe.
