"""A cluster that the user has started by hand."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from distributed import Client

from chunkcal.cluster.backends.base import Cluster
from chunkcal.cluster.remote import memory_limit
from chunkcal.cluster.state import ClusterError

# How long an answer of the scheduler is good for: each one costs it, and us, half a millisecond.
FRESH_S = 2.0


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

    seen: dict[str, Mapping[str, float]] = {}
    asked = 0.0

    async def workers() -> dict[str, Mapping[str, float]]:
        nonlocal seen, asked
        now = time.monotonic()
        if seen and now - asked < FRESH_S:
            return seen
        try:
            identity = await client.scheduler.identity(n_workers=-1)
        except OSError:  # the scheduler has gone, and its workers with it
            seen = {}
        else:
            seen, asked = {worker: found["resources"] for worker, found in identity["workers"].items()}, now
        return seen

    async with client:
        # While the plan is made they import what their first task would have to.
        importing = asyncio.ensure_future(client.run(memory_limit, on_error="ignore"))
        try:
            yield Cluster(client, workers, client.scheduler.address, client.dashboard_link or None)
        finally:
            importing.cancel()
