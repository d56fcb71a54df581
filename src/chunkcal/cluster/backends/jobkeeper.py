"""Keeps as many worker jobs alive as are wanted, and knows what becomes of each.

dask-jobqueue submits jobs and cancels them. What it leaves to its user: a job that ends is not replaced, one that never
brings a worker is waited for without end, and so is one that could not be submitted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from dask_jobqueue.core import Job, JobQueueCluster
from distributed.deploy import Adaptive

from chunkcal.cluster.backends.batch import BatchJob, log_tail
from chunkcal.cluster.state import ClusterError

log = logging.getLogger("chunkcal.jobs")

# How often the batch system is asked for the jobs of this run.
POLL_S = 5.0
# And how long after the start for the first time: the jobs are being submitted.
FIRST_LOOK_S = 2.0
# So many jobs in a row that bring no worker mean that the next one will not either.
MAX_DEAD_IN_A_ROW = 3
# With other workers alive the run goes on without them, and tries again after so long.
TRY_AGAIN_S = 300.0
# An adaptive cluster gives up a job that has been idle for so long.
IDLE_JOB_S = 60.0


class _Demand(Adaptive):
    """Scales to what the supervisor wants: it hands dask no more tasks than there are slots, so dask cannot know."""

    wanted = 0

    async def target(self) -> int:
        return self.wanted


class JobKeeper:
    """Owner of the worker jobs of one run.

    Parameters
    ----------
    cluster
        dask-jobqueue's object, running.
    system
        The batch system, see `chunkcal.cluster.backends.batch`.
    name
        Of this run's jobs.
    logs
        Folder that the jobs write their logs to.
    job
        The section ``cluster.job``.
    """

    def __init__(self, cluster: JobQueueCluster, system: Any, name: str, logs: Path, job: Mapping[str, Any]) -> None:
        self.cluster = cluster
        self.system = system
        self.name = name
        self.logs = logs
        self.n_processes: int = job["n_processes"]
        self.n_jobs: int = job["n_jobs"]
        self.walltime_s: float = job["walltime_min"] * 60
        self.adaptive: _Demand | None = None
        self.limits = (job["min_jobs"], job["max_jobs"])
        self.queue: dict[str, BatchJob] = {}
        self.has_looked = False
        self.ids: set[str] = set()  # of all jobs ever submitted
        self.served: set[str] = set()  # jobs that have brought a worker
        self.seen_running: dict[str, float] = {}
        self.dead: list[str] = []  # jobs in a row that have brought none, or why they could not be submitted
        self.last_death = -math.inf
        self.retiring: set[asyncio.Task] = set()

    @asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Submit the jobs and keep them; at the end there is none left in the queue."""
        if self.limits[1] is None:
            self.cluster.scale(jobs=self.n_jobs)
        else:
            minimum, maximum = self.limits
            self.adaptive = self.cluster.adapt(
                minimum_jobs=minimum,
                maximum_jobs=maximum,
                Adaptive=_Demand,
                interval=f"{POLL_S}s",
                wait_count=round(IDLE_JOB_S / POLL_S),
            )
        loop = asyncio.ensure_future(self._keep())
        try:
            yield
        finally:
            loop.cancel()
            if self.adaptive:
                self.adaptive.stop(reason="the run ends")
            await self._cancel_all()

    async def _cancel_all(self) -> None:
        """Cancel by one command; dask-jobqueue, which has one command per job, then finds nothing left to cancel."""
        self._note_ids()
        await self.system.cancel(self.name, sorted(self.ids))
        # A submission that was under way is waited for and cancelled by dask-jobqueue itself, by its id.
        for job in self.cluster.workers.values():
            job.job_id = None

    async def _keep(self) -> None:
        await asyncio.sleep(FIRST_LOOK_S)
        while True:
            try:
                await self._look()
            except Exception:  # the next look may succeed, and the run must not lose its keeper
                log.exception("looking after the jobs failed")
            await asyncio.sleep(POLL_S)

    def _note_ids(self) -> None:
        self.ids |= {job.job_id for job in self.cluster.workers.values() if job.job_id}

    async def _look(self) -> None:
        # Taken before the question: a job submitted meanwhile is not missed in the answer.
        jobs: dict[str, Job] = dict(self.cluster.workers)
        self._note_ids()
        found = await self.system.jobs(self.name, sorted({job.job_id for job in jobs.values() if job.job_id}))
        if found is None:
            return
        self.queue = {job.id: job for job in found}
        self.has_looked = True
        now = time.time()
        for job in found:
            if job.running:
                self.seen_running.setdefault(job.id, now)
        self.note_served()
        for name, job in jobs.items():
            if getattr(job, "refusal", None):
                self._bury(name, f"a job could not be submitted: {job.refusal}")
            elif job.job_id and job.job_id not in self.queue:
                await self._replace(name, job.job_id)
        if self.adaptive is None:
            self.cluster.scale(jobs=self.n_jobs)  # opens what is in the specification and no more among the workers

    def note_served(self) -> None:
        """Take note of the jobs that have brought a worker; to be called when one has come."""
        for worker in self.cluster.scheduler.workers.values():
            job = self._job_of(worker.name)
            if job and job.job_id and job.job_id not in self.served:
                self.served.add(job.job_id)
                self.dead.clear()

    def _job_of(self, worker: str) -> Job | None:
        """Find the job of a worker: it has the worker's name, without the process's number if there are several."""
        return self.cluster.workers.get(worker if self.n_processes == 1 else worker.rpartition("-")[0])

    async def _replace(self, name: str, job_id: str) -> None:
        """Have a job that has ended replaced by another one of the same name."""
        if job_id not in self.served:
            self._bury(name, f"job {job_id} ended before its worker came up", job_id)
            return
        scheduler = self.cluster.scheduler
        for worker in list(scheduler.workers.values()):
            if self._job_of(worker.name) is self.cluster.workers.get(name):
                # On a node that has gone silent: its connection may stay open, and its name taken, for minutes.
                await scheduler.remove_worker(worker.address, stimulus_id=f"job-{job_id}-ended")
        log.info("job %s has ended; it is replaced", job_id)
        self.cluster.workers.pop(name, None)

    def _bury(self, name: str, why: str, job_id: str | None = None) -> None:
        """Take note of a job that has brought no worker; let another one take its place unless that is hopeless."""
        now = time.monotonic()
        if self._is_hopeless() and now - self.last_death < TRY_AGAIN_S:
            return
        text = why + (log_tail(self.logs, job_id) if job_id else "")
        log.warning("%s", text)
        self.dead.append(text)
        self.last_death = now
        if not self._is_hopeless():
            self.cluster.workers.pop(name, None)

    def _is_hopeless(self) -> bool:
        most = self.n_jobs if self.limits[1] is None else self.limits[1]
        return len(self.dead) >= min(MAX_DEAD_IN_A_ROW, most + 1)

    def ends(self) -> dict[str, float]:
        """Return when each worker's allocation ends, in Unix time, by the worker's address."""
        result = {}
        for worker in self.cluster.scheduler.workers.values():
            job = self._job_of(worker.name)
            if job is None or job.job_id is None:
                continue
            known = self.queue.get(job.job_id)
            # Until the batch system has told: not later than if the job had begun with its worker.
            began = self.seen_running.get(job.job_id, time.time()) - POLL_S
            result[worker.address] = (known and known.end) or began + self.walltime_s
        return result

    def want(self, n_runs: int) -> None:
        """Have enough workers for `n_runs` DP3 runs at a time, within the limits of an adaptive cluster."""
        if self.adaptive:
            self.adaptive.wanted = n_runs

    def retire(self, address: str) -> None:
        """Close a worker; when it was the last one of its job, the job ends and is replaced."""
        task = asyncio.ensure_future(self._retire(address))
        self.retiring.add(task)
        task.add_done_callback(self.retiring.discard)

    async def _retire(self, address: str) -> None:
        await self.cluster.scheduler.retire_workers(workers=[address], close_workers=True, remove=True)

    def waiting(self) -> str | None:
        """Say how many jobs bring no worker yet, with the batch system's own reasons.

        Raises
        ------
        ClusterError
            No worker is left, and the last jobs have ended without bringing one.
        """
        if self._is_hopeless() and not self.cluster.scheduler.workers:
            raise ClusterError(self.dead[-1])
        if not self.has_looked:
            return None
        if not self.queue:
            return f"{self.system.title} has no job of this run" + (f"; {self.dead[-1]}" if self.dead else "")
        return describe(self.system.title, list(self.queue.values()), self.served)


def describe(title: str, jobs: list[BatchJob], served: set[str]) -> str:
    """Say in one line what a batch system still owes: jobs that wait, with its reasons, and jobs without a worker."""
    pending = [job for job in jobs if job.pending]
    reasons = sorted({job.reason for job in pending if job.reason})
    starts = [job.start for job in pending if job.start]
    parts = []
    if pending:
        parts.append(f"{len(pending)} job(s) pending" + (f" ({', '.join(reasons)})" if reasons else ""))
    if starts:
        parts.append(f"first expected to start at {time.strftime('%Y-%m-%d %H:%M', time.localtime(min(starts)))}")
    starting = [job for job in jobs if job.running and job.id not in served]
    if starting:
        parts.append(f"{len(starting)} job(s) running whose workers are not up yet")
    return f"{title}: " + (", ".join(parts) or "all jobs run")
