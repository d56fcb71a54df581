"""The ways to get a dask cluster. Each makes one of the library's own objects and adds nothing to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from chunkcal.cluster.backends.allocation import open_allocation
from chunkcal.cluster.backends.base import Cluster
from chunkcal.cluster.backends.existing import open_existing
from chunkcal.cluster.backends.local import open_local
from chunkcal.cluster.backends.ssh import open_ssh


def _open_jobqueue(*arguments: Any) -> Any:
    """Import dask-jobqueue only where it is used."""
    from chunkcal.cluster.backends.jobqueue import open_jobqueue

    return open_jobqueue(*arguments)


BACKENDS = {
    "local": open_local,
    "existing": open_existing,
    "ssh": open_ssh,
    "allocation": open_allocation,
    "slurm": _open_jobqueue,
    "pbs": _open_jobqueue,
}


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
