"""Workers as processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, utils

from chunkcal.cluster.backends.base import Cluster
from chunkcal.cluster.backends.ownscheduler import served_by
from chunkcal.cluster.tls import make_security

# What each worker would import for itself otherwise: more than a second of CPU.
_PRELOADED = ["distributed", "chunkcal.cluster.task"]
# A socket's path has at most 107 bytes (sockaddr_un); multiprocessing's has so many below the temporary directory.
_LONGEST_FOLDER = 107 - len("/pymp-12345678/listener-12345678")


def _fork_workers(folder: Path) -> None:
    """Let workers begin as copies of one process that has imported all they need, and is otherwise empty.

    Its socket lies in the run's `folder`, and goes with it; if that has too long a name, workers import for themselves.
    """
    if len(os.fsencode(folder)) > _LONGEST_FOLDER:
        return
    tempfile.tempdir = str(folder)
    # dask 2026 preloads pandas and whatever else it knows besides, once, unless it believes to have done it.
    utils._forkserver_preload_set = True
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})


def _end_fork_server() -> None:
    """End what workers were forked from. By itself it would end behind us, and take a while to tidy up its imports."""
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):  # of a thread that has ended; another one has inherited them
            for child in map(int, children.read_text().split()):
                if b"multiprocessing.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)


@asynccontextmanager
async def open_local(settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]) -> AsyncIterator[Cluster]:
    """Workers are processes of this machine, each with ``threads_per_slot`` threads and one unit of ``resource``."""
    security = make_security(folder)
    _fork_workers(folder)
    async with (
        LocalCluster(
            n_workers=settings["n_slots"],
            threads_per_worker=settings["threads_per_slot"],
            processes=True,
            resources={settings["resource"]: 1},
            host="127.0.0.1",
            protocol="tls://",
            security=security,
            # Addresses for both: None opens a port all the same, a worker's even on all interfaces.
            dashboard_address=settings["dashboard_address"],
            worker_dashboard_address="127.0.0.1:0",
            # DP3 is a process of its own that dask's memory manager cannot see.
            memory_limit=0,
            local_directory=str(folder),
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True, set_as_default=False) as client,
    ):
        yield served_by(settings, cluster.scheduler, client, changed)
    _end_fork_server()
