"""The ways to get a dask cluster. Each makes one of the library's own objects and adds nothing to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed import Client, LocalCluster
from distributed.diagnostics.plugin import SchedulerPlugin

from chunkcal.cluster.state import ClusterError
from chunkcal.cluster.tls import make_security


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
    """

    client: Client
    workers: Callable[[], Any]
    address: str
    dashboard: str | None


@asynccontextmanager
async def open_cluster(
    settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]
) -> AsyncIterator[Cluster]:
    """Bring up the cluster that the ``cluster`` section asks for, or connect to it.

    Parameters
    ----------
    settings
        The validated section.
    folder
        State folder of the run.
    changed
        Called when a worker has come or gone, by backends that notice it at once.
    """
    async with BACKENDS[settings["backend"]](settings, folder, changed) as cluster:
        yield cluster


@asynccontextmanager
async def _local(settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]) -> AsyncIterator[Cluster]:
    """Workers are processes of this machine, each with ``threads_per_slot`` threads and one unit of ``resource``."""
    security = make_security(folder)
    async with (
        LocalCluster(
            n_workers=settings["n_slots"],
            threads_per_worker=settings["threads_per_slot"],
            processes=True,
            resources={settings["resource"]: 1},
            host="127.0.0.1",
            protocol="tls://",
            security=security,
            # Port 0 and loopback for both: None opens a port all the same, a worker's even on all interfaces.
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            # DP3 is a process of its own that dask's memory manager cannot see.
            memory_limit=0,
            local_directory=str(folder),
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        scheduler = cluster.scheduler
        scheduler.add_plugin(_Watch(changed))

        async def workers() -> dict[str, Mapping[str, float]]:
            return {worker.address: worker.resources for worker in scheduler.workers.values()}

        yield Cluster(client, workers, cluster.scheduler_address, cluster.dashboard_link or None)


@asynccontextmanager
async def _existing(settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]) -> AsyncIterator[Cluster]:
    """Connect to a cluster that the user has started; its TLS settings are those of dask's own configuration."""
    address = settings["address"]
    timeout = settings["start_timeout_s"]
    try:
        client = await Client(address, asynchronous=True, set_as_default=False, timeout=timeout)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"no dask scheduler answers at cluster.address {address}: {error}") from error

    async def workers() -> dict[str, Mapping[str, float]]:
        try:
            identity = await client.scheduler.identity(n_workers=-1)
        except OSError:  # the scheduler has gone, and its workers with it
            return {}
        return {worker: found["resources"] for worker, found in identity["workers"].items()}

    async with client:
        yield Cluster(client, workers, address, client.dashboard_link or None)


class _Watch(SchedulerPlugin):
    """Tells when workers come and go."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def add_worker(self, **_: Any) -> None:
        self.changed()

    def remove_worker(self, **_: Any) -> None:
        self.changed()


BACKENDS = {"local": _local, "existing": _existing}
