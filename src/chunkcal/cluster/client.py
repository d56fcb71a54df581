"""How Snakemake's side talks to the cluster: begin and end a run, submit one task, commit its product.

Standard library only, because each of thousands of chunk scripts imports it: `distributed` alone would cost 0.7 CPU-s
a chunk. The dask client lives in the supervisor; this end speaks one line of JSON each way over a unix socket.
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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from chunkcal.cluster import leftovers, state
from chunkcal.cluster.state import BATCH_BACKENDS, RUN_VARIABLE, ClusterError
from chunkcal.logs import last_lines, tell

# A supervisor that dies under a task is replaced; one task may outlive so many of them.
MAX_SUPERVISORS_PER_TASK = 3
STATUS_TIMEOUT_S = 2.0
# What stands in the folder of a chunk's h5parms when DP3 has failed on the chunk and calibrate.on_bad_chunk is flag.
FAILED = "failed.txt"
# Says in a run's folder in scratch_dir whose it is, and keeps Snakemake 9.27 from removing, at a run's end, the empty
# folder with all empty ones above it: scratch_dir itself.
OWNER = "output_dir.txt"


class BadChunk(ClusterError):
    """DP3 has failed on the data of a chunk; on any other machine it would, too.

    Attributes
    ----------
    made : dict
        Products and records of the stages before, if the task had several.
    """

    def __init__(self, message: str, made: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.made = made or {}


class OutOfMemory(ClusterError):
    """DP3 had too little memory on every slot that it was worth trying; `attempts` says where."""

    def __init__(self, message: str, attempts: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.attempts = attempts


def begin_run(settings: dict[str, Any], log: str | Path, output_dir: str, slurm_job_name: str | None = None) -> Path:
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

    Returns
    -------
    Path
        The state folder.

    Raises
    ------
    ClusterError
        The batch system would refuse the workers' jobs. Nothing has been started then.
    """
    for depth in ("*", "*/*"):
        remove_attempts(f"{glob.escape(output_dir)}/{depth}")
    remove_attempts(f"{glob.escape(settings['chunks_dir'])}/*/*/*")
    if settings["chunks_dir"] != output_dir:
        os.makedirs(settings["chunks_dir"], exist_ok=True)
        Path(settings["chunks_dir"], OWNER).write_text(os.path.abspath(output_dir) + "\n")
    folder = state.create(settings, Path(log), Path(output_dir))
    os.environ[RUN_VARIABLE] = str(folder)
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
    connection = _connect(folder)
    if connection is None:
        return
    try:
        process = os.pidfd_open(supervisor["pid"])
    except ProcessLookupError:
        return
    with connection:
        try:
            connection.sendall(b'{"do": "stop"}\n')
        except OSError:
            pass
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
    connection = _connect(folder)
    if connection is None:
        return None
    with connection, connection.makefile("rb") as answers:
        connection.settimeout(STATUS_TIMEOUT_S)
        try:
            connection.sendall(b'{"do": "status"}\n')
            return json.loads(answers.readline())
        except (OSError, ValueError):
            return None


def _connect(folder: Path) -> socket.socket | None:
    supervisor = state.read_json(folder / "supervisor.json")
    if supervisor is None:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(supervisor["socket"])
    except OSError:
        connection.close()
        return None
    return connection


def ensure_cluster() -> socket.socket:
    """Return a connection to this run's supervisor; start one first if none is running.

    Any number of scripts may call this at the same time: one of them starts the supervisor, under a file lock.

    Raises
    ------
    ClusterError
        The supervisor did not come up, or the run has been interrupted.
    """
    folder = state.folder_of_this_run()
    connection = _connect(folder)
    if connection:
        return connection
    asked = time.time()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = _connect(folder)
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


def _start_supervisor(folder: Path) -> socket.socket:
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
        connection = _connect(folder)
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


