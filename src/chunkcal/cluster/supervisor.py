"""The one process of a run that owns scheduler, workers and submit socket (``python -m ...supervisor FOLDER``).

It ends when it is asked to, when the run's Snakemake process dies (however), or when nothing was asked of it for
``idle_timeout_s``. With it go its workers, with them their guards, with those every DP3.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource as rusage
import signal
import sys
import time
from pathlib import Path
from typing import Any

import dask
from distributed import KilledWorker

from chunkcal.cluster import state
from chunkcal.cluster.backends import Cluster, open_cluster
from chunkcal.cluster.slots import Slots
from chunkcal.cluster.state import ClusterError
from chunkcal.cluster.task import run_dp3

log = logging.getLogger("chunkcal.supervisor")

# Workers that are there but own no slot were started wrongly: waiting longer would not help.
WRONG_WORKERS_S = 5.0
HEALTH_PERIOD_S = 0.5
CLOSE_TIMEOUT_S = 5.0
REQUEST_LIMIT = 1 << 24  # bytes of one request line


class Supervisor:
    """Owns the cluster of one run."""

    def __init__(self, folder: Path) -> None:
        run = state.read_json(folder / "run.json")
        self.folder = folder
        self.owner: dict[str, Any] = run["owner"]
        self.cluster_settings: dict[str, Any] = run["settings"]["cluster"]
        self.dp3_settings: dict[str, Any] = run["settings"]["dp3"]
        self.resource: str = self.cluster_settings["resource"]
        self.stopping = asyncio.Event()
        self.slots = Slots(self.count_slots)
        # Becomes the reason when no worker is left that could ever finish what is running.
        self.hopeless: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.last_used = time.monotonic()
        self.n_requests = 0
        self.cluster: Cluster = None
        self.workers: dict[str, Any] = {}

    def count_slots(self) -> int:
        """Count the live workers that own a unit of the resource."""
        return sum(1 for resources in self.workers.values() if resources.get(self.resource))

    async def look(self) -> None:
        """Take note of the live workers, and hand free slots to those who wait."""
        self.workers = await self.cluster.workers()
        self.slots.wake()

    def stop(self, reason: str) -> None:
        """Begin to end, whatever is running."""
        if not self.stopping.is_set():
            log.info("stopping: %s", reason)
            self.stopping.set()

    async def main(self) -> None:
        """Bring the cluster up, serve it, and take it down."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, f"signal {number}")
        self._watch_owner(loop)
        looks: set[asyncio.Task] = set()  # kept, because the loop itself holds no tasks

        def changed() -> None:
            task = loop.create_task(self.look())
            looks.add(task)
            task.add_done_callback(looks.discard)

        async with open_cluster(self.cluster_settings, self.folder, changed) as self.cluster:
            await self._wait_for_slots()
            await self._serve()
            loop.call_later(CLOSE_TIMEOUT_S, _die)
        log.info("stopped after %d requests, %s", self.n_requests, _cpu_seconds())

    def _watch_owner(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            owner = os.pidfd_open(self.owner["pid"])
        except OSError:
            owner = -1
        if owner < 0 or not state.owner_is_alive(self.owner):
            raise ClusterError("the snakemake process of this run is gone")

        def gone() -> None:
            loop.remove_reader(owner)
            self.stop("the snakemake process of this run has ended")
            loop.call_later(CLOSE_TIMEOUT_S, _die)

        loop.add_reader(owner, gone)

    async def _wait_for_slots(self) -> None:
        timeout = self.cluster_settings["start_timeout_s"]
        began = time.monotonic()
        wrong_since: float | None = None
        while True:
            await self.look()
            if self.count_slots():
                break
            if self.stopping.is_set():
                raise ClusterError("stopped while starting")
            waited = time.monotonic() - began
            if self.workers:
                wrong_since = wrong_since or time.monotonic()
                if time.monotonic() - wrong_since > WRONG_WORKERS_S:
                    raise ClusterError(self._wrong_workers())
            if waited > timeout:
                if self.workers:
                    raise ClusterError(self._wrong_workers())
                raise ClusterError(f"no worker came up within cluster.start_timeout_s = {timeout:g} s")
            await asyncio.sleep(0.02)
        problem = self._wrong_units()
        if problem:
            raise ClusterError(problem)

    def _wrong_workers(self) -> str:
        return (
            f"none of the {len(self.workers)} workers owns the resource {self.resource}; start each with: "
            + self._worker_line()
        )

    def _wrong_units(self) -> str | None:
        for worker, resources in self.workers.items():
            units = resources.get(self.resource, 1)
            if units != 1:
                return (
                    f"worker {worker} owns {units:g} units of {self.resource}, so that as many DP3s would share its "
                    f"threads; start it with: {self._worker_line()}"
                )
        return None

    def _worker_line(self) -> str:
        threads = self.cluster_settings["threads_per_slot"]
        return f"dask worker {self.cluster.address} --nworkers 1 --nthreads {threads} --resources {self.resource}=1"

    async def _serve(self) -> None:
        socket = self.folder / "submit"
        server = await asyncio.start_unix_server(self._answer, socket, limit=REQUEST_LIMIT)
        os.chmod(socket, 0o600)
        announcement = {
            "socket": str(socket),
            "pid": os.getpid(),
            "scheduler": self.cluster.address,
            "dashboard": self.cluster.dashboard,
        }
        state.write_json(self.folder / "supervisor.json", announcement)
        threads = self.cluster_settings["threads_per_slot"]
        log.info(
            "up: pid %d, scheduler %s, %d slot(s) of %d thread(s), dashboard %s",
            *(os.getpid(), self.cluster.address, self.count_slots(), threads, self.cluster.dashboard),
        )
        try:
            await self._watch_health()
        finally:
            (self.folder / "supervisor.json").unlink(missing_ok=True)
            server.close()

    async def _watch_health(self) -> None:
        """Return when it is time to stop; fail those who wait for slots that will not come back."""
        without_slots_since: float | None = None
        while not self.stopping.is_set():
            try:
                await asyncio.wait_for(self.stopping.wait(), HEALTH_PERIOD_S)
            except TimeoutError:
                pass
            now = time.monotonic()
            if self.slots.n_busy or self.slots.n_waiting:
                self.last_used = now
            elif now - self.last_used > self.cluster_settings["idle_timeout_s"]:
                self.stop("idle")
            await self.look()
            problem = self._wrong_units()
            if problem:
                self.slots.fail(ClusterError(problem))
            if self.count_slots():
                without_slots_since = None
                continue
            without_slots_since = without_slots_since or now
            if self.workers and now - without_slots_since > WRONG_WORKERS_S:
                self._give_up(self._wrong_workers())
            elif now - without_slots_since > self.cluster_settings["start_timeout_s"]:
                self._give_up("all workers are gone and none came back within cluster.start_timeout_s")

    def _give_up(self, reason: str) -> None:
        """Fail all tasks, waiting and running."""
        self.slots.fail(ClusterError(reason))
        self.hopeless.set_result(reason)
        self.hopeless = asyncio.get_running_loop().create_future()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            message = json.loads(await reader.readline())
            if message["do"] == "stop":
                self.stop("asked to")
            elif message["do"] == "run":
                reply = await self._run_while_wanted(message["request"], reader)
                if reply is not None:
                    writer.write(json.dumps(reply).encode() + b"\n")
                    await writer.drain()
        except (ConnectionError, ValueError):
            pass  # the other end has gone, or never finished its line: there is nobody to answer
        finally:
            writer.close()

    async def _run_while_wanted(self, request: dict[str, Any], reader: asyncio.StreamReader) -> dict[str, Any] | None:
        """Run one task; give it up when the client goes away or the supervisor stops (then None)."""
        self.n_requests += 1
        work = asyncio.ensure_future(self._run(request))
        client_gone = asyncio.ensure_future(reader.read(1))
        stopping = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait({work, client_gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
        client_gone.cancel()
        stopping.cancel()
        if not work.done():
            log.info("%s: given up", request["name"])
            work.cancel()
            await asyncio.wait({work})
            return None
        return work.result()

    async def _run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one task; again, a limited number of times, if somebody has killed its DP3."""
        limit = self.cluster_settings["worker_failures"]
        try:
            for attempt in range(limit + 1):
                result = await self._run_once(request, attempt)
                if not result.get("killed"):
                    break
                log.warning("%s: DP3 was killed, attempt %d of %d", request["name"], attempt + 1, limit + 1)
        except ClusterError as error:
            return {"error": f"{request['name']}: {error}"}
        except KilledWorker:
            return {"error": f"{request['name']}: its worker died {limit + 1} times; log: {request['log']}"}
        except Exception as error:  # a fault of ours: say it, with the traceback in the log, and go on
            log.exception("%s", request["name"])
            return {"error": f"{request['name']}: internal error: {error!r}"}
        return result if "error" in result else {"result": result}

    async def _run_once(self, request: dict[str, Any], attempt: int) -> dict[str, Any]:
        key = f"{request['name'].replace(' ', '/')}-{self.n_requests}-{attempt}"
        client = self.cluster.client
        async with self.slots.take():
            future = client.submit(
                run_dp3, request, self.dp3_settings, key=key, pure=False, resources={self.resource: 1}
            )
            work = asyncio.ensure_future(_result_of(future))
            hopeless = self.hopeless
            try:
                await asyncio.wait({work, hopeless}, return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ClusterError(hopeless.result())
                return work.result()
            finally:
                if not work.done():
                    work.cancel()
                    await client.cancel([future], force=True)
                future.release()


async def _result_of(future: Any) -> Any:
    return await future


def _die() -> None:
    """Take down what the graceful way has not: our session holds supervisor, nannies and workers."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _cpu_seconds() -> str:
    own, children = (rusage.getrusage(who) for who in (rusage.RUSAGE_SELF, rusage.RUSAGE_CHILDREN))
    return f"CPU-s: own {own.ru_utime + own.ru_stime:.2f}, workers {children.ru_utime + children.ru_stime:.2f}"


async def _supervise(folder: Path) -> None:
    await Supervisor(folder).main()


def main(folder: Path) -> int:
    """Run a supervisor; leave the reason in ``failure`` if it cannot come up."""
    failures = state.read_json(folder / "run.json")["settings"]["cluster"]["worker_failures"]
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("distributed").setLevel("WARNING")
    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": failures,
            "distributed.scheduler.no-workers-timeout": None,  # we know better than dask what is worth waiting for
            "distributed.worker.profile.enabled": False,  # samples our waiting thread, for nothing
            "distributed.admin.low-level-log-length": 0,
        }
    )
    try:
        asyncio.run(_supervise(folder))
    except ClusterError as error:
        log.error("%s", error)
        (folder / "failure").write_text(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
