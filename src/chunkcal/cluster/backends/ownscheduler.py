"""The scheduler in the supervisor's own process: what the backends that start workers themselves have in common.

There it dies with the supervisor, and workers that lose their scheduler end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distributed import Client, Scheduler
from distributed.security import Security
from distributed.utils import get_ip_interface

from chunkcal.cluster import quiet
from chunkcal.cluster.backends.base import Cluster, Watch
from chunkcal.cluster.state import ClusterError

# A worker that does not find its scheduler, or loses it for good, ends after this long.
DEATH_TIMEOUT_S = 60


def require_interface(key: str, name: str | None) -> None:
    """Refuse a network interface that this machine, where the scheduler is to listen, has not.

    Raises
    ------
    ClusterError
        Naming the configuration key and the interfaces that there are.
    """
    try:
        if name:
            get_ip_interface(name)
    except ValueError as error:
        raise ClusterError(f"{key}: on the machine of the scheduler, which is this one, {error}") from error


def scheduler_options(settings: Mapping[str, Any], security: Security) -> dict[str, Any]:
    """Give the options of a scheduler that only processes with the run's certificate can talk to."""
    return {
        "protocol": "tls://",
        "security": security,
        "port": 0,
        "dashboard_address": settings["dashboard_address"],
    }


def worker_options(settings: Mapping[str, Any], shared: Path) -> dict[str, Any]:
    """Give the options of a nanny whose worker is one slot, as they can be written in a command line.

    Its HTTP port listens on loopback only: without an address it would listen on all interfaces, whatever else is
    said. DP3 is a process of its own, so dask's memory manager has nothing to look after; nor is anything spilled into
    the local directory, which may therefore lie in the run's shared folder and go with it.
    """
    return {
        "nthreads": settings["threads_per_slot"],
        "resources": {settings["resource"]: 1},
        "protocol": "tls://",
        "dashboard_address": "127.0.0.1:0",
        "memory_limit": 0,
        "death_timeout": DEATH_TIMEOUT_S,
        "local_directory": str(shared),
    }


def guarded(python: list[str]) -> list[str]:
    """Give the words that run `python` so that it dies, with all it has started, when their standard input ends."""
    return [*python, "-m", "chunkcal.cluster.guard", *python]


def served_by(
    settings: Mapping[str, Any], scheduler: Scheduler, client: Client, changed: Callable[[], None]
) -> Cluster:
    """Describe the cluster around a scheduler of this process; `changed` is called when workers come and go."""
    scheduler.add_plugin(Watch(changed))
    quiet.look_less(scheduler)

    async def workers() -> dict[str, Mapping[str, float]]:
        return {worker.address: worker.resources for worker in scheduler.workers.values()}

    # The client would name the scheduler's host, but the dashboard may listen on that host's loopback only.
    host = settings["dashboard_address"].rpartition(":")[0]
    host = socket.gethostname() if host in ("", "0.0.0.0") else host
    dashboard = f"http://{host}:{scheduler.services['dashboard'].port}/status"
    return Cluster(client, workers, scheduler.address, dashboard)
