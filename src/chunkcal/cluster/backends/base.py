"""What every way to get a cluster gives the supervisor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin


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
