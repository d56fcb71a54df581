"""The ways to get a dask cluster. Each makes one of the library's own cluster objects and adds nothing to it."""

from __future__ import annotations

from typing import Any

from distributed import LocalCluster
from distributed.deploy.spec import SpecCluster


def make_cluster(settings: dict[str, Any], scratch: str) -> SpecCluster:
    """Make the cluster that the ``cluster`` section asks for; to be entered with ``async with``.

    Every worker is a process with ``threads_per_slot`` threads and one unit of ``resource``.
    """
    return BACKENDS[settings["backend"]](settings, scratch)


def _local(settings: dict[str, Any], scratch: str) -> LocalCluster:
    return LocalCluster(
        n_workers=settings["n_slots"],
        threads_per_worker=settings["threads_per_slot"],
        processes=True,
        resources={settings["resource"]: 1},
        host="127.0.0.1",
        # Port 0 and loopback for both: None opens a port all the same, a worker's even on all interfaces.
        dashboard_address="127.0.0.1:0",
        worker_dashboard_address="127.0.0.1:0",
        # DP3 is a process of its own that dask's memory manager cannot see.
        memory_limit=0,
        local_directory=scratch,
        asynchronous=True,
    )


BACKENDS = {"local": _local}
