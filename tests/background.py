"""Pipeline runs in the background, for tests that interfere with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from chunkcal.cluster import state
from pipeline import ROOT, assert_same_bits, columns, must_run, snakemake
from tiny_ms import DP3, dp3_environment

# In the command line of each DP3 of a chunk, and of none that planning tries.
DP3_AT_WORK = "parset1 numthreads="
GUARD = "cluster/guard.py"


def parent_of(pid: int) -> int | None:
    """Give the parent of a process; None if it is dead."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except OSError:
        return None


def wait_until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Poll until `condition` is true, and return what it gave; fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


class Run:
    """A pipeline run whose DP3s take `slow_s` longer than they must, in processes that carry a mark of their own."""

    def __init__(self, folder: Path, ms: Path, slow_s: float = 1.0, **sections: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.ms = ms
        self.mark = f"CHUNKCAL_TEST_RUN={folder}\0".encode()
        slow = folder / "DP3"
        self.write_slow_dp3(slow, slow_s, f"{sys.executable} {DP3}", dp3_environment()["AIPSPATH"])
        self.config = {
            "input": [str(ms)],
            "chunks": {"n_slots": 2},
            "cluster": {"n_slots": 2, "worker_failures": 20},
            "dp3": {"command": str(slow)},
        } | sections
        self.results = folder / self.config.get("output_dir", "results")
        self.targets: list[str] = []  # everything
        self.process: subprocess.Popen | None = None

    @staticmethod
    def write_slow_dp3(path: Path, slow_s: float, dp3: str, measures: str | Path) -> None:
        """Write a DP3 that first waits; asked for its version, or tried by planning, it answers at once."""
        start = f'#!/bin/sh\nexport AIPSPATH={measures}\n[ "$1" != -v ] || exec {dp3} -v'
        start += f'\ncase "$PWD" in */chunkcal-check-*) exec {dp3} "$@";; esac'
        path.write_text(f'{start}\nsleep {slow_s}\nexec {dp3} "$@"\n')
        path.chmod(0o755)

    def write_config(self) -> None:
        """Write what `command` names."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config))

    def command(self, cores: int = 2) -> list[str]:
        """Give the command line of the run, to be started in its folder."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
        return [*command, "--configfile", "config.yaml", "--cores", str(cores), *self.targets]

    def start(self) -> Run:
        """Start snakemake; do not wait."""
        self.write_config()
        with open(self.folder / "output", "wb") as output:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"CHUNKCAL_TEST_RUN": str(self.folder)},
            )
        return self

    def processes(self) -> dict[int, str]:
        """List the live processes of this run by pid, with their command lines."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (process / "environ").read_bytes() and state.start_time(int(process.name)):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def find(self, words: str) -> list[int]:
        """List the processes of this run with `words` in their command line."""
        return [pid for pid, line in self.processes().items() if words in line]

    def wait_for(self, words: str, n: int = 1) -> list[int]:
        """Wait until `n` processes with `words` in their command line run."""

        def found() -> list[int] | None:
            pids = self.find(words)
            assert len(pids) >= n or self.process.poll() is None, f"no {words}: {self.text()[-6000:]}"
            return pids if len(pids) >= n else None

        return wait_until(found, 180, f"no {words} after 180 s")

    def dp3s(self) -> list[int]:
        """List the DP3s at work; what one of them has just forked has its command line, too."""
        pids = self.find(DP3_AT_WORK)
        return [pid for pid in pids if parent_of(pid) not in pids]

    def text(self) -> str:
        """Return what snakemake has printed."""
        return (self.folder / "output").read_text()

    def records(self) -> list[Path]:
        """List the records of finished chunks."""
        return list(self.results.glob("*/preprocess/*.json"))

    def must_finish(self, seconds: float = 300) -> None:
        """Wait for the end of snakemake, which must be a success."""
        assert self.process.wait(seconds) == 0, self.text()[-6000:]

    def must_be_gone(self, seconds: float = 10) -> None:
        """Nothing of the run may live for longer than `seconds`."""
        wait_until(lambda: not self.processes(), seconds, f"left behind: {self.processes()}")

    def must_equal(self, clean: dict) -> None:
        """The product is that of a clean run, and there are no leftovers."""
        assert_same_bits(columns(self.results / f"{self.ms.stem}/{self.ms.stem}.ms"), clean)
        assert not list(self.results.rglob("*.tmp-*"))

    def must_finish_when_run_again(self, clean: dict) -> None:
        """A further, undisturbed run in the same folder gives the clean run's bytes."""
        snakemake(self.folder, self.config, "--unlock")
        must_run(self.folder, self.config)
        self.must_equal(clean)

    def close(self) -> None:
        """Kill what is left."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if self.process:
            self.process.wait()
