"""What each chunk job does: have the cluster run DP3 on a chunk, and commit the product.

``workflow/scripts/run_chunk.sh`` calls it with the paths of a job, and the request on standard input. There are
thousands of them, so nothing is imported that a chunk does not always need, and what can be done elsewhere is done by
the supervisor, see `chunkcal.cluster.jobs`: no request is parsed here, and no record formatted.
"""

from __future__ import annotations

import gc
import os
import sys
import time

from chunkcal.cluster import state
from chunkcal.cluster.state import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

# A supervisor that dies under a job is replaced; one job may outlive so many of them.
MAX_SUPERVISORS_PER_JOB = 3


def submit(name: str, *words: str) -> list[str]:
    """Have the cluster do what one job is for; wait for it, and print meanwhile what the user should know.

    A supervisor that dies meanwhile is replaced and asked again.

    Parameters
    ----------
    name, *words
        As `chunkcal.cluster.jobs.task_of`.

    Returns
    -------
    list of str
        Host, pid and start time of the run's owner, as `state.owner_is_alive` has them; then for each stage the path of
        its product until it is committed, the host that it was made on, and its record.

    Raises
    ------
    ClusterError
        It could not be done, the run was stopped, or supervisors keep dying.
    """
    for _ in range(MAX_SUPERVISORS_PER_JOB):
        connection = _connection()
        try:
            connection.sendall(state.pack("run", name, *words))
            with open(connection.fileno(), "rb", closefd=False) as answers:
                while answer := state.receive(answers):
                    what, *told = answer
                    if what == "made":
                        return told
                    if what == "error":
                        raise ClusterError(told[0])
                    print(told[0], file=sys.stderr)
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)  # closed without an answer: the supervisor has died, or is being stopped
    raise ClusterError(f"{name}: the cluster died {MAX_SUPERVISORS_PER_JOB} times under this task")


def _connection() -> socket:
    connection = state.connect(state.folder_of_this_run())
    if connection:
        return connection
    from chunkcal.cluster import client  # as slow to import as all the rest; only for a supervisor that has died

    return client.ensure_cluster()


def _remove_attempts(output: str) -> None:
    """Remove what attempts at a product have left behind."""
    folder, name = os.path.split(output)
    for other in os.listdir(folder) if os.path.isdir(folder) else ():
        if other.startswith(f"{name}.tmp-"):
            remove(f"{folder}/{other}")


def remove(path: str) -> None:
    """Remove a file or a folder."""
    if os.path.isdir(path):
        import shutil  # rarely needed

        shutil.rmtree(path, ignore_errors=True)
    else:
        os.unlink(path)


def _commit(told: list[str], outputs: list[str], records: list[str]) -> None:
    """Give products their names, and write their records: of what `submit` has told."""
    host, pid, start, *made = told
    owner = {"host": host, "pid": int(pid), "start": start}
    if os.path.exists(f"{state.folder_of_this_run()}/aborted") or not state.owner_is_alive(owner):
        raise ClusterError("the run has been stopped; its last product was not accepted")
    products, hosts, texts = made[::3], made[1::3], made[2::3]
    for product, host in zip(products, hosts, strict=True):
        if not os.path.lexists(product):
            raise ClusterError(
                f"{product} was made on {host} and is not there on {os.uname().nodename}; output_dir and scratch_dir"
                " must be on file systems that all hosts share"
            )
    for product, text, output, record in zip(products, texts, outputs, records, strict=True):
        state.write_text(record, text)
        if os.path.isdir(output) and not os.path.islink(output):
            remove(output)
        os.rename(product, output)


def main(argv: list[str], request: str) -> None:
    """Run a chunk job with its paths, empty where it has none, and its request in JSON."""
    name, log, ms, corrected, product, record, ms_product, ms_record = argv
    outputs = [os.path.abspath(path) for path in (ms_product, product) if path]
    records = [path for path in (ms_record, record) if path]
    try:
        for output in outputs:
            _remove_attempts(output)
        told = submit(name, os.getcwd(), log, ms, corrected, product, ms_product, request)
        _commit(told, outputs, records)
    except (ClusterError, OSError) as error:
        print(f"chunkcal: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # who has pressed Ctrl-C knows
        sys.exit(130)  # 128 + SIGINT, as a shell has it
    finally:
        for output in outputs:
            _remove_attempts(output)


def script() -> None:
    """Be the process of a chunk job; ``python -m`` would first import what finds modules."""
    main(sys.argv[1:], sys.stdin.read())
    gc.freeze()  # a tenth of the time of all this would be to look for garbage at the end
