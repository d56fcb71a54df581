"""What is asked of a batch system through its own commands: which jobs are there, why they wait, away with them."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chunkcal.cluster.state import ClusterError

log = logging.getLogger("chunkcal.batch")

COMMAND_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class BatchJob:
    """One job that the batch system still has.

    Attributes
    ----------
    id, state, reason
        In the batch system's own words.
    pending, running
        Whether it still waits for its resources; whether it has them.
    start
        Expected start as Unix time, if the batch system says so.
    end
        Unix time at which its time is over, if the batch system says so.
    """

    id: str
    state: str
    reason: str
    pending: bool
    running: bool
    start: float | None = None
    end: float | None = None


async def call(*argv: str) -> tuple[int, str, str]:
    """Run a command; give exit status, standard output and error. A command that hangs or is missing is a failure."""
    # %s: times as seconds since 1970, whatever the user has set for reading by eye.
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s"}
    pipe = asyncio.subprocess.PIPE
    try:
        process = await asyncio.create_subprocess_exec(*argv, stdout=pipe, stderr=pipe, env=environment)
    except OSError as error:
        return 127, "", f"{argv[0]}: {error.strerror}"
    try:
        out, err = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return 124, "", f"{argv[0]} did not answer within {COMMAND_TIMEOUT_S:g} s"
    return process.returncode, out.decode(errors="replace"), err.decode(errors="replace").strip()


class Slurm:
    """SLURM, by squeue, scancel and sbatch."""

    title = "SLURM"
    commands = ("sbatch", "squeue", "scancel")

    async def jobs(self, name: str, ids: Sequence[str]) -> list[BatchJob] | None:
        """List this user's jobs called `name` (in the order of the queue); None if SLURM does not answer."""
        argv = ("squeue", "-h", "-a", "-n", name, "-u", getpass.getuser(), "-o", "%i|%T|%r|%S|%e")
        status, out, err = await call(*argv)
        if status:
            log.warning("squeue: %s", err)
            return None
        return parse_squeue(out)

    async def cancel(self, name: str, ids: Sequence[str]) -> None:
        """Cancel this user's jobs called `name`."""
        await call("scancel", "-Q", "--name", name, "-u", getpass.getuser())

    def refusal(self, script: str) -> str | None:
        """Ask SLURM, without submitting anything, whether it would take a job; return why not."""
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as file:
            file.write(script)
            file.flush()
            argv = ["sbatch", "--test-only", file.name]
            try:
                done = subprocess.run(argv, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False)
            except subprocess.TimeoutExpired:
                return f"sbatch --test-only did not answer within {COMMAND_TIMEOUT_S:g} s"
        if done.returncode == 0:
            return None
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return "; ".join(line.removeprefix("sbatch: ").removeprefix("error: ") for line in lines)


def parse_squeue(text: str) -> list[BatchJob]:
    """Read ``squeue -h -o "%i|%T|%r|%S|%e"`` with times in seconds; a job that is completing counts as ended."""
    jobs = []
    for line in text.splitlines():
        job, state, reason, start, end = line.strip().split("|")
        if state in ("PENDING", "CONFIGURING", "REQUEUED"):
            jobs.append(BatchJob(job, state, reason, True, False, _seconds(start)))
        elif state in ("RUNNING", "SUSPENDED"):
            jobs.append(BatchJob(job, state, reason, False, True, _seconds(start), _seconds(end)))
    return jobs


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None


class Pbs:
    """PBS, by qstat, qdel and qsub."""

    title = "PBS"
    commands = ("qsub", "qstat", "qdel")

    async def jobs(self, name: str, ids: Sequence[str]) -> list[BatchJob] | None:
        """List those of the jobs `ids` that PBS still has; None if it does not answer."""
        if not ids:
            return []
        status, out, err = await call("qstat", "-f", *ids)
        # Asked for several jobs, qstat fails as soon as one of them has ended, and still lists the others.
        if status in (124, 127):
            log.warning("qstat: %s", err)
            return None
        return parse_qstat(out)

    async def cancel(self, name: str, ids: Sequence[str]) -> None:
        """Delete the jobs `ids`."""
        if ids:
            await call("qdel", *ids)

    def refusal(self, script: str) -> str | None:
        """PBS cannot be asked beforehand: a request that it refuses fails when it is submitted."""
        return None


def parse_qstat(text: str) -> list[BatchJob]:
    """Read ``qstat -f``: a block per job; lines that begin with a tab continue a value, unless they name a field."""
    jobs = []
    for block in re.split(r"(?m)^Job Id:\s*", re.sub(r"\n\t(?!\S+ = )", "", text))[1:]:
        fields = dict(re.findall(r"(?m)^\s+(\S+) = (.*)$", block))
        state = fields.get("job_state", "?")
        reason = fields.get("comment", "")
        job = block.split()[0]
        if state in "QHWST":
            jobs.append(BatchJob(job, state, reason, True, False))
        elif state in "RB":
            jobs.append(BatchJob(job, state, reason, False, True))
    return jobs


BATCH_SYSTEMS = {"slurm": Slurm(), "pbs": Pbs()}


def require_commands(backend: str) -> None:
    """Refuse a batch backend where the batch system's commands are missing.

    Raises
    ------
    ClusterError
        Naming the command.
    """
    for command in BATCH_SYSTEMS[backend].commands:
        if shutil.which(command) is None:
            raise ClusterError(
                f"cluster.backend {backend}: there is no {command} on PATH; start snakemake where jobs can be "
                "submitted, or choose another cluster.backend"
            )


def log_tail(folder: Path, job: str, n_lines: int = 12) -> str:
    """Return the end of what a job has written, indented below the name of its log, or nothing.

    Parameters
    ----------
    folder
        Where the jobs write their logs.
    job
        Its id; the log's name contains the number.
    """
    number = re.split(r"[.\[]", job)[0]
    logs = [path for path in folder.glob(f"*{number}*") if path.is_file() and path.stat().st_size]
    # Standard error says what went wrong; standard output only where there is none.
    logs.sort(key=lambda path: (path.suffix not in (".err", ".ER", f".e{number}"), path.name))
    if not logs:
        return ""
    lines = [line for line in logs[0].read_text(errors="replace").splitlines() if line.strip()]
    return f"; log: {logs[0]}" + "".join(f"\n    {line}" for line in lines[-n_lines:])
