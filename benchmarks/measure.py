#!/usr/bin/env python3
"""Run a command and measure it with all its descendants, whoever their parent becomes.

Writes as JSON: ``status``; ``wall_s``; ``cpu_s`` (user and system); ``peak_rss_bytes`` (the sum over all processes that
live at a time, sampled twice a second, shared pages counted once per process); ``read_bytes`` and
``written_bytes`` (what went through read and write calls, whether or not the page cache had it); ``stolen_s``
(CPU time that the host of a virtual machine gave to others meanwhile: such a run is slower for no fault of its own).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SAMPLE_S = 0.5


def _become_reaper() -> None:
    """Let orphans below this process become its children, so that what they used is counted here when they end."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _cpu_s() -> float:
    """Sum the CPU time of all descendants: those that have ended, and those that live."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    total = ended.ru_utime + ended.ru_stime
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])  # with the children that it has waited for
        except psutil.NoSuchProcess:
            pass
    return total


def _rss_bytes() -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return total


def _stolen_s() -> float:
    return psutil.cpu_times().steal


def _wait_for_all() -> None:
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


def _io_bytes() -> tuple[int, int]:
    """Read what this process and all its ended descendants have read and written."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counts = dict(line.split(": ") for line in lines)
    return int(counts["rchar"]), int(counts["wchar"])


def measure(argv: list[str], background: list[str] | None = None, ready: Path | None = None) -> dict[str, float]:
    """Measure a command, with a cluster running beside it whose start is not counted but whose work is."""
    _become_reaper()
    cluster = None
    if background:
        cluster = subprocess.Popen(background)
        while not ready.exists():
            if cluster.poll() is not None:
                sys.exit(f"the background command ended with {cluster.returncode}: {background}")
            time.sleep(0.1)
    peak, done = [0], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            peak[0] = max(peak[0], _rss_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    cpu_before, stolen_before, began = _cpu_s(), _stolen_s(), time.monotonic()
    status = subprocess.call(argv)
    wall, cpu, stolen = time.monotonic() - began, _cpu_s(), _stolen_s() - stolen_before
    done.set()
    sampler.join()
    if cluster:
        cluster.send_signal(signal.SIGTERM)
    _wait_for_all()
    if not cluster:
        cpu = _cpu_s()  # with what ended after the command, such as a cluster that it started
    read, written = _io_bytes()
    return {
        "status": status,
        "wall_s": wall,
        "cpu_s": cpu - cpu_before,
        "stolen_s": stolen,
        "peak_rss_bytes": peak[0],
        "read_bytes": read,
        "written_bytes": written,
    }


def main() -> int:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--background", type=json.loads, help="JSON list: a command to run beside, until it is told")
    parser.add_argument("--ready", type=Path, help="file that exists when the background command is ready")
    parser.add_argument("argv", nargs=argparse.REMAINDER, help="-- and the command")
    options = parser.parse_args()
    found = measure(options.argv[options.argv[:1] == ["--"] :], options.background, options.ready)
    options.output.write_text(json.dumps(found, indent=1))
    return int(found["status"])


if __name__ == "__main__":
    sys.exit(main())
