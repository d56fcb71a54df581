"""Workers on all nodes of the SLURM job that Snakemake runs in: ``srun`` starts them as a step of that job.

The scheduler is in the supervisor, and so needs no daemon outside the job. Each worker runs under
`chunkcal.cluster.guard`, which kills it when its standard input ends. srun passes that on from the supervisor, however
this one dies; and whatever happens, SLURM ends the step with the job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shlex
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Scheduler

from chunkcal.cluster import tls
from chunkcal.cluster.backends.base import Cluster, shared_folder
from chunkcal.cluster.backends.ownscheduler import (
    guarded,
    require_interface,
    scheduler_options,
    served_by,
    worker_options,
)
from chunkcal.cluster.state import ClusterError

log = logging.getLogger("chunkcal.allocation")

# For srun to end after its workers have: less than the supervisor gives itself.
END_TIMEOUT_S = 3.0
RETRY_S = 1.0
# What srun adds after the reason itself.
_AFTERMATH = re.compile(r"srun: (error: .*: tasks? .*(Exited|Terminated|Killed)|Terminating|launch/)")


@asynccontextmanager
async def open_allocation(
    settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]
) -> AsyncIterator[Cluster]:
    """Start ``processes_per_node`` workers on every node of this SLURM job, each one slot."""
    job = os.environ
    if "SLURM_JOB_ID" not in job:
        raise ClusterError(
            "cluster.backend allocation runs inside a SLURM job, and this is none: put the snakemake line into a batch "
            "script for sbatch, or type it after salloc; outside of jobs take cluster.backend slurm or local"
        )
    own = settings["allocation"]
    require_interface("cluster.allocation.interface", own["interface"])
    place = {"interface": own["interface"]} if own["interface"] else {}
    with shared_folder(folder) as shared:
        security = tls.make_security(shared)
        dask.config.set(tls.as_configuration(security))
        async with (
            Scheduler(**scheduler_options(settings, security), **place) as scheduler,
            Client(
                scheduler.address, security=security, asynchronous=True, set_as_default=False, name="supervisor"
            ) as client,
        ):
            options = worker_options(settings, shared) | place
            step = _Step(srun_argv(settings, job, scheduler.address, options), scheduler)
            keeper = asyncio.ensure_future(step.keep())
            cluster = served_by(settings, scheduler, client, changed)

            async def workers() -> dict[str, Mapping[str, float]]:
                if keeper.done():
                    keeper.result()  # raises why there will be no workers
                found = await cluster.workers()
                step.had_workers = step.had_workers or bool(found)
                return found

            try:
                yield replace(cluster, workers=workers)
            finally:
                keeper.cancel()
                await asyncio.wait([keeper])
                await step.end()


def srun_argv(
    settings: Mapping[str, Any], job: Mapping[str, str], scheduler: str, worker: Mapping[str, Any]
) -> list[str]:
    """Build the command that starts the workers.

    Parameters
    ----------
    settings
        The ``cluster`` section.
    job
        Environment of a SLURM job.
    scheduler
        Address of the scheduler.
    worker
        Options of each worker's nanny.

    Raises
    ------
    ClusterError
        A node of the job has too few CPUs for a single slot.
    """
    own, threads = settings["allocation"], settings["threads_per_slot"]
    n_nodes = int(job["SLURM_JOB_NUM_NODES"])
    per_node = own["processes_per_node"]
    if per_node == "auto":
        n_cpus = fewest_cpus(job["SLURM_JOB_CPUS_PER_NODE"])
        per_node = n_cpus // threads
        if not per_node:
            raise ClusterError(
                f"a node of SLURM job {job['SLURM_JOB_ID']} has {n_cpus} CPU(s) and cluster.threads_per_slot is "
                f"{threads}; ask for more (sbatch --cpus-per-task), or lower threads_per_slot"
            )
    python = shlex.split(own["python"] or sys.executable)
    return [
        "srun",
        # A step beside others: the batch script's own, and perhaps that of a supervisor that was killed.
        "--overlap",
        "--kill-on-bad-exit=0",  # one lost worker is no reason to end the others
        "--export=ALL",
        f"--nodes={n_nodes}",
        f"--ntasks={n_nodes * per_node}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={threads}",
        "--mem=0",  # all of the job's memory, shared by its slots
        "--job-name=chunkcal-workers",
        *own["srun_args"],
        *guarded(python),
        *("-m", "distributed.cli.dask_spec", scheduler),
        *("--spec", json.dumps({"cls": "distributed.Nanny", "opts": worker})),
    ]


def fewest_cpus(per_node: str) -> int:
    """Return the CPUs of the smallest node, from SLURM's notation for all: ``16(x2),8`` is 16, 16 and 8."""
    return min(int(re.match(r"\d+", group)[0]) for group in per_node.split(","))


class _Step:
    """The job step with the workers.

    Attributes
    ----------
    had_workers
        Whether any worker has come up since srun was started last; told by who looks at the cluster.
    """

    def __init__(self, argv: list[str], scheduler: Scheduler) -> None:
        self.had_workers = False
        self._argv = argv
        self._scheduler = scheduler
        self._srun: asyncio.subprocess.Process | None = None
        self._said: deque[str] = deque(maxlen=20)

    async def keep(self) -> None:
        """Run the step; again if it ends after it has had workers.

        Raises
        ------
        ClusterError
            It ended without any.
        """
        while True:
            self.had_workers = False
            status = await self._run()
            if not self.had_workers:
                raise ClusterError(f"srun ended with status {status} before any worker came up: {self._reason()}")
            log.warning("srun has ended with status %d", status)
            while self._scheduler.workers:  # they outlive an srun that was killed; a second step would share their CPUs
                await asyncio.sleep(RETRY_S)
            log.warning("starting the workers again")

    async def _run(self) -> int:
        environment = os.environ | {"DASK_INTERNAL_INHERIT_CONFIG": dask.config.serialize(dask.config.global_config)}
        try:
            # The pipe to standard input is what the workers' guards hold on to.
            self._srun = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=environment,
            )
        except OSError as error:
            raise ClusterError(f"srun, which starts the workers, cannot be run: {error.strerror}") from error
        async for line in self._srun.stdout:
            self._said.append(line.decode(errors="replace").rstrip())
            log.info("%s", self._said[-1])
        return await self._srun.wait()

    def _reason(self) -> str:
        lines = [line for line in self._said if line and not _AFTERMATH.match(line)]
        return lines[-1] if lines else "it said nothing"

    async def end(self) -> None:
        """End the workers, and srun with them."""
        if self._srun is None or self._srun.returncode is not None:
            return
        self._srun.stdin.close()
        try:
            await asyncio.wait_for(self._srun.wait(), END_TIMEOUT_S)
        except TimeoutError:
            self._srun.kill()
