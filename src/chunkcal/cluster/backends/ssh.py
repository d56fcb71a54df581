"""Workers on hosts that are reached by ssh: `distributed.SSHCluster`, but with the scheduler in the supervisor.

`SSHCluster` would start a scheduler on the first host as well, where it outlives a supervisor that is killed, and the
workers with it. So its parts are put together here. What is started on a host runs under `chunkcal.cluster.guard`,
which kills it when its standard input ends. That is the ssh connection: sshd closes it however this side dies.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import distributed
from distributed import Client, Scheduler, SpecCluster
from distributed.deploy.ssh import Worker

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

log = logging.getLogger("chunkcal.ssh")

# A host that has been lost is tried again so often; a reboot takes minutes.
RETRY_S = 10.0
# For the workers to end: less than the supervisor gives itself.
END_TIMEOUT_S = 3.0
# Longest wait for a host to take the connection and to answer; a supervisor that is ready to wait for less says so.
CONNECT_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 60.0
# Runs on each host: what is wrong there is better said before workers fail for it.
CHECK = "import sys, distributed, chunkcal.cluster.task; open({key!r}).close(); print({versions})"
VERSIONS = "*sys.version_info[:2], distributed.__version__"


@dataclass(frozen=True)
class Host:
    """A host that answers.

    Attributes
    ----------
    name
        As the user wrote it.
    address, seen_from
        IP addresses of both ends of the ssh connection: the host's, and this machine's.
    """

    name: str
    address: str
    seen_from: str


@asynccontextmanager
async def open_ssh(settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]) -> AsyncIterator[Cluster]:
    """Start ``processes_per_host`` workers on each of ``cluster.ssh.hosts``, each one slot."""
    ssh = settings["ssh"]
    options = connect_options(ssh["connect_options"], settings["start_timeout_s"])
    with shared_folder(folder) as shared:
        security = tls.make_security(shared)
        hosts = await _check_hosts(ssh, options, shared)
        # Inherited by the workers, in their command lines.
        dask.config.set(tls.as_configuration(security))
        logging.getLogger("asyncssh").setLevel("WARNING")
        logging.getLogger("distributed.deploy.ssh").setLevel("INFO")  # what workers say while they start
        place = _scheduler_place(ssh, hosts)
        cluster = SpecCluster(
            scheduler={"cls": Scheduler, "options": scheduler_options(settings, security) | place},
            workers={host.name: _worker_spec(settings, host, options, shared) for host in hosts},
            security=security,
            asynchronous=True,
            name="ssh",
        )
        try:
            await cluster
        except Exception as error:  # the library has no exception of its own for this
            await cluster.close()
            raise ClusterError(f"the workers did not start on all of cluster.ssh.hosts: {error}") from error
        async with cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
            keepers = [asyncio.ensure_future(_keep(cluster, host.name)) for host in hosts]
            try:
                yield served_by(settings, cluster.scheduler, client, changed)
            finally:
                for keeper in keepers:
                    keeper.cancel()
                await asyncio.wait(keepers)
                await _end(cluster.workers.values())


def connect_options(given: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """Complete the user's options for `asyncssh.connect`, which also reads ``~/.ssh/config``."""
    timeout_s = min(CONNECT_TIMEOUT_S, timeout_s)
    # Keepalives: a host that has lost its power closes no connection.
    return {"connect_timeout": timeout_s, "login_timeout": timeout_s, "keepalive_interval": 15, **given}


def _scheduler_place(ssh: Mapping[str, Any], hosts: list[Host]) -> dict[str, str]:
    """Say where the scheduler listens, so that all hosts reach it."""
    if ssh["interface"]:
        require_interface("cluster.ssh.interface", ssh["interface"])
        return {"interface": ssh["interface"]}
    places = {host.seen_from for host in hosts}
    if len(places) > 1:
        raise ClusterError(
            f"the hosts of cluster.ssh.hosts are reached from several addresses of this machine ({', '.join(places)}); "
            "set cluster.ssh.interface to the network interface that reaches all of them, for instance eth0"
        )
    return {"host": places.pop()}


def _worker_spec(settings: Mapping[str, Any], host: Host, options: dict[str, Any], shared: Path) -> dict[str, Any]:
    ssh = settings["ssh"]
    place = {"interface": ssh["interface"]} if ssh["interface"] else {"host": host.address}
    return {
        "cls": Worker,
        "options": {
            "address": host.name,
            "connect_options": options,
            "remote_python": shlex.join(guarded(_python(ssh))),
            "worker_class": "distributed.Nanny",
            "kwargs": {"n_workers": ssh["processes_per_host"], **worker_options(settings, shared), **place},
        },
    }


