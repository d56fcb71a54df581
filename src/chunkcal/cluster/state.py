"""The state folder of one pipeline run: who owns the run, what cluster it wants, where its supervisor listens.

Every chunk's script imports this, so there is little at its head: json, pathlib, typing, shutil, tempfile and
subprocess would cost as much as all else. The folder (mode 0700) lies in the temporary directory, not in the results:
sockets need short paths, and nothing in it may outlive the run. Its path travels in `RUN_VARIABLE`, which Snakemake's
jobs inherit, so a script can only ever find the cluster of its own run.

======================  ====================================================================================
``run.json``            owner (host, pid, start time), working folder, folder of the products, cluster and DP3
                        settings, path of the log
``supervisor.json``     pid, scheduler and dashboard address of the running supervisor
``submit``              socket at which it listens, see `pack`
``failure``             why the last supervisor did not come up
``notices``             what the supervisor has to say to the user while it starts, one line each
``lock``                held by whoever starts a supervisor
``aborted``             exists once the user has interrupted the run: nothing may start a cluster any more
======================  ====================================================================================

What workers on other hosts must read, the certificates, lies in `chunkcal.cluster.backends.base.shared_folder` instead.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from pathlib import Path
    from typing import IO, Any

RUN_VARIABLE = "CHUNKCAL_RUN"
PREFIX = "chunkcal-"
# Name of the dask resource with which a worker says how many threads its slot grants to DP3. dask itself then counts
# one thread: its arithmetic (how many workers do so many tasks need) goes by threads and ignores resources.
THREADS_RESOURCE = "dp3_threads"
# Backends whose workers are jobs of a batch system.
BATCH_BACKENDS = ("slurm", "pbs")
SHARED = ".chunkcal"
# sockaddr_un holds 108 bytes; the folder's random suffix and the socket's name take up to 20 of them.
LONGEST_FOLDER = 80


class ClusterError(Exception):
    """The cluster cannot be had, or could not do what was asked: one line for the user."""


def start_time(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot (field 22 of proc(5) stat), None if it is dead or a zombie.

    With the pid it names a process for good: pids are used again, start times are not.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            stat = file.read()
    except OSError:
        return None
    fields = stat.rsplit(")", 1)[1].split()
    return None if fields[0] in "ZX" else fields[19]


def owner_is_alive(owner: dict[str, Any]) -> bool:
    """Tell whether the Snakemake process that the run belongs to still lives; on another host it is taken to."""
    # Version 0.1 wrote no host: its folders are only ever found where they were made.
    return owner.get("host", os.uname().nodename) != os.uname().nodename or start_time(owner["pid"]) == owner["start"]


def close_timeout_s(backend: str) -> float:
    """Return how long a cluster may take to end before it is killed: batch systems answer in their own time."""
    return 40.0 if backend in BATCH_BACKENDS else 5.0


def job_name(folder: Path) -> str:
    """Name the batch jobs of a run after its state folder: no other run's jobs are called so.

    It has no more than 15 characters, because older PBS take no longer ones.
    """
    return "ccal-" + folder.name.removeprefix(PREFIX)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file so that a reader sees either the old one or the whole new one."""
    temporary = f"{os.fspath(path)}.{os.getpid()}"
    try:
        with open(temporary, "w") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def json_text(content: Any) -> str:
    """Give `content` as it stands in a JSON file."""
    import json

    return json.dumps(content, indent=1) + "\n"


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write `content` as `write_text` does."""
    write_text(path, json_text(content))


def read_json(path: str | os.PathLike) -> Any:
    """Read a JSON file; None if it is absent or not JSON."""
    import json

    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def connect(folder: str | os.PathLike) -> socket | None:
    """Return a connection to the supervisor of the run with this state folder; None if none is running."""
    from _socket import AF_UNIX, socket  # what is around it in `socket` would take a sixth of a chunk script's time

    connection = socket(AF_UNIX)
    try:
        connection.connect(os.path.join(folder, "submit"))
    except OSError:
        connection.close()
        return None
    return connection


def pack(*words: str) -> bytes:
    """Pack a message of the submit socket: words with a NUL between them, behind their length in four bytes.

    ======================  ====================================================================================
    ``run``, WORD...        what a chunk job wants, see `chunkcal.cluster.jobs.task_of`; answered by any number of
                            ``tell``, TEXT, and one ``made``, WORD..., see `chunkcal.cluster.chunks.submit`, or
                            ``error``, TEXT; not at all if the supervisor ends first
    ``status``              answered by JSON, see `chunkcal.cluster.client.status`
    ``stop``                not answered
    ======================  ====================================================================================
    """
    text = "\0".join(word.replace("\0", " ") for word in words)
    content = text.encode("utf-8", "surrogateescape")  # whatever the locale: DP3's words come in any letters
    return len(content).to_bytes(4, "big") + content


def unpack(content: bytes) -> list[str]:
    """Give the words of a message, which is without its length here."""
    return content.decode("utf-8", "surrogateescape").split("\0")


def receive(file: IO[bytes]) -> list[str]:
    """Read the words of a message; none if it does not come to its end."""
    length = int.from_bytes(file.read(4), "big")
    content = file.read(length)
    return unpack(content) if 0 < length == len(content) else []


def create(settings: dict[str, Any], log: Path, output_dir: Path) -> Path:
    """Make the state folder of a run that the calling process owns, and remove those of dead owners."""
    import tempfile
    from pathlib import Path

    base = tempfile.gettempdir()
    if len(base) > LONGEST_FOLDER:
        base = "/tmp"
    _remove_orphans(Path(base))
    _remove_orphans(output_dir / SHARED)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    run = {
        "owner": {"host": os.uname().nodename, "pid": os.getpid(), "start": start_time(os.getpid())},
        "cwd": os.getcwd(),
        "output_dir": str(output_dir.absolute()),
        "log": str(log.absolute()),
        "settings": settings,
    }
    write_json(folder / "run.json", run)
    return folder


def _remove_orphans(base: Path) -> None:
    import shutil

    for folder in base.glob(PREFIX + "*"):
        run = read_json(folder / "run.json")
        if run and folder.stat().st_uid == os.getuid() and not owner_is_alive(run["owner"]):
            shutil.rmtree(folder, ignore_errors=True)


def remove_shared_folder(folder: Path) -> None:
    """Remove the shared folder of the run with this state folder, if there is one."""
    import shutil

    shared = shared_path(folder)
    shutil.rmtree(shared, ignore_errors=True)
    try:
        shared.parent.rmdir()
    except OSError:
        pass  # it was never made, or holds that of another run


def shared_path(folder: Path) -> Path:
    """Give the path of that folder."""
    from pathlib import Path

    return Path(read_json(folder / "run.json")["output_dir"], SHARED, folder.name)


def find(output_dir: Path) -> Path | None:
    """Find the state folder of the live run of this user that writes to an output folder."""
    import tempfile
    from pathlib import Path

    for base in {tempfile.gettempdir(), "/tmp"}:
        for folder in Path(base).glob(PREFIX + "*"):
            run = read_json(folder / "run.json")
            if run and run.get("output_dir") == str(output_dir) and owner_is_alive(run["owner"]):
                return folder
    return None


def folder_of_this_run() -> str:
    """Return the state folder that this process was started under."""
    folder = os.environ.get(RUN_VARIABLE)
    if not folder or not os.path.isdir(folder):
        raise ClusterError("no pipeline run is going on here: chunk scripts are started by snakemake only")
    return folder
