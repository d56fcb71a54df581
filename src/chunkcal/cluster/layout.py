"""How many DP3s run at a time, with how many threads each, where the configuration leaves that to the machine.

Standard library only: Snakemake and each chunk's script import it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chunkcal.cluster.state import BATCH_BACKENDS
from chunkcal.errors import counted

# Above that, DP3 6.6 gets slower with each thread, as users report.
MAX_THREADS = 24
# How much longer a chunk takes per core when a DP3 has several: 1.05 to 1.36 times in DDECal, on 2 cores.
THREADING_LOSS = 1.2
# The rest is for the system, its cache of the files that DP3 reads, and the scheduler.
MEMORY_SHARE = 0.8
# Resident memory of a slot beside its DP3: the worker and its nanny, 0.1 GB each with distributed 2026.8.
WORKER_BYTES = 200e6


@dataclass(frozen=True)
class Layout:
    """Slots, threads of each, and what to tell the user about how that came about."""

    n_slots: int
    threads: int
    note: str


def choose(n_cores: int, memory_bytes: float, dp3_bytes: float, most: int, even: bool = False) -> Layout:
    """Choose a layout for a machine, or for a batch job.

    One thread per slot is the fastest. So there are as many slots as cores, if the memory of so many DP3s is there. If
    not, of the numbers of slots that fit, the one that gets most done with the cores, and of several the largest.

    Parameters
    ----------
    n_cores, memory_bytes
        Of the machine or job.
    dp3_bytes
        Memory of a DP3 of the stage that needs most.
    most
        Largest number of slots.
    even
        Whether the slots must share the cores without remainder.
    """
    fitting = int(MEMORY_SHARE * memory_bytes / (dp3_bytes + WORKER_BYTES))
    allowed = range(1, max(1, min(n_cores, most, fitting)) + 1)

    def threads(slots: int) -> int:
        return min(MAX_THREADS, n_cores // slots)

    n_slots = max(
        (slots for slots in allowed if not even or n_cores % slots == 0),
        key=lambda slots: (slots * threads(slots) / (THREADING_LOSS if threads(slots) > 1 else 1), slots),
    )
    if fitting < 1:
        reason = "it may need more memory than there is"
    elif fitting < min(n_cores, most):
        reason = f"the memory suffices for {fitting}, with {1 - MEMORY_SHARE:.0%} left for the rest"
    elif most < n_cores:
        reason = f"cluster.n_slots is {most}, and the memory suffices"
    else:
        reason = "one thread each is the fastest, and the memory suffices"
    return Layout(
        n_slots,
        threads(n_slots),
        f"cluster: auto chose {counted(n_slots, 'slot')} of {counted(threads(n_slots), 'thread')} for"
        f" {counted(n_cores, 'core')} and {memory_bytes / 1e9:.3g} GB, where a DP3 needs {dp3_bytes / 1e9:.2g} GB:"
        f" {reason}",
    )


def is_open(settings: Mapping[str, Any]) -> bool:
    """Tell whether the layout waits for the plan, which knows what memory a DP3 needs."""
    if settings["backend"] in BATCH_BACKENDS:
        return settings["job"]["n_processes"] == "auto"
    return settings["threads_per_slot"] == "auto"


def memory_mb(plans: Iterable[Mapping[str, Any]]) -> int:
    """Return the memory of a DP3 of the stage and observation that need most, MB."""
    return max((max(plan["memory_mb"].values()) for plan in plans), default=0)


def settle(settings: Mapping[str, Any], memory_mb: int = 0) -> tuple[dict[str, Any], str | None]:
    """Fill in what a cluster section leaves to cores and memory.

    Parameters
    ----------
    settings
        The section, with a backend that is not ``auto``, and ``machine_cores``, those for the backend ``local``.
    memory_mb
        Of a DP3, see `memory_mb`. Before that is known, 0 gives the layout with the most slots.

    Returns
    -------
    dict, str or None
        The section as the cluster is started with, and why it is so; None if nothing was open.
    """
    settings = dict(settings)
    if not is_open(settings):
        return settings, None
    job = settings["job"]
    if settings["backend"] in BATCH_BACKENDS:
        found = choose(job["n_cores"], 1e9 * job["memory_gb"], 1e6 * memory_mb, job["n_cores"], even=True)
        settings |= {"job": job | {"n_processes": found.n_slots}}
        n_slots = (job["max_jobs"] or job["n_jobs"]) * found.n_slots
    else:
        n_cores = settings["machine_cores"]
        most = n_cores if settings["n_slots"] == "auto" else settings["n_slots"]
        found = choose(n_cores, memory_here(), 1e6 * memory_mb, most)
        n_slots = found.n_slots
    settled = {"n_slots": n_slots, "threads_per_slot": found.threads, "layout": found.note}
    return settings | settled, found.note


def memory_here() -> float:
    """Return the memory that is there for processes started here, bytes: the machine's, or that of a control group."""
    limits = [float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, name = ("/sys/fs/cgroup", "memory.max")
        if controllers:  # version 1
            root, name = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        place = Path(root + group)
        for folder in (place, *place.parents):
            text = _read(folder / name).strip()
            if text.isdigit():
                limits.append(float(text))
    return min(limits)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
