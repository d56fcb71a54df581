"""A scheduler that hears of its workers less often; ``dask scheduler --preload chunkcal.cluster.quiet`` is one, too."""

from __future__ import annotations

from typing import Any

from distributed import scheduler

HEARTBEAT_S = 5.0  # of a worker, at the least


def dask_setup(_: Any = None) -> None:
    """Let workers beat every five seconds at most; dask calls it with the scheduler, if it has this as a preload.

    A heartbeat is for the dashboard only, a lost worker is seen by its connection; with few workers dask would have two
    of them a second from each, and has no setting for it.
    """
    beats = scheduler.heartbeat_interval
    scheduler.heartbeat_interval = lambda n_workers: max(HEARTBEAT_S, beats(n_workers))
