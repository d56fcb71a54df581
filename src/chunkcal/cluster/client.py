"""How Snakemake's side begins and ends a run, and finds or starts its cluster.

Standard library only: `distributed` alone would cost 0.7 CPU-s. The dask client lives in the supervisor; this end
speaks to it over a unix socket, see `chunkcal.cluster.state.pack`.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chunkcal.cluster import leftovers, state
from chunkcal.cluster.chunks import remove
from chunkcal.cluster.state import BATCH_BACKENDS, RUN_VARIABLE, ClusterError
from chunkcal.logs import last_lines, tell

STATUS_TIMEOUT_S = 2.0
# Says in a run's folder in scratch_dir whose it is, and keeps Snakemake 9.27 from removing, at a run's end, the empty
# folder with all empty ones above it: scratch_dir itself.
OWNER = "output_dir.txt"
PYTHON_VARIABLE = "CHUNKCAL_PYTHON"


def begin_run(
    settings: dict[str, Any],
    log: str | Path,
    output_dir: str,
    slurm_job_name: str | None = None,
    python: str = sys.executable,
) -> Path:
    """Make the calling process (Snakemake's own) the owner of a new run, and remove what killed runs have left.

    Called from ``onstart``, after Snakemake has installed its signal handlers: ours stop the cluster first and then
    call them. Without that, a SIGTERM to Snakemake alone would wait for the running chunks.

    Parameters
    ----------
    settings
        The sections ``cluster`` and ``dp3``; ``chunks_dir``, the folder of the chunks (`inputs.chunks_dir`).
    log
        Log of the cluster.
    output_dir
        Folder of all products.
    slurm_job_name
        Of the jobs that Snakemake itself submits, if it submits any.
    python
        What jobs are run with that are no Python script, see ``workflow/scripts/run_chunk.sh``.

    Returns
    -------
    Path
        The state folder.

    Raises
    ------
    ClusterError
        The batch system would refuse the workers' jobs. Nothing has been started then.
    """
    products = [f"{glob.escape(output_dir)}/{depth}" for depth in ("*", "*/*")]
    for pattern in (*products, f"{glob.escape(settings['chunks_dir'])}/*/*/*"):
        for path in glob.glob(f"{pattern}.tmp-*"):  # of an attempt
            remove(path)
    if settings["chunks_dir"] != output_dir:
        os.makedirs(settings["chunks_dir"], exist_ok=True)
        Path(settings["chunks_dir"], OWNER).write_text(os.path.abspath(output_dir) + "\n")
    folder = state.create(settings, Path(log), Path(output_dir))
    os.environ |= {RUN_VARIABLE: str(folder), PYTHON_VARIABLE: python}
    backend = settings["cluster"]["backend"]
    try:
        if backend in BATCH_BACKENDS:
            _preflight(folder)
    except ClusterError:
        end_run()
        raise
    names = [slurm_job_name] if slurm_job_name else []
    if backend == "slurm":
        names.append(state.job_name(folder))
    if names:
        leftovers.watch(names)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _abort_then(signal.getsignal(number), folder))
    return folder


def _preflight(folder: Path) -> None:
    """Ask the batch system, in a process of its own because dask is slow to import, whether it would take our jobs."""
    command = [sys.executable, "-m", "chunkcal.cluster.preflight", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ClusterError(lines[-1])


def _abort_then(previous: Any, folder: Path) -> Any:
    def handler(number: int, frame: Any) -> Any:
        try:
            (folder / "aborted").touch()
        except FileNotFoundError:
            pass  # the run has ended already
        stop(folder)
        if callable(previous):
            return previous(number, frame)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    return handler


def end_run() -> bool:
    """Stop the cluster of this run, if it was ever started, and remove the state folder.

    Returns
    -------
    bool
        Whether the user has interrupted the run.
    """
    folder = os.environ.pop(RUN_VARIABLE, None)
    interrupted = folder is not None and os.path.exists(os.path.join(folder, "aborted"))
    if folder and os.path.isdir(folder):
        Path(folder, "aborted").touch()
        with open(Path(folder, "lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # whoever starts a cluster has seen that there is no use in it any more
        stop(Path(folder))
        state.remove_shared_folder(Path(folder))
        shutil.rmtree(folder, ignore_errors=True)
    return interrupted


def stop(folder: Path) -> None:
    """Ask the supervisor to end, and return when it has; one that does not is killed with its whole session."""
    supervisor = state.read_json(folder / "supervisor.json")
    connection = state.connect(folder)
    if connection is None:
        return
    try:
        process = os.pidfd_open(supervisor["pid"])
    except ProcessLookupError:
        return
    try:
        connection.sendall(state.pack("stop"))
    except OSError:
        pass
    connection.close()
    ended = select.select([process], [], [], state.close_timeout_s(supervisor["backend"]))[0]
    os.close(process)
    if not ended:
        os.killpg(supervisor["pid"], signal.SIGKILL)


def status(folder: Path) -> dict[str, Any] | None:
    """Ask the supervisor what it is doing; None if there is none, or it does not answer at once.

    Returns
    -------
    dict
        ``n_slots``, ``dashboard``; ``running`` and ``waiting``, lists of ``name``, ``log`` and ``seconds`` (since it
        began, or was asked for); ``finished``, by stage: number of tasks and their time in slots (s).
    """
    connection = state.connect(folder)
    if connection is None:
        return None
    with socket.socket(fileno=connection.detach()) as connection, connection.makefile("rb") as answers:
        connection.settimeout(STATUS_TIMEOUT_S)
        try:
            connection.sendall(state.pack("status"))
            return json.loads("".join(state.receive(answers)))
        except (OSError, ValueError):
            return None


def ensure_cluster() -> socket.SocketType:
    """Return a connection to this run's supervisor; start one first if none is running.

    Any number of scripts may call this at the same time: one of them starts the supervisor, under a file lock.

    Raises
    ------
    ClusterError
        The supervisor did not come up, or the run has been interrupted.
    """
    folder = Path(state.folder_of_this_run())
    connection = state.connect(folder)
    if connection:
        return connection
    asked = time.time()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = state.connect(folder)
        if connection:
            return connection
        failure = folder / "failure"
        if failure.exists() and failure.stat().st_mtime > asked:  # another one has tried while this one waited
            run = state.read_json(folder / "run.json")
            raise ClusterError(f"the cluster did not start: {failure.read_text()}; log: {run['log']}")
        return _start_supervisor(folder)


def start_ahead() -> None:
    """Let a process of its own start the cluster of this run, so that it is up when the first chunk asks for it.

    If that fails, those who need the cluster say why.
    """
    command = [sys.executable, "-c", "from chunkcal.cluster import client; client.be_ahead()"]
    # Of a session of its own, because Ctrl-C is not for it: it ends when the run does.
    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def be_ahead() -> None:
    """Start the cluster of this run; the process that `start_ahead` begins."""
    try:
        ensure_cluster().close()
    except ClusterError:
        sys.exit(1)


def _start_supervisor(folder: Path) -> socket.SocketType:
    run = state.read_json(folder / "run.json")
    if run is None or (folder / "aborted").exists() or not state.owner_is_alive(run["owner"]):
        raise ClusterError("the run has been stopped; no new cluster is started for it")
    for old in ("failure", "notices"):
        (folder / old).unlink(missing_ok=True)
    log = Path(run["log"])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        start = stream.tell()  # what is before it, an earlier supervisor has written
        process = subprocess.Popen(
            [sys.executable, "-m", "chunkcal.cluster.supervisor", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
    # The supervisor keeps its own, better explained, start_timeout_s; this one is for a supervisor that is stuck.
    deadline = time.monotonic() + run["settings"]["cluster"]["start_timeout_s"] + 30
    n_notices = 0
    while time.monotonic() < deadline:
        n_notices = _show_notices(folder, n_notices)
        if (folder / "aborted").exists():
            process.terminate()
            process.wait()  # it takes its jobs out of the queue
            raise ClusterError("the run has been stopped")
        if process.poll() is not None:
            failure = folder / "failure"
            if failure.exists():
                raise ClusterError(f"the cluster did not start: {failure.read_text()}; log: {log}")
            reason = f"exit status {process.returncode}; log: {log}"
            raise ClusterError(f"the cluster did not start: {reason}{last_lines(log, start)}")
        connection = state.connect(folder)
        if connection:
            _show_notices(folder, n_notices)
            return connection
        time.sleep(0.05)
    process.kill()
    raise ClusterError(f"the cluster did not start in time; log: {log}{last_lines(log, start)}")


def _show_notices(folder: Path, n_shown: int) -> int:
    """Print the supervisor's notices but the first `n_shown`, to the rule's log and the terminal; return their number.

    One script starts the supervisor, so each notice is printed once, however many scripts wait.
    """
    try:
        lines = (folder / "notices").read_text().splitlines()
    except OSError:
        return n_shown
    for line in lines[n_shown:]:
        tell(line)
    return len(lines)


def leave_scratch(folder: str) -> None:
    """Remove the folder of a run in `scratch_dir`, as far as no chunks lie in it."""
    for place, _, _ in os.walk(folder, topdown=False):
        if os.listdir(place) == [OWNER]:
            os.unlink(os.path.join(place, OWNER))
        try:
            os.rmdir(place)
        except OSError:
            pass  # chunks that a target, or --notemp, asked for
