"""A cluster that the user has started by hand."""

from __future__ import annotations

import os
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
    place = settings["scheduler_file"] or settings["address"]
    where = {"scheduler_file": place} if settings["scheduler_file"] else {"address": place}
    key = next(iter(where))
    if key == "scheduler_file" and not os.path.isfile(place):
        raise ClusterError(f"cluster.scheduler_file: there is no file {place}")
    timeout = settings["start_timeout_s"]
    try:
        client = await Client(**where, asynchronous=True, set_as_default=False, timeout=timeout)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"no dask scheduler answers at cluster.{key} {place}: {error}") from error

    async def workers() -> dict[str, Mapping[str, float]]:
        try:
            identity = await client.scheduler.identity(n_workers=-1)
        except OSError:  # the scheduler has gone, and its workers with it
            return {}
        return {worker: found["resources"] for worker, found in identity["workers"].items()}

    async with client:
        yield Cluster(client, workers, client.scheduler.address, client.dashboard_link or None)
