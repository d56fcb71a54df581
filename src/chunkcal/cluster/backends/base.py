"""What every way to get a cluster gives the supervisor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin

from chunkcal.cluster import state


def _not_wanted(_: Any) -> None:
    """Take no notice."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster, as the supervisor needs it.

    Attributes
    ----------
    client
        Asynchronous dask client.
    workers
        Coroutine function that gives the resources of every live worker by its address.
    address, dashboard
        Of the scheduler.
    ends
        Gives the Unix time at which a worker's allocation ends, by its address, for the workers that have an end.
    lifetime_s
        Longest time that any worker can live.
    want
        To be told how many DP3 runs are running or waiting.
    retire
        To be told that a worker is of no use any more: its allocation ends too early for all that waits.
    waiting
        Says what the batch system still owes, or None. Raises ClusterError when it is not worth waiting for.
    """

    client: Client
    workers: Callable[[], Any]
    address: str
    dashboard: str | None
    ends: Callable[[], Mapping[str, float]] = dict
    lifetime_s: float = math.inf
    want: Callable[[int], None] = _not_wanted
    retire: Callable[[str], None] = _not_wanted
    waiting: Callable[[], str | None] = lambda: None


class Watch(SchedulerPlugin):
    """Tells when workers come and go."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def add_worker(self, **_: Any) -> None:
        """Called by the scheduler."""
        self.changed()

    def remove_worker(self, **_: Any) -> None:
        """Called by the scheduler."""
        self.changed()


@contextmanager
def shared_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for what workers on other hosts must read, private to the user (mode 0700); remove it at the end.

    It lies below the folder of the products, because that is on a file system that all hosts of a run share.
    """
    shared = state.shared_path(folder)
    shared.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    shared.mkdir(mode=0o700, exist_ok=True)  # it is there already if a supervisor was killed
    run = state.read_json(folder / "run.json")
    state.write_json(shared / "run.json", {"owner": run["owner"]})
    try:
        yield shared
    finally:
        state.remove_shared_folder(folder)
