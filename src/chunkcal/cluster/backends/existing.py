"""A cluster that the user has started by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from chunkcal.cluster.backends.base import Cluster
from chunkcal.cluster.state import ClusterError


@asynccontextmanager
async def open_existing(
    settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]
) -> AsyncIterator[Cluster]:
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