def submit(request: dict[str, Any]) -> dict[str, Any]:
    """Have one task run on the cluster; wait for its result.

    A supervisor that dies meanwhile is replaced and asked again.

    Returns
    -------
    dict
        What `chunkcal.cluster.task.run_dp3` returned.

    Raises
    ------
    ClusterError
        The task failed, the run was stopped, or supervisors keep dying; `BadChunk` or `OutOfMemory` if that is why.
    """
    line = json.dumps({"do": "run", "request": request}).encode() + b"\n"
    for _ in range(MAX_SUPERVISORS_PER_TASK):
        with ensure_cluster() as connection, connection.makefile("rb") as answers:
            try:
                connection.sendall(line)
                answer = answers.readline()
            except OSError:
                answer = b""
        if answer.endswith(b"\n"):
            reply = json.loads(answer)
            if reply.get("out_of_memory"):
                raise OutOfMemory(reply["error"], reply["attempts"])
            if reply.get("bad_chunk"):
                raise BadChunk(reply["error"], reply.get("made"))
            if "error" in reply:
                raise ClusterError(reply["error"])
            return reply["result"]
        time.sleep(0.2)  # closed without an answer: the supervisor has died, or is being stopped
    raise ClusterError(f"{request['name']}: the cluster died {MAX_SUPERVISORS_PER_TASK} times under this task")


def run_chunk(
    *,
    name: str,
    request: dict[str, Any],
    inputs: dict[str, str],
    output: str,
    record: str,
    log: str,
) -> None:
    """Run DP3 for one chunk on the cluster and commit its product: what every chunk script does.

    Parameters
    ----------
    name
        ``STAGE OBS CHUNK``, for messages.
    request
        ``run`` (the DP3 run as data) and ``expect`` (what its product must look like), see `chunkcal.planning.plan`.
    inputs
        Name in the work folder -> path, for the products of earlier stages; added to the run's links.
    output, record, log
        Paths of the product, of the JSON record of how it was made, and of DP3's log.

    The worker makes the product in a folder of its own beside `output` and verifies it there. It becomes `output` by a
    rename, and only here, in a process that the live run has started: an attempt that was killed, or that dask ran
    twice, never looks finished.
    """
    output, log = os.path.abspath(output), os.path.abspath(log)
    task = {
        "name": name,
        "run": _with_inputs(request, inputs),
        "expect": request["expect"],
        "output": output,
        "log": log,
    }
    with _attempting(output):
        try:
            result = _submit(task)
        except BadChunk as error:
            if request["expect"]["kind"] != "h5parms":
                raise
            result = _without_solutions(error, name, output)
        _commit([(result, output, record)])


def run_pass(*, name: str, request: dict[str, Any], outputs: dict[str, str], records: dict[str, str], log: str) -> None:
    """Take a chunk from the raw data to its solutions as one task, and commit the products of both stages.

    Parameters
    ----------
    name, log
        As `run_chunk`.
    request
        As `chunkcal.planning.requests.pass_request` gives it.
    outputs, records
        Paths by stage, in the order of the stages.
    """
    outputs, log = {stage: os.path.abspath(path) for stage, path in outputs.items()}, os.path.abspath(log)
    inputs: dict[str, str] = {}
    stages = {}
    for stage, output in outputs.items():
        part = request["stages"][stage]
        stages[stage] = {"run": _with_inputs(part, inputs), "expect": part["expect"], "output": output}
        inputs = {"in.ms": output}
    task = {"name": name, "stages": stages, "one_pass": request["one_pass"], "log": log}
    task["output"] = next(iter(outputs.values()))
    with _attempting(*outputs.values()):
        try:
            made = _submit_pass(task)
        except BadChunk as error:
            if not error.made:
                raise
            made = error.made | {"calibrate": _without_solutions(error, name, outputs["calibrate"])}
        _commit([(made[stage], outputs[stage], records[stage]) for stage in outputs])


