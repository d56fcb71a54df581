"""Workers as jobs of SLURM or PBS, by dask-jobqueue.

Configuration key of ``cluster.job`` -> argument of dask-jobqueue -> directive of the batch system: docs/clusters.md.
"""

from __future__ import annotations

import asyncio
import math
import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dask.utils import parse_bytes
from dask_jobqueue import PBSCluster, SLURMCluster
from dask_jobqueue.core import JobQueueCluster
from dask_jobqueue.pbs import PBSJob, pbs_format_bytes_ceil
from dask_jobqueue.slurm import SLURMJob
from distributed import Client
from distributed.security import Security

from chunkcal.cluster import state
from chunkcal.cluster.backends.base import Cluster, shared_folder
from chunkcal.cluster.backends.batch import BATCH_SYSTEMS, require_commands
from chunkcal.cluster.backends.jobkeeper import JobKeeper
from chunkcal.cluster.backends.ownscheduler import DEATH_TIMEOUT_S, require_interface, served_by
from chunkcal.cluster.state import THREADS_RESOURCE, ClusterError
from chunkcal.cluster.tls import make_security, security_of

# What the supervisor sets for workers that inherit its configuration; these get their own from the job script.
_QUIET = {
    "DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL": "2s",
    "DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL": "5s",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
    # Of glibc, bytes: dask would have every worker give its memory back at once, and take it again.
    "MALLOC_TRIM_THRESHOLD_": "67108864",
    "MALLOC_MMAP_THRESHOLD_": "67108864",
}


@dataclass(frozen=True)
class Place:
    """Where a run's jobs find what they share with the run.

    Attributes
    ----------
    name
        Of every job of this run, and of no other.
    shared
        Folder of mode 0700 for the certificate, on a file system that all nodes see.
    logs
        Folder for what the jobs print.
    """

    name: str
    shared: Path
    logs: Path


def place_of(folder: Path, shared: Path) -> Place:
    """Derive the place from the state folder of a run and the folder that it shares with its workers."""
    run = state.read_json(folder / "run.json")
    return Place(state.job_name(folder), shared, Path(run["log"]).parent / "workers")


class _Submission:
    """A job that says why it could not be submitted: dask-jobqueue logs that, and waits for its worker for ever."""

    refusal: str | None = None

    async def start(self) -> None:
        try:
            await super().start()
        except (RuntimeError, OSError, ValueError) as error:
            lines = [line.strip() for line in str(error).partition("stderr:")[2].splitlines() if line.strip()]
            self.refusal = "; ".join(lines) or str(error)


class _SlurmJob(_Submission, SLURMJob):
    pass


class _PbsJob(_Submission, PBSJob):
    pass


def slurm_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of `SLURMCluster` that PBS has not, or has differently."""
    directives = [
        f"{option}{job[key]}"
        for key, option in (("qos", "--qos="), ("reservation", "--reservation="), ("constraint", "--constraint="))
        if job[key] is not None
    ]
    # A job that SLURM puts back into the queue would keep its worker's name from the one that replaces it.
    return {
        "job_cls": _SlurmJob,
        "job_cpu": job["n_cores"],
        "job_mem": f"{math.ceil(job['memory_gb'] * 1e9 / 2**20)}M",
        "job_extra_directives": ["--no-requeue", *directives, *job["extra_directives"]],
    }


def pbs_options(job: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of `PBSCluster` that SLURM has not, or has differently.

    Raises
    ------
    ClusterError
        For a key that PBS knows nothing of.
    """
    for key in ("qos", "reservation", "constraint"):
        if job[key] is not None:
            raise ClusterError(f"cluster.job.{key}: PBS has none; use queue, resource_spec or extra_directives")
    memory = pbs_format_bytes_ceil(parse_bytes(f"{job['memory_gb']}GB"))
    return {
        "job_cls": _PbsJob,
        "resource_spec": job["resource_spec"] or f"select=1:ncpus={job['n_cores']}:mem={memory}",
        "job_extra_directives": ["-r n", *job["extra_directives"]],
    }


CLUSTERS: dict[str, tuple[type[JobQueueCluster], Callable[[Mapping[str, Any]], dict[str, Any]]]] = {
    "slurm": (SLURMCluster, slurm_options),
    "pbs": (PBSCluster, pbs_options),
}


