"""The one process of a run that owns scheduler, workers and submit socket (``python -m ...supervisor FOLDER``).

It ends when it is asked to, when the run's Snakemake process dies (however), or when nothing was asked of it for
``idle_timeout_s``. With it go its workers, with them their guards, with those every DP3.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import logging
import math
import os
import re
import resource as rusage
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dask

from chunkcal.cluster import jobs, layout, quiet, state
from chunkcal.cluster.attempts import Attempts
from chunkcal.cluster.backends import Cluster, open_cluster
from chunkcal.cluster.slots import Slots
from chunkcal.cluster.state import ClusterError

log = logging.getLogger("chunkcal.supervisor")

# Workers that are there but own no slot were started wrongly: waiting longer would not help.
WRONG_WORKERS_S = 5.0
HEALTH_PERIOD_S = 0.5
# How often the user is told what the batch system still owes.
NOTICE_PERIOD_S = 60.0
# dask's own count of deaths is not ours, which is per chunk: workers that die together must not use it up.
DASK_ALLOWED_FAILURES = 30


class Supervisor:
    """Owns the cluster of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = self._settle_layout()
        self.owner: dict[str, Any] = run["owner"]
        self.of_jobs = {"output_dir": run["output_dir"], "on_bad_chunk": run["settings"].get("on_bad_chunk")}
        self.cluster_settings: dict[str, Any] = run["settings"]["cluster"]
        self.resource: str = self.cluster_settings["resource"]
        self.stopping = asyncio.Event()
        self.close_timeout_s = state.close_timeout_s(self.cluster_settings["backend"])
        self.slots = Slots(self.live_slots)
        self.attempts = Attempts(self.slots, self.cluster_settings, run["settings"]["dp3"], self._noted)
        self.last_used = time.monotonic()
        self.n_requests = 0
        # What is asked for, until it is verified: name -> log and since when; what has a slot; time in slots by stage.
        self.asked: dict[str, tuple[str, float]] = {}
        self.running: dict[str, float] = {}
        self.finished: dict[str, list[float]] = {}
        self.cluster: Cluster = None
        self.workers: dict[str, Any] = {}
        self.retired: set[str] = set()
        self.next_notice = 0.0

    def _settle_layout(self) -> dict[str, Any]:
        """Read what the run wants; choose, and tell, the layout if that has waited for the plan."""
        run = state.read_json(self.folder / "run.json")
        plans = state.read_json(Path(run["output_dir"], "plan", "observations.json")) or {}
        settings = run["settings"]
        settings["cluster"], note = layout.settle(settings["cluster"], layout.memory_mb(plans.values()))
        if note:
            state.write_json(self.folder / "run.json", run)
            self.notice(note)
        return run

    def live_slots(self) -> dict[str, float]:
        """Find the live workers that own a unit of the resource, and how many seconds each will last."""
        ends, now = self.cluster.ends(), time.time()
        return {
            worker: ends.get(worker, math.inf) - now
            for worker, resources in self.workers.items()
            if resources.get(self.resource) and worker not in self.retired
        }

    def count_slots(self) -> int:
        """Count the live slots."""
        return len(self.live_slots())

    async def look(self) -> None:
        """Take note of the live workers, hand free slots to those who wait, and tell the cluster how many do."""
        before = self.workers
        self.workers = await self.cluster.workers()
        self.attempts.lose_all_but({*before, *self.workers})  # twice absent, because one look may fail
        self.retired &= set(self.workers)
        self.slots.wake()
        self.cluster.want(len(self.asked))
        for worker in self.slots.too_short():
            log.info("worker %s ends before any waiting chunk would; it is given up", worker)
            self.retired.add(worker)
            self.cluster.retire(worker)

    def status(self) -> dict[str, Any]:
        """Describe what is going on; see `client.status`."""
        now = time.monotonic()
        tasks: dict[str, list[dict[str, Any]]] = {"running": [], "waiting": []}
        for name, (path, asked) in self.asked.items():
            if name in self.attempts.verifying:
                continue
            since = self.running.get(name)
            what, since = ("waiting", asked) if since is None else ("running", since)
            tasks[what].append({"name": name, "log": path, "seconds": now - since})
        return {
            "n_slots": self.count_slots(),
            "dashboard": self.cluster.dashboard,
            "finished": self.finished,
            **tasks,
        }

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
            loop.call_later(self.close_timeout_s, _die)
        used = rusage.getrusage(rusage.RUSAGE_SELF)
        log.info("stopped after %d requests, CPU-s: %.2f", self.n_requests, used.ru_utime + used.ru_stime)

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
            loop.call_later(self.close_timeout_s, _die)

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
            waiting = self._notice_what_is_waited_for()
            if self._only_wrong_workers():
                wrong_since = wrong_since or time.monotonic()
                if time.monotonic() - wrong_since > WRONG_WORKERS_S:
                    raise ClusterError(self._wrong_workers())
            if waited > timeout:
                if self._only_wrong_workers():
                    raise ClusterError(self._wrong_workers())
                reason = f": {waiting}" if waiting else ""
                raise ClusterError(f"no worker came up within cluster.start_timeout_s = {timeout:g} s{reason}")
            # A cluster on this machine is there in a moment; a batch system may take hours.
            await asyncio.sleep(0.02 if waited < 10 else HEALTH_PERIOD_S)
        problem = self._wrong_units()
        if problem:
            raise ClusterError(problem)

    def _notice_what_is_waited_for(self) -> str | None:
        """Tell the user, now and then, what the batch system still owes while there is no slot at all."""
        waiting = self.cluster.waiting()
        if waiting and time.monotonic() >= self.next_notice:
            self.next_notice = time.monotonic() + NOTICE_PERIOD_S
            self.notice(waiting)
        return waiting

    def notice(self, text: str) -> None:
        """Say something to the user: in the log, and on the terminal of whoever waits for the cluster to start."""
        log.info("%s", text)
        with (self.folder / "notices").open("a") as file:
            file.write(text + "\n")

    def _only_wrong_workers(self) -> bool:
        """Tell whether there are workers but none owns the resource."""
        return bool(self.workers) and not any(owned.get(self.resource) for owned in self.workers.values())

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

    def _dashboard_line(self) -> str | None:
        """Tell how to look at a dashboard that listens on this machine's loopback only."""
        place = re.match(r"https?://127\.0\.0\.1:(\d+)", self.cluster.dashboard or "")
        if place is None or self.cluster_settings["backend"] in ("local", "existing"):
            return None
        return f"dashboard: ssh -L 8787:127.0.0.1:{place[1]} {socket.gethostname()}, then http://127.0.0.1:8787/status"

    async def _serve(self) -> None:
        dashboard_line = self._dashboard_line()
        if dashboard_line:
            self.notice(dashboard_line)
        announcement = {
            "pid": os.getpid(),
            "backend": self.cluster_settings["backend"],
            "scheduler": self.cluster.address,
            "dashboard": self.cluster.dashboard,
        }
        # Before the socket, so that who has a connection knows whose.
        state.write_json(self.folder / "supervisor.json", announcement)
        submit = self.folder / "submit"
        server = await asyncio.start_unix_server(self._answer, submit)
        os.chmod(submit, 0o600)
        threads = self.cluster_settings["threads_per_slot"]
        log.info(
            "up: pid %d, scheduler %s, %d slot(s) of %d thread(s), dashboard %s",
            *(os.getpid(), self.cluster.address, self.count_slots(), threads, self.cluster.dashboard),
        )
        try:
            await self._watch_health()
        finally:
            server.close()
            (self.folder / "supervisor.json").unlink(missing_ok=True)

    async def _watch_health(self) -> None:
        """Return when it is time to stop; fail those who wait for slots that will not come back."""
        without_slots_since: float | None = None
        while not self.stopping.is_set():
            try:
                await asyncio.wait_for(self.stopping.wait(), HEALTH_PERIOD_S)
            except TimeoutError:
                pass
            now = time.monotonic()
            if self.asked:
                self.last_used = now
            elif now - self.last_used > self.cluster_settings["idle_timeout_s"]:
                self.stop("idle")
            await self.look()
            problem = self._wrong_units()
            if problem:
                self.slots.fail(ClusterError(problem))
            if self.count_slots() or not self.asked:
                without_slots_since = None
                continue
            without_slots_since = without_slots_since or now
            try:
                waiting = self._notice_what_is_waited_for()
            except ClusterError as error:
                self._give_up(str(error))
                continue
            if self._only_wrong_workers() and now - without_slots_since > WRONG_WORKERS_S:
                self._give_up(self._wrong_workers())
            elif now - without_slots_since > self.cluster_settings["start_timeout_s"]:
                reason = f": {waiting}" if waiting else ""
                self._give_up(f"all workers are gone and none came back within cluster.start_timeout_s{reason}")

    def _give_up(self, reason: str) -> None:
        """Fail all tasks, waiting and running."""
        self.slots.fail(ClusterError(reason))
        self.attempts.give_up(reason)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            length = int.from_bytes(await reader.readexactly(4), "big")
            what, *words = state.unpack(await reader.readexactly(length))
            if what == "stop":
                self.stop("asked to")
            elif what == "status":
                writer.write(state.pack(json.dumps(self.status())))
            elif what == "run":
                writer.write(await self._run_while_wanted(jobs.task_of(*words), reader, writer))
            await writer.drain()
        except (ConnectionError, EOFError, ValueError):
            pass  # the other end has gone, or never finished what it said: there is nobody to answer
        finally:
            writer.close()

    async def _run_while_wanted(
        self, task: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes:
        """Do what a job asks for, and give the answer; none when the client goes away or the supervisor stops."""
        name = task["name"]
        job = jobs.Job(task, self._run, lambda text: writer.write(state.pack("tell", text)), **self.of_jobs)
        self.asked[name] = (task["log"], time.monotonic())
        work = asyncio.ensure_future(job.make())
        client_gone = asyncio.ensure_future(reader.read(1))
        stopping = asyncio.ensure_future(self.stopping.wait())
        await asyncio.wait({work, client_gone, stopping}, return_when=asyncio.FIRST_COMPLETED)
        client_gone.cancel()
        stopping.cancel()
        try:
            if not work.done():
                log.info("%s: given up", name)
                work.cancel()
                await asyncio.wait({work})
                return b""
            made = work.result()
        except ClusterError as error:
            return state.pack("error", str(error))
        finally:
            self.asked.pop(name, None)
        words = [str(self.owner[key]) for key in ("host", "pid", "start")]
        for one in made:
            words += [one["product"], one["record"].get("host", ""), state.json_text(one["record"])]
        return state.pack("made", *words)

    def _run(self, task: dict[str, Any]) -> Awaitable[dict[str, Any]]:
        self.n_requests += 1
        return self.attempts.run(task, self.n_requests, self.cluster)

    @asynccontextmanager
    async def _noted(self, name: str) -> AsyncIterator[None]:
        """Note for `status` that a task has a slot, and for how long it had it."""
        began = self.running[name] = time.monotonic()
        try:
            yield
            sums = self.finished.setdefault(name.partition(" ")[0], [0, 0.0])
            sums[0] += 1
            sums[1] += time.monotonic() - began
        finally:
            self.running.pop(name, None)  # a chunk that is asked for twice, while the first is being given up


def _die() -> None:
    """Take down what the graceful way has not: our session holds supervisor, nannies and workers."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


async def _supervise(folder: Path) -> None:
    await Supervisor(folder).main()


def main(folder: Path) -> int:
    """Run a supervisor; leave the reason in ``failure`` if it cannot come up."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("distributed").setLevel("WARNING")
    dask.config.set(
        {
            "distributed.scheduler.allowed-failures": DASK_ALLOWED_FAILURES,
            # A worker's job is replaced by its keeper, which knows what the batch system says of it.
            "distributed.deploy.lost-worker-timeout": "365 days",
            "distributed.scheduler.no-workers-timeout": None,  # we know better than dask what is worth waiting for
            "distributed.worker.profile.enabled": False,  # samples our waiting thread, for nothing
            "distributed.admin.low-level-log-length": 0,
            # Every process of dask watches itself 50 times a second; ours have long tasks, of which slots take care.
            "distributed.admin.tick.interval": "2s",
            "distributed.admin.system-monitor.interval": "5s",
            "distributed.client.scheduler-info-interval": "1h",  # for its pictures in notebooks
            # With it, what a worker has freed goes back to the system at once: verification would take twice as long.
            "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None,
            "distributed.scheduler.active-memory-manager.start": False,
            "distributed.scheduler.work-stealing": False,
        }
    )
    quiet.dask_setup()
    atexit.register(gc.freeze)  # the run's end waits for ours, of which 0.08 s of 0.1 would be to look for garbage
    try:
        asyncio.run(_supervise(folder))
    except ClusterError as error:
        log.error("%s", error)
        (folder / "failure").write_text(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
