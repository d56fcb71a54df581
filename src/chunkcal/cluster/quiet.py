"""A scheduler that looks less often; ``dask scheduler --preload chunkcal.cluster.quiet`` is one, too."""

from __future__ import annotations

from distributed import Scheduler, scheduler

PERIOD_S = 5.0  # at the least


def dask_setup(own: Scheduler | None = None) -> None:
    """Let workers beat every five seconds at most; with a scheduler, also let it look as seldom whether it is needed.

    A heartbeat is for the dashboard only, a lost worker is seen by its connection; with few workers dask would have two
    of them a second from each, and has no setting for it. Nor has it one for how often a scheduler looks whether it is
    idle, or has tasks but no workers: four times a second, though both timeouts are minutes, if there are any.

    Parameters
    ----------
    own
        What dask gives, if it has this as a preload.
    """
    beats = scheduler.heartbeat_interval
    scheduler.heartbeat_interval = lambda n_workers: max(PERIOD_S, beats(n_workers))
    if own:
        look_less(own)


def look_less(own: Scheduler) -> None:
    """Let a scheduler look every five seconds whether it is needed."""
    for name in ("idle-timeout", "no-workers-timeout"):
        if callback := own.periodic_callbacks.get(name):
            callback.callback_time = 1000 * PERIOD_S