def _with_inputs(request: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    links = request["run"]["links"] | {link: os.path.abspath(path) for link, path in inputs.items()}
    return request["run"] | {"links": links}


@contextmanager
def _attempting(*outputs: str) -> Iterator[None]:
    """Let nothing of an attempt stay, and end the script with a line if it fails."""
    try:
        for output in outputs:
            remove_attempts(glob.escape(output))
        yield
    except ClusterError as error:
        print(f"chunkcal: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # who has pressed Ctrl-C knows
        sys.exit(128 + signal.SIGINT)
    finally:
        for output in outputs:
            remove_attempts(glob.escape(output))


def _submit(task: dict[str, Any]) -> dict[str, Any]:
    """Submit a task of one stage; while there is too little memory for it, again in pieces half as long."""
    attempts: list[dict[str, Any]] = []
    while True:
        try:
            result = submit(task)
        except OutOfMemory as error:
            attempts += error.attempts
            task = task | {"pieces": _halved(task, error)}
            n = len(task["pieces"]["runs"])
            print(f"chunkcal: {task['name']}: out of memory; DP3 runs again on {n} pieces of it", file=sys.stderr)
            continue
        return _attempted(result, attempts)


def _submit_pass(task: dict[str, Any]) -> dict[str, Any]:
    """Submit a task of several stages; if there is too little memory for it, its stages one by one."""
    try:
        return submit(task)["made"]
    except OutOfMemory as error:
        attempts = error.attempts
    made: dict[str, Any] = {}
    products: dict[str, str] = {}
    for stage, part in task["stages"].items():
        links = part["run"]["links"]
        run = part["run"] | {"links": {name: products.get(path, path) for name, path in links.items()}}
        try:
            result = _submit({"name": task["name"], "log": task["log"]} | part | {"run": run})
        except BadChunk as error:
            raise BadChunk(str(error), made) from None
        result["record"]["links"] = links
        made[stage], products[part["output"]] = _attempted(result, attempts), result["product"]
    return made


def _attempted(result: dict[str, Any], attempts: list[dict[str, Any]]) -> dict[str, Any]:
    if attempts:
        result["record"]["attempts"] = attempts + result["record"].get("attempts", [])
    return result


def _halved(task: dict[str, Any], error: OutOfMemory) -> dict[str, Any]:
    """Cut a task into pieces half as long as before; where they would not give the same bits, say what helps."""
    from chunkcal.planning import pieces, requests  # as slow to import as all the rest, and rarely needed

    output_dir = state.read_json(state.folder_of_this_run() / "run.json")["output_dir"]
    obs, stage, name = task["output"].split("/")[-3:]
    plan = requests.load_plan(f"{output_dir}/plan/observations.json")[obs]
    try:
        return pieces.halved(plan, stage, name.partition(".")[0], task.get("pieces"))
    except pieces.Uncuttable as reason:
        first, newline, lines = str(error).partition("\n")
        what, _, log = first.rpartition("; log: ")
        why = f"it cannot be cut into smaller pieces, because {reason}; {pieces.remedy(plan, stage)}"
        raise ClusterError(f"{what}; {why}; log: {log}{newline}{lines}") from None


def _without_solutions(error: BadChunk, name: str, output: str) -> dict[str, Any]:
    """Make the product that says that a chunk has no solutions, if that is wanted; else raise."""
    # Not a parameter of the rule: a user who changes it must not lose the chunks that were solved.
    wanted = state.read_json(state.folder_of_this_run() / "run.json")["settings"]["on_bad_chunk"]
    if wanted == "stop":
        raise error
    print(f"chunkcal: {error}\nchunkcal: its solutions become NaN (calibrate.on_bad_chunk: flag)", file=sys.stderr)
    product = Path(f"{output}.tmp-failed")
    product.mkdir(parents=True, exist_ok=True)
    (product / FAILED).write_text(f"{error}\n")
    return {"product": str(product), "record": {"name": name, "failed": str(error).partition("\n")[0]}}


def _commit(made: list[tuple[dict[str, Any], str, str]]) -> None:
    """Give products their names, and write their records: all of ``product`` and ``record``, output, path of record."""
    folder = state.folder_of_this_run()
    run = state.read_json(folder / "run.json")
    if run is None or (folder / "aborted").exists() or not state.owner_is_alive(run["owner"]):
        raise ClusterError("the run has been stopped; its last product was not accepted")
    for result, _, _ in made:
        if not os.path.lexists(result["product"]):
            there, here = result["record"].get("host"), socket.gethostname()
            raise ClusterError(
                f"{result['product']} was made on {there} and is not there on {here}; output_dir and scratch_dir must"
                " be on file systems that all hosts share"
            )
    for result, output, record in made:
        state.write_json(Path(record), result["record"])
        if os.path.isdir(output) and not os.path.islink(output):
            shutil.rmtree(output)
        os.rename(result["product"], output)


def remove_attempts(pattern: str) -> None:
    """Remove what attempts at the products that match a glob pattern have left behind."""
    for path in glob.glob(pattern + ".tmp-*"):
        if os.path.isdir(path):
            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)


def leave_scratch(folder: str) -> None:
    """Remove the folder of a run in `scratch_dir`, as far as no chunks lie in it."""
    for place, _, _ in os.walk(folder, topdown=False):
        if os.listdir(place) == [OWNER]:
            os.unlink(os.path.join(place, OWNER))
        try:
            os.rmdir(place)
        except OSError:
            pass  # chunks that a target, or --notemp, asked for