def _python(ssh: Mapping[str, Any]) -> list[str]:
    return shlex.split(ssh["python"] or sys.executable)


async def _check_hosts(ssh: Mapping[str, Any], options: dict[str, Any], shared: Path) -> list[Host]:
    """Make sure that all hosts can serve.

    Raises
    ------
    ClusterError
        Naming each host that cannot, with the reason and the remedy.
    """
    checks = (_check_host(host, _python(ssh), options, shared) for host in ssh["hosts"])
    found = await asyncio.gather(*checks, return_exceptions=True)
    problems = [str(problem) for problem in found if isinstance(problem, ClusterError)]
    if problems:
        raise ClusterError("; ".join(problems))
    for other in found:
        if isinstance(other, BaseException):
            raise other
    return found


async def _check_host(host: str, python: list[str], options: dict[str, Any], shared: Path) -> Host:
    import asyncssh  # slow to import, and no other backend needs it

    key = str(shared / "tls-key.pem")
    check = shlex.join([*python, "-c", CHECK.format(key=key, versions=VERSIONS)])
    try:
        async with asyncssh.connect(host, **options) as connection:
            done = await connection.run(check, timeout=CHECK_TIMEOUT_S)
            address, seen_from = (connection.get_extra_info(end)[0] for end in ("peername", "sockname"))
    except asyncssh.TimeoutError as error:
        raise ClusterError(f"{host}: {python[0]} did not answer within {CHECK_TIMEOUT_S:g} s") from error
    except (OSError, TimeoutError, asyncssh.Error, ValueError) as error:
        reason = f"{error}".strip() or f"no answer within {options['connect_timeout']:g} s"
        raise ClusterError(
            f"{host} of cluster.ssh.hosts cannot be reached: {reason}; "
            f"make sure that `ssh {host} true` works without a question, or take it out of the list"
        ) from error
    if done.exit_status:
        raise ClusterError(_cannot_serve(host, python, shared, (done.stderr or "").strip().splitlines()))
    ours = " ".join(map(str, (*sys.version_info[:2], distributed.__version__)))
    if done.stdout.strip() != ours:
        raise ClusterError(
            f"{host}: cluster.ssh.python ({shlex.join(python)}) has other versions of Python and distributed "
            f"({done.stdout.strip()}) than this machine ({ours}); install the same"
        )
    return Host(host, address, seen_from)


def _cannot_serve(host: str, python: list[str], shared: Path, said: list[str]) -> str:
    last = said[-1] if said else "it said nothing"
    if str(shared) in last:
        return f"{host}: {last}; output_dir must be on a file system that all of cluster.ssh.hosts share with this one"
    return (
        f"{host}: workers cannot run with {shlex.join(python)}: {last}; "
        "set cluster.ssh.python to a Python on the hosts that has chunkcal installed"
    )


async def _end(workers: Iterable[Worker]) -> None:
    """Have the guards end all workers: the library would kill a guard, and what hangs below it goes on."""
    running = [worker.proc for worker in workers if worker.proc is not None and not worker.proc.is_closing()]
    for process in running:
        process.stdin.write_eof()
    if running:
        await asyncio.wait([asyncio.ensure_future(process.wait_closed()) for process in running], timeout=END_TIMEOUT_S)


async def _keep(cluster: SpecCluster, name: str) -> None:
    """Pass on what the workers of a host say, and start them again when they, or the host, have been lost."""
    while True:
        worker = cluster.workers[name]
        if worker.proc is not None:
            # Somebody must read it: workers whose output nobody takes stop when the connection's buffers are full.
            async for line in worker.proc.stderr:
                if line.strip():
                    log.info("%s: %s", name, line.rstrip())
        await worker.close()
        log.warning("%s: its workers, or the connection, have ended; next attempt in %g s", name, RETRY_S)
        await asyncio.sleep(RETRY_S)
        spec = cluster.worker_spec[name]
        cluster.workers[name] = worker = spec["cls"](cluster.scheduler.address, name=name, **spec["options"])
        try:
            await worker
        except Exception as error:  # asyncssh's own, or the library's bare Exception: the next attempt may do better
            log.warning("%s: %s", name, error)
