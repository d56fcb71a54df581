"""What every way to get a cluster gives the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client


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
