"""Runs each chunk as a dask task on a worker of its own, and again on another one when that worker is lost."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from distributed import Client, KilledWorker

from chunkcal.cluster.backends import Cluster
from chunkcal.cluster.dp3run import Cancelled
from chunkcal.cluster.durations import Durations
from chunkcal.cluster.remote import memory_limit, run_dp3, verify_dp3
from chunkcal.cluster.slots import Slots
from chunkcal.cluster.state import ClusterError

log = logging.getLogger("chunkcal.attempts")

# A batch system that ends an allocation may kill DP3 before its worker: for so long nothing new goes to that worker.
KILL_SETTLES_S = 3.0
# A connection tells sooner than the supervisor's looks that a worker has gone: so long its slot seems to be there. The
# longest is what `backends.existing` keeps an answer for, and a look.
LOSS_SETTLES_S = 3.0
# How long all workers together may take to tell how much memory they have; one that is dying may never answer.
MEMORY_ANSWERS_S = 10.0
# Machines of one kind differ by a few MB: another attempt is worth it on a worker with so many times the memory.
LARGER = 1.2
# A chunk is never said to need more of a new worker's life than this.
LIFETIME_SHARE = 0.9


class Attempts:
    """All tasks of one supervisor.

    Parameters
    ----------
    slots
        Where the workers come from.
    cluster_settings, dp3_settings
        The sections ``cluster`` and ``dp3`` of the configuration.
    noted
        Context that a task is in while it has a slot, by its name.
    """

    def __init__(
        self,
        slots: Slots,
        cluster_settings: Mapping[str, Any],
        dp3_settings: dict[str, Any],
        noted: Callable[[str], AbstractAsyncContextManager[None]] = lambda name: nullcontext(),
    ) -> None:
        self.slots = slots
        self.noted = noted
        self.limit: int = cluster_settings["worker_failures"]
        self.resource: str = cluster_settings["resource"]
        self.dp3_settings = dp3_settings
        self.durations = Durations()
        # Becomes the reason when no worker is left that could ever finish what is running.
        self.hopeless: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # Becomes done when the worker of something that runs has gone -> that worker.
        self.lost: dict[asyncio.Future[None], str] = {}
        # Names of those whose DP3 has ended, while what it made is verified.
        self.verifying: set[str] = set()

    def lose_all_but(self, workers: Collection[str]) -> None:
        """Take note that no other workers than these live."""
        for lost, worker in self.lost.items():
            if worker not in workers and not lost.done():
                lost.set_result(None)

    def give_up(self, reason: str) -> None:
        """Fail all tasks that run."""
        self.hopeless.set_result(reason)
        self.hopeless = asyncio.get_running_loop().create_future()

    async def run(self, request: dict[str, Any], number: int, cluster: Cluster) -> dict[str, Any]:
        """Run one task; again, a limited number of times, if its worker has died or somebody has killed its DP3.

        If DP3 had too little memory, again on a worker with more, if there is one.

        Parameters
        ----------
        request
            As of `chunkcal.cluster.jobs.task_of`.
        number
            Of the request, so that no two tasks have the same key.
        cluster
            To run it on.

        Returns
        -------
        dict
            ``result`` (what `verify_dp3` returned), or ``error`` (text for the user), with ``bad_chunk``, ``made`` or
            ``out_of_memory`` if it told. The attempts that had too little memory are ``attempts`` of the reply, or of
            the result's records.
        """
        limit, deaths = self.limit, 0
        starved: list[dict[str, Any]] = []
        larger: set[str] = set()
        try:
            for attempt in itertools.count():
                result = await self._run_once(request, f"{number}-{attempt}", attempt > 0, cluster, larger)
                if result.get("stage_by_stage"):
                    request = request | {"one_pass": None}
                    continue
                if result.get("out_of_memory"):
                    starved.append(result["attempt"])
                    larger = await self._larger(result["on"], cluster)
                    what = "it runs again on a worker with more" if larger else "no other worker has more"
                    log.warning("%s: out of memory on worker %s; %s", request["name"], result["on"], what)
                    if larger:
                        continue
                if not result.get("killed"):
                    break
                deaths += 1
                log.warning("%s: %s, attempt %d of %d", request["name"], result["why"], deaths, limit + 1)
                if deaths > limit:
                    break
        except ClusterError as error:
            return {"error": f"{request['name']}: {error}"}
        except Exception as error:  # a fault of ours: say it, with the traceback in the log, and go on
            log.exception("%s", request["name"])
            return {"error": f"{request['name']}: internal error: {error!r}"}
        if result.get("lost"):
            return {"error": f"{request['name']}: its worker died {limit + 1} times; log: {request['log']}"}
        if "error" in result:
            told = {key: result[key] for key in ("error", "bad_chunk", "made", "out_of_memory") if key in result}
            return told | ({"attempts": starved} if starved else {})
        if starved:
            for made in result.get("made", {"": result}).values():
                made["record"]["attempts"] = starved
        return {"result": result}

    async def _larger(self, worker: str, cluster: Cluster) -> set[str]:
        """Find the live workers that may use clearly more memory than `worker`: none if that cannot be told."""
        try:
            limits = await asyncio.wait_for(cluster.client.run(memory_limit, on_error="ignore"), MEMORY_ANSWERS_S)
        except (OSError, TimeoutError):
            return set()
        own = limits.get(worker)
        return {one for one in self.slots.live if own and limits.get(one, 0) >= LARGER * own}

    async def _run_once(
        self, request: dict[str, Any], suffix: str, again: bool, cluster: Cluster, workers: Set[str]
    ) -> dict[str, Any]:
        """Run one task on a worker of its own; on one of `workers` as long as any of them lives.

        What it has made is verified on the same worker, but not in its slot.

        Returns
        -------
        dict
            What `verify_dp3` or `run_dp3` returned, and ``on``, the worker; with ``killed``, and ``why`` for the log,
            if it is worth another attempt.
        """
        key = f"{request['name'].replace(' ', '/')}-{suffix}"
        stage = request["name"].split()[0]

        def needs_s() -> float:
            # Never more than a new worker can give, or the chunk would wait for ever.
            return min(self.durations.expected_s(stage), LIFETIME_SHARE * cluster.lifetime_s)

        def suits(worker: str) -> bool:
            return not workers or worker in workers or workers.isdisjoint(self.slots.live)

        async with self.slots.take(needs_s, again, suits) as worker, self.noted(request["name"]):
            began = time.monotonic()
            result = await self._run_on(worker, request, key, cluster.client) | {"on": worker}
            if result.get("killed") and worker in cluster.ends():
                await asyncio.sleep(KILL_SETTLES_S)
            elif "error" not in result:
                self.durations.add(stage, time.monotonic() - began)
        if "unverified" in result:
            self.verifying.add(request["name"])
            try:
                result = await self._verify_on(worker, request, result["unverified"], cluster.client) | {"on": worker}
            finally:
                self.verifying.discard(request["name"])
        return result

    async def _run_on(self, worker: str, request: dict[str, Any], key: str, client: Client) -> dict[str, Any]:
        future = client.submit(
            *(run_dp3, request, self.dp3_settings),
            key=key,
            pure=False,
            workers=[worker],
            resources={self.resource: 1},
        )
        work = asyncio.ensure_future(_result_of(future))
        try:
            return {"why": "DP3 was killed"} | await self._unless_lost(worker, work)
        finally:
            if not work.done():
                work.cancel()
                await client.cancel([future], force=True)
            future.release()

    async def _verify_on(
        self, worker: str, request: dict[str, Any], unverified: dict[str, Any], client: Client
    ) -> dict[str, Any]:
        # No task, of which a worker runs only as many as it has threads.
        work = asyncio.ensure_future(client.run(verify_dp3, request, self.dp3_settings, unverified, workers=[worker]))
        try:
            found = await self._unless_lost(worker, work)
        except OSError:  # the connection has ended, and so has the worker
            await asyncio.sleep(LOSS_SETTLES_S)
            return _gone(worker, "gone")
        finally:
            work.cancel()
        return found.get(worker, found)

    async def _unless_lost(self, worker: str, work: asyncio.Future[dict[str, Any]]) -> dict[str, Any]:
        """Wait for what runs on a worker, as long as that lives and there is hope."""
        hopeless = self.hopeless
        lost = asyncio.get_running_loop().create_future()
        self.lost[lost] = worker
        try:
            await asyncio.wait({work, hopeless, lost}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if hopeless.done():
                raise ClusterError(hopeless.result())
            return _gone(worker, "gone")
        except (KilledWorker, Cancelled):
            return _gone(worker, "going")
        finally:
            del self.lost[lost]


def _gone(worker: str, how: str) -> dict[str, Any]:
    return {"killed": True, "lost": True, "why": f"its worker {worker} is {how}"}


async def _result_of(future: Any) -> Any:
    return await future
