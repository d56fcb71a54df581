"""One DP3 run as a dask task: runs on the worker that owns the slot, with the slot's threads.

What it has made is verified there, too, but needs no slot: the next DP3 runs meanwhile.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from distributed import get_worker, system
from distributed.core import Status

from chunkcal import dp3, verify
from chunkcal.cluster import pieces
from chunkcal.cluster.dp3run import DP3Error, Killed, OutOfMemory, TaskError, run_parsets
from chunkcal.cluster.state import THREADS_RESOURCE
from chunkcal.dp3log import convergence
from chunkcal.errors import UserError
from chunkcal.flagging import flagsteps
from chunkcal.logs import last_lines
from chunkcal.planning.requests import step_name

# dask's resource lets one DP3 at a time run on a worker; should that ever fail, this lease still does.
_LEASE = threading.Lock()
# casacore is not made for several threads at a time.
_CASACORE = threading.Lock()


def run_dp3(request: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Run DP3 in a folder of its own.

    Parameters
    ----------
    request
        As of `chunkcal.cluster.jobs.task_of`.
    settings
        The ``dp3`` section of the configuration.

    Returns
    -------
    dict
        ``unverified``, for `verify_dp3`; or what `run_pass` returns if it has verified everything; or, when the run
        failed, ``error``, with ``killed`` if it is worth another attempt and ``bad_chunk`` if the data are to blame:
        DP3 has failed, or made what it should not; ``out_of_memory`` if neither is, with ``attempt`` for the record.
        Errors are values here because a raised exception would travel through dask with a traceback.
    """
    worker = get_worker()
    key = worker.get_current_task()

    def wanted() -> bool:
        # dask never interrupts a running task: a cancelled one sees it here.
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing" and worker.status == Status.running

    if not _LEASE.acquire(blocking=False):
        return {
            "error": f"{request['name']}: the slot of worker {worker.name} is taken by another DP3; nothing was run"
        }
    work = Path(f"{request['output']}.tmp-{uuid.uuid4().hex[:12]}")
    try:
        work.mkdir(parents=True)
        run = run_pass if "stages" in request else _make
        made = run(work, request, settings, str(worker.name), _threads(worker.state), wanted)
        return made if "made" in made else {"unverified": made | {"attempt": str(work)}}
    except (TaskError, UserError, verify.ProductError, OSError) as error:
        shutil.rmtree(work, ignore_errors=True)
        return _failure(request, error, str(worker.name))
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    finally:
        _LEASE.release()


async def verify_dp3(request: dict[str, Any], settings: dict[str, Any], unverified: dict[str, Any]) -> dict[str, Any]:
    """Verify what `run_dp3` has made, on the same worker.

    Parameters
    ----------
    request, settings
        As `run_dp3`.
    unverified
        What it has returned under this name.

    Returns
    -------
    dict
        What `run_in` or `run_pass` returns; or ``error`` with ``bad_chunk``, as of `run_dp3`; or ``stage_by_stage``,
        True, if the stages must run one after the other to know what is wrong.
    """
    return await asyncio.to_thread(_verify_attempt, request, settings, unverified)


def _verify_attempt(request: dict[str, Any], settings: dict[str, Any], unverified: dict[str, Any]) -> dict[str, Any]:
    keep = False
    try:
        if "stages" not in request:
            verified = _verify(request, settings, unverified)
        else:
            verified = _verify_one_pass(request, settings, unverified)
        keep = "stage_by_stage" not in verified
        return verified
    except (UserError, verify.ProductError, OSError) as error:
        return _failure(request, error, unverified["record"]["worker"])
    finally:
        if not keep:
            shutil.rmtree(unverified["attempt"], ignore_errors=True)


