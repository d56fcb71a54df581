"""What each chunk job does: have the cluster run DP3 on a chunk, and commit the product.

``workflow/scripts/run_chunk.sh`` calls it with the paths of a job, and the request as JSON on standard input. There are
thousands of them, so nothing is imported that a chunk does not always need.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time

from chunkcal.cluster import state
from chunkcal.cluster.state import ClusterError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any

# A supervisor that dies under a task is replaced; one task may outlive so many of them.
MAX_SUPERVISORS_PER_TASK = 3
# What stands in the folder of a chunk's h5parms when DP3 has failed on the chunk and calibrate.on_bad_chunk is flag.
FAILED = "failed.txt"


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
        connection = _connection()
        try:
            connection.sendall(line)
            with open(connection.fileno(), "rb", closefd=False) as answers:
                answer = answers.readline()
        except OSError:
            answer = b""
        finally:
            connection.close()
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


def _connection() -> socket:
    connection = state.connect(state.folder_of_this_run())
    if connection:
        return connection
    from chunkcal.cluster import client  # as slow to import as all the rest; only for a supervisor that has died

    return client.ensure_cluster()


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

    def attempt() -> None:
        try:
            result = _submit(task)
        except BadChunk as error:
            if request["expect"]["kind"] != "h5parms":
                raise
            result = _without_solutions(error, name, output)
        _commit([(result, output, record)])

    _attempt(attempt, output)


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

    def attempt() -> None:
        try:
            made = _submit_pass(task)
        except BadChunk as error:
            if not error.made:
                raise
            made = error.made | {"calibrate": _without_solutions(error, name, outputs["calibrate"])}
        _commit([(made[stage], outputs[stage], records[stage]) for stage in outputs])

    _attempt(attempt, *outputs.values())


def _with_inputs(request: dict[str, Any], inputs: dict[str, str]) -> dict[str, Any]:
    links = request["run"]["links"] | {link: os.path.abspath(path) for link, path in inputs.items()}
    return request["run"] | {"links": links}


def _attempt(attempt: Callable[[], None], *outputs: str) -> None:
    """Make an attempt at products; let nothing of it stay but these, and end the script with a line if it fails."""
    try:
        for output in outputs:
            _remove_attempts(output)
        attempt()
    except ClusterError as error:
        print(f"chunkcal: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:  # who has pressed Ctrl-C knows
        sys.exit(130)  # 128 + SIGINT, as a shell has it
    finally:
        for output in outputs:
            _remove_attempts(output)


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

    output_dir = state.read_json(f"{state.folder_of_this_run()}/run.json")["output_dir"]
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
    wanted = state.read_json(f"{state.folder_of_this_run()}/run.json")["settings"]["on_bad_chunk"]
    if wanted == "stop":
        raise error
    print(f"chunkcal: {error}\nchunkcal: its solutions become NaN (calibrate.on_bad_chunk: flag)", file=sys.stderr)
    product = f"{output}.tmp-failed"
    os.makedirs(product, exist_ok=True)
    with open(f"{product}/{FAILED}", "w") as file:
        file.write(f"{error}\n")
    return {"product": product, "record": {"name": name, "failed": str(error).partition("\n")[0]}}


def _commit(made: list[tuple[dict[str, Any], str, str]]) -> None:
    """Give products their names, and write their records: all of ``product`` and ``record``, output, path of record."""
    folder = state.folder_of_this_run()
    run = state.read_json(f"{folder}/run.json")
    if run is None or os.path.exists(f"{folder}/aborted") or not state.owner_is_alive(run["owner"]):
        raise ClusterError("the run has been stopped; its last product was not accepted")
    for result, _, _ in made:
        if not os.path.lexists(result["product"]):
            there, here = result["record"].get("host"), os.uname().nodename
            raise ClusterError(
                f"{result['product']} was made on {there} and is not there on {here}; output_dir and scratch_dir must"
                " be on file systems that all hosts share"
            )
    for result, output, record in made:
        state.write_json(record, result["record"])
        if os.path.isdir(output) and not os.path.islink(output):
            remove(output)
        os.rename(result["product"], output)


def main(argv: list[str]) -> None:
    """Run a chunk job; what is not there is an empty word."""
    name, log, ms, corrected, product, record, ms_product, ms_record = argv
    request = json.load(sys.stdin)
    if "stages" in request:
        outputs = {"preprocess": ms_product, "calibrate": product}
        records = {"preprocess": ms_record, "calibrate": record}
        run_pass(name=name, request=request, outputs=outputs, records=records, log=log)
        return
    inputs = {link: path for link, path in {"in.ms": ms, "corrected.ms": corrected}.items() if path}
    inputs |= request.get("solutions", {})
    run_chunk(name=name, request=request, inputs=inputs, output=product, record=record, log=log)


def script() -> None:
    """Be the process of a chunk job; ``python -m`` would first import what finds modules."""
    main(sys.argv[1:])
    gc.freeze()  # a tenth of the time of all this would be to look for garbage at the end
