"""One or several DP3 runs on a worker, each below the guard: their errors, their log, what they have used."""

from __future__ import annotations

import atexit
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from chunkcal import dp3
from chunkcal.cluster import guard
from chunkcal.lineage import versions
from chunkcal.logs import last_lines

POLL_S = 0.2
# Variables of glibc that dask sets for its workers, or whoever starts them.
_OF_PYTHON = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
# Guards of this process that have nothing to do.
_IDLE: list[subprocess.Popen] = []


class TaskError(Exception):
    """A DP3 run failed: one line for the user, then the end of DP3's log."""


class DP3Error(TaskError):
    """DP3 itself has failed on this chunk."""


class OutOfMemory(TaskError):
    """DP3 had too little memory: nothing is wrong with the chunk, but the same attempt would end the same way."""


class Killed(TaskError):
    """Somebody has killed DP3, and not for its memory: the run is worth another attempt."""


class Cancelled(Exception):
    """Nobody wants this task any more: its client has gone, or its worker is closing."""


def run_parsets(
    work: Path,
    name: str,
    run: dict[str, Any],
    runs: list[tuple[Path, int, dict[str, str]]],
    log_path: str,
    settings: dict[str, Any],
    worker: str,
    threads: int,
    wanted: Any,
) -> tuple[dict[str, Any], dict[Path, str]]:
    """Run DP3 once or more often, one after the other.

    Parameters
    ----------
    work
        The folder of the attempt.
    name, run
        Of the request.
    runs
        Folder, number of the parset and its keys of each run: what `chunkcal.cluster.pieces.runs` returned.
    log_path
        What DP3 prints is added to it, behind its command and its parset.
    settings
        The ``dp3`` section of the configuration.
    worker
        Name for record and log.
    threads
        Threads of DP3, where the run itself does not say.
    wanted
        Called now and then; when it says no, DP3 is killed.

    Returns
    -------
    tuple
        The record so far, and what DP3 has printed, by folder.

    Raises
    ------
    TaskError, UserError, OSError, Cancelled
        A run failed; those behind it were not started.
    """
    threads = run.get("threads", threads)
    command = dp3.find_command(settings["command"])
    environment = _inherited() | dp3.environment(threads, not dp3.is_wheel(command), settings["measures_dir"])
    record: dict[str, Any] = {
        "name": name,
        "parsets": run["parsets"],
        "links": run["links"],
        "worker": worker,
        "host": socket.gethostname(),
        "threads": threads,
        "start": time.time(),
        "argv": [],
        "cpu_s": 0.0,
        "max_rss_kb": 0,
    }
    printed: dict[Path, str] = {}
    with open(log_path, "ab") as log:
        log.write(f"# {name} on worker {worker}\n".encode())
        log.writelines(f"{link} -> {target}\n".encode() for link, target in run["links"].items())
        for folder, number, keys in runs:
            parset = f"parset{number}"
            (folder / parset).write_text(dp3.parset_text(keys))
            argv = dp3.argv(command, parset, threads)
            where = "" if folder == work else f" in {folder.name}"
            log.write(f"# {argv}{where}\n{dp3.parset_text(keys)}\n".encode())
            log.flush()
            begin = log.tell()
            memory_kills = _memory_kills()
            request = {
                "argv": argv,
                "cwd": os.path.abspath(folder),
                "env": environment,
                "log": os.path.abspath(log_path),
            }
            status, cpu_s, max_rss_kb = _run_guarded(request, wanted, settings["task_timeout_s"])
            if status:
                raise _failure(status, log_path, begin, memory_kills)
            printed[folder] = printed.get(folder, "") + _printed(log_path, begin)
            record["argv"].append(argv)
            record["cpu_s"] += cpu_s
            record["max_rss_kb"] = max(record["max_rss_kb"], max_rss_kb)
    record["dp3_version"] = _version(tuple(command))
    record["casacore"] = versions.casacore_of_wheel() if dp3.is_wheel(command) else None
    record["measures"] = versions.measures(environment, settings["measures_dir"])
    return record, printed


def _inherited() -> dict[str, str]:
    """Give this worker's environment but for what concerns Python's memory: it costs DP3 2 % of its CPU time."""
    return {name: value for name, value in os.environ.items() if name not in _OF_PYTHON}


def _failure(status: int, log_path: str, begin: int, memory_kills: int) -> TaskError:
    """Tell why DP3 has failed, from the guard's status and what was added to the log after its first `begin` bytes.

    `memory_kills` is what `_memory_kills` said when DP3 started.
    """
    # Below 0 the guard itself was killed, and DP3 with it.
    by_somebody = status < 0 or status - 128 in (signal.SIGKILL, signal.SIGTERM)
    if by_somebody and _memory_kills() > memory_kills:
        with open(log_path, "ab") as log:
            log.write(b"oom-kill: the kernel ran out of memory while this DP3 was running\n")
    tail = last_lines(log_path, begin, dp3.without_tracebacks)
    kind = OutOfMemory if dp3.ran_out_of_memory(tail) else Killed if by_somebody else DP3Error
    return kind(dp3.describe_failure(status, tail))


def _run_guarded(request: dict[str, Any], wanted: Any, timeout_s: float | None) -> tuple[int, float, int]:
    """Have a guard run DP3 until it ends, is no longer wanted, or takes too long.

    Returns
    -------
    tuple
        As the guard answers; the status is below 0 if the guard itself was killed.
    """
    process = _take_guard()
    deadline = time.monotonic() + (timeout_s or float("inf"))
    answer = None
    try:
        process.stdin.write(marshal.dumps(request))
        while not select.select([process.stdout], [], [], POLL_S)[0]:
            if not wanted():
                raise Cancelled
            if time.monotonic() > deadline:
                raise TaskError(f"took longer than dp3.task_timeout_s = {timeout_s:g} s and was killed")
        answer = marshal.load(process.stdout)
    except (BrokenPipeError, EOFError):
        pass  # it was killed
    finally:
        if answer is None:
            _dismiss(process)  # it kills DP3 if that still runs
        else:
            _IDLE.append(process)
    return answer or (process.returncode, 0.0, 0)


def _take_guard() -> subprocess.Popen:
    """Give a guard that has nothing to do; it is the caller's alone."""
    while _IDLE:
        process = _IDLE.pop()
        if process.poll() is None:
            return process
        _dismiss(process)
    command = [sys.executable, "-I", "-S", guard.__file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def _dismiss(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.wait()
    process.stdout.close()


@atexit.register
def _dismiss_all() -> None:
    while _IDLE:
        _dismiss(_IDLE.pop())


def _memory_kills() -> int:
    """Count the processes that this machine's kernel has killed for lack of memory since it started."""
    lines = Path("/proc/vmstat").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


@lru_cache
def _version(command: tuple[str, ...]) -> str:
    # A container may need longer for its first start than is waited for before a run.
    return versions.dp3_here(command) or dp3.version(command)


def _printed(log: str, start: int) -> str:
    """Return what was added to a log after its first `start` bytes."""
    with open(log, "rb") as stream:
        stream.seek(start)
        return stream.read().decode(errors="replace")