def _failure(request: dict[str, Any], error: Exception, worker: str) -> dict[str, Any]:
    text = f"{request['name']}: {error}; log: {request['log']}" + last_lines(request["log"], 0, dp3.without_tracebacks)
    bad_chunk = isinstance(error, (DP3Error, verify.ProductError))
    reply = {"error": text, "killed": isinstance(error, Killed), "bad_chunk": bad_chunk}
    if isinstance(error, OutOfMemory):
        n_pieces = len(request["pieces"]["runs"]) if request.get("pieces") else 1
        attempt = {"worker": worker, "host": socket.gethostname(), "n_pieces": n_pieces}
        reply |= {"out_of_memory": True, "attempt": attempt | {"end": time.time(), "error": str(error)}}
    return reply


def _threads(state: Any) -> int:
    """Return the threads that the slot grants: as the worker was told, else those that dask counts."""
    return int(state.total_resources.get(THREADS_RESOURCE, state.nthreads))


def run_in(
    work: Path, request: dict[str, Any], settings: dict[str, Any], worker: str, threads: int, wanted: Any
) -> dict[str, Any]:
    """Run DP3 in a folder and verify what it made; needs no dask.

    Parameters
    ----------
    work
        An empty folder.
    request, settings
        As `run_dp3`.
    worker
        Name for record and log.
    threads
        Threads of DP3.
    wanted
        Called now and then; when it says no, DP3 is killed.

    Returns
    -------
    dict
        ``product`` (path below the work folder, to be renamed by the client) and ``record``.

    Raises
    ------
    TaskError, UserError, ProductError, OSError, Cancelled
        The run failed.
    """
    return _verify(request, settings, _make(work, request, settings, worker, threads, wanted))


def _make(
    work: Path, request: dict[str, Any], settings: dict[str, Any], worker: str, threads: int, wanted: Any
) -> dict[str, Any]:
    """Run DP3 in a folder; return what `_verify` needs: the folder, the record so far, how the solves converged."""
    run, runs = request["run"], pieces.runs(work, request)
    record, printed = run_parsets(work, request["name"], run, runs, request["log"], settings, worker, threads, wanted)
    if request.get("pieces"):
        with _CASACORE:
            pieces.put_together(work, request, list(printed))
        record["pieces"] = pieces.described(request)
    return {"work": str(work), "record": record} | _said(record, printed)