def make_cluster(settings: Mapping[str, Any], place: Place, security: Security) -> JobQueueCluster:
    """Make dask-jobqueue's object, without a job yet.

    Parameters
    ----------
    settings
        The validated ``cluster`` section.
    place
        Of the run.
    security
        Its certificates; the jobs are given their paths.

    Raises
    ------
    ClusterError
        For a path that a job script cannot name.
    """
    job = settings["job"]
    cls, options = CLUSTERS[settings["backend"]]
    for path in (place.shared, place.logs):
        if shlex.quote(str(path)) != str(path):
            raise ClusterError(
                f"cluster.backend {settings['backend']}: a job script cannot name {path}; run in a folder whose path "
                "has only letters, digits and _ . + - /"
            )
    n_threads = job["n_cores"] // job["n_processes"]
    scheduler = {"port": 0, "dashboard_address": settings["dashboard_address"]}
    if job["scheduler_interface"]:
        scheduler["interface"] = job["scheduler_interface"]
    return cls(
        # One thread per worker for dask, see state.THREADS_RESOURCE.
        cores=job["n_processes"],
        processes=job["n_processes"],
        memory=f"{job['memory_gb']}GB",
        walltime=walltime(job["walltime_min"]),
        queue=job["queue"],
        account=job["account"],
        interface=job["interface"],
        python=shlex.quote(job["python"]) if job["python"] else None,
        local_directory=job["local_dir"],
        log_directory=str(place.logs),
        job_name=place.name,
        job_script_prologue=[
            "export " + " ".join(f"{name}={value}" for name, value in _QUIET.items()),
            *job["prologue"],
        ],
        job_directives_skip=list(job["skip_directives"]),
        death_timeout=DEATH_TIMEOUT_S,
        worker_extra_args=[
            *("--resources", f"{settings['resource']}=1,{THREADS_RESOURCE}={n_threads}"),
            # DP3 is a process of its own that dask's memory manager cannot see; the batch system watches both.
            *("--memory-limit", "0"),
            # Without an address of its own a worker's HTTP port listens on all interfaces.
            *("--dashboard-address", "127.0.0.1:0"),
        ],
        protocol="tls://",
        security=security,
        scheduler_options=scheduler,
        silence_logs=False,
        asynchronous=True,
        **options(job),
    )


def walltime(minutes: float) -> str:
    """Write a duration as ``H:MM:SS``, which SLURM and PBS both read."""
    seconds = round(minutes * 60)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def job_script(settings: Mapping[str, Any], place: Place) -> str:
    """Return the script that would be submitted; the scheduler's address is not known yet."""

    async def script() -> str:
        # dask-jobqueue's object wants an event loop, and starts nothing until it is awaited.
        return make_cluster(settings, place, security_of(place.shared)).job_script()

    return asyncio.run(script())


def preflight(settings: Mapping[str, Any], folder: Path) -> None:
    """Refuse, before anything runs, what the batch system would refuse.

    Raises
    ------
    ClusterError
        With the batch system's own words.
    """
    require_commands(settings["backend"])
    key = "scheduler_interface" if settings["job"]["scheduler_interface"] else "interface"
    require_interface(f"cluster.job.{key}", settings["job"][key])
    system = BATCH_SYSTEMS[settings["backend"]]
    shared = Path(state.read_json(folder / "run.json")["output_dir"], state.SHARED, folder.name)
    reason = system.refusal(job_script(settings, place_of(folder, shared)))
    if reason:
        raise ClusterError(
            f"{system.title} would refuse the workers' jobs: {reason}; see cluster.job in the configuration, and the "
            "script by: chunkcal cluster job-script"
        )


@asynccontextmanager
async def open_jobqueue(
    settings: Mapping[str, Any], folder: Path, changed: Callable[[], None]
) -> AsyncIterator[Cluster]:
    """Keep the jobs that the ``cluster`` section asks for in the queue, and remove them all at the end."""
    require_commands(settings["backend"])
    with shared_folder(folder) as shared:
        place = place_of(folder, shared)
        place.logs.mkdir(parents=True, exist_ok=True)
        async with _with_jobs(settings, place, changed) as cluster:
            yield cluster


@asynccontextmanager
async def _with_jobs(settings: Mapping[str, Any], place: Place, changed: Callable[[], None]) -> AsyncIterator[Cluster]:
    job = settings["job"]
    cluster = make_cluster(settings, place, make_security(place.shared))
    async with cluster, Client(cluster, asynchronous=True, set_as_default=False) as client:
        keeper = JobKeeper(cluster, BATCH_SYSTEMS[settings["backend"]], place.name, place.logs, job)

        def come_or_gone() -> None:
            keeper.note_served()
            changed()

        served = served_by(settings, cluster.scheduler, client, come_or_gone)
        async with keeper.keeping():
            yield replace(
                served,
                ends=keeper.ends,
                lifetime_s=job["walltime_min"] * 60,
                want=keeper.want,
                retire=keeper.retire,
                waiting=keeper.waiting,
            )