def _verify(request: dict[str, Any], settings: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    work, run = Path(made["work"]), request["run"]
    with _CASACORE:
        verified = verify.verify_product(work, run, request["expect"], settings.get("product_digests", True))
    return {"product": str(work / run["product"]), "record": made["record"] | _found(verified, made["converged"])}


def run_pass(
    work: Path, request: dict[str, Any], settings: dict[str, Any], worker: str, threads: int, wanted: Any
) -> dict[str, Any]:
    """Take a chunk from the raw data to its solutions, in one DP3 process where that can be.

    Where it cannot, or has failed (which may be for its memory: it holds what both stages hold), the stages run one
    after the other.

    Parameters
    ----------
    work, settings, worker, threads, wanted
        As `run_in`.
    request
        As of `chunkcal.cluster.jobs.task_of`, for two stages.

    Returns
    -------
    dict
        What `_verify_one_pass` needs; or, where the stages have run one after the other, ``made``: verified ``product``
        and ``record`` by stage. If the data are to blame that there are no solutions, it is without calibrate, and has
        besides what `run_dp3` says of errors.

    Raises
    ------
    TaskError, UserError, ProductError, OSError, Cancelled
        The run failed, and not on the solutions.
    """
    if request["one_pass"]:
        folder = work / "one-pass"
        folder.mkdir()
        try:
            return _make_in_one_pass(folder, request, settings, worker, threads, wanted)
        except (DP3Error, OutOfMemory) as error:
            _note_stages(request, str(error))
        shutil.rmtree(folder)
    made, products = {}, {}
    for stage, part in request["stages"].items():
        folder = work / stage
        folder.mkdir()
        links = part["run"]["links"]
        run = part["run"] | {"links": {name: products.get(path, path) for name, path in links.items()}}
        one = {"name": request["name"], "run": run, "expect": part["expect"], "log": request["log"]}
        try:
            made[stage] = run_in(folder, one, settings, worker, threads, wanted)
        except (DP3Error, verify.ProductError) as error:
            if not made:
                raise
            return _failure(request, error, worker) | {"made": made}
        made[stage]["record"]["links"] = links
        products[part["output"]] = made[stage]["product"]
    return {"made": made}


def _note_stages(request: dict[str, Any], reason: str) -> None:
    with open(request["log"], "ab") as log:
        log.write(f"# stage by stage, because in one pass: {reason}\n".encode())


def _make_in_one_pass(
    work: Path, request: dict[str, Any], settings: dict[str, Any], worker: str, threads: int, wanted: Any
) -> dict[str, Any]:
    """Run the DP3 that makes the products of both stages; return what `_verify_one_pass` needs."""
    run = request["one_pass"]
    runs = pieces.runs(work, {"run": run, "expect": request["stages"]["calibrate"]["expect"]})
    record, printed = run_parsets(work, request["name"], run, runs, request["log"], settings, worker, threads, wanted)
    return {"work": str(work), "record": record} | _said(record, printed)


def _verify_one_pass(request: dict[str, Any], settings: dict[str, Any], unverified: dict[str, Any]) -> dict[str, Any]:
    """Verify the products of both stages; ``stage_by_stage`` if they are none, or the solve should have had other data.

    The records hold the parsets that make each product by itself, which is how it can be made again. What was really
    run is in ``one_pass``; what it has used is in calibrate's.
    """
    work, digests = Path(unverified["work"]), settings.get("product_digests", True)
    preprocess, calibrate = request["stages"]["preprocess"], request["stages"]["calibrate"]
    try:
        with _CASACORE:
            data = verify.verify_product(work, preprocess["run"], preprocess["expect"], digests)
            if data.get("n_nan_weights"):
                raise verify.ProductError("weights that are not finite had to be settled before the solve")
            has_data = data["flagged_after"]["total"] < 1
            solutions = verify.verify_product(work, calibrate["run"], calibrate["expect"], digests, has_data)
    except verify.ProductError as error:
        _note_stages(request, str(error))
        return {"stage_by_stage": True}
    common = unverified["record"] | {"one_pass": request["one_pass"]["parsets"]}
    made = {}
    for stage, verified in (("preprocess", data), ("calibrate", solutions)):
        own = request["stages"][stage]["run"]
        found = common | {key: own[key] for key in ("parsets", "links")} | _found(verified, unverified["converged"])
        made[stage] = {"product": str(work / own["product"]), "record": found}
    for key in ("cpu_s", "max_rss_kb"):
        del made["preprocess"]["record"][key]
    made["calibrate"]["record"]["flag_steps"] = []
    return {"made": made}


def _said(record: dict[str, Any], printed: dict[Path, str]) -> dict[str, Any]:
    """Add to a record what DP3 has said of flags, and when it ended; give, by step, how its solves converged."""
    record["flag_steps"] = [step for item in printed.items() for step in flagsteps.read_steps(*reversed(item))]
    record["end"] = time.time()
    return {"converged": pieces.add_up(map(convergence, printed.values()))}


def _found(verified: dict[str, Any], converged: dict[str, Any]) -> dict[str, Any]:
    """Give the rest of a record: what was verified."""
    for name, found in verified.get("solves", {}).items():
        found["convergence"] = converged.get(step_name(name))
    return {"verified": verified}


def memory_limit(dask_worker: Any) -> int:
    """Return how much memory (bytes) a worker may use at most: its own limit, its cgroup's, or that of its machine."""
    own = getattr(dask_worker.memory_manager, "memory_limit", None)  # None or 0 where there is none
    return min(limit for limit in (own, system.memory_limit()) if limit)
