"""What chunk jobs ask for, as tasks; and what to do when a task fails that another one could still do.

It is done in the supervisor, which is there once. The processes of the jobs themselves, of which there are thousands,
only ask, and commit what was made: `chunkcal.cluster.chunks`.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from chunkcal.cluster.state import ClusterError
from chunkcal.planning import pieces, requests

log = logging.getLogger("chunkcal.jobs")

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


def task_of(
    name: str, cwd: str, log: str, ms: str, corrected: str, product: str, ms_product: str, request: str
) -> dict[str, Any]:
    """Make the task that a chunk job asks for.

    Parameters
    ----------
    name
        ``STAGE OBS CHUNK``, for messages.
    cwd
        Folder that the paths are relative to.
    log
        Path of DP3's log.
    ms, corrected
        Paths of the data, and of the corrected data; empty where the job has none.
    product, ms_product
        Paths of what is to be made: by the only stage; or by the last one, and by the one before it.
    request
        JSON of what `requests.chunk_request` gives: ``run`` (the DP3 run as data) and ``expect`` (what its product must
        look like). Its ``solutions`` (name in the work folder -> path) become links of the run, as `ms` and `corrected`
        do. For two stages in one task, of what `requests.pass_request` gives.

    Returns
    -------
    dict
        For `chunkcal.cluster.attempts.Attempts.run`, with ``output``, beside which the worker has its folder: what it
        makes there becomes `product` by a rename, and only in the process of the job, which the live run has started.
        An attempt that was killed, or that dask ran twice, never looks finished.
    """

    def path(relative: str) -> str:
        return os.path.normpath(os.path.join(cwd, relative))

    def part(request: Mapping[str, Any], output: str, inputs: Mapping[str, str]) -> dict[str, Any]:
        links = request["run"]["links"] | {link: path(target) for link, target in inputs.items() if target}
        return {"run": request["run"] | {"links": links}, "expect": request["expect"], "output": path(output)}

    asked = json.loads(request)
    common = {"name": name, "log": path(log)}
    if "stages" not in asked:
        inputs = {"in.ms": ms, "corrected.ms": corrected} | asked.get("solutions", {})
        return common | part(asked, product, inputs)
    stages = {
        "preprocess": part(asked["stages"]["preprocess"], ms_product, {}),
        "calibrate": part(asked["stages"]["calibrate"], product, {"in.ms": ms_product}),
    }
    return common | {"stages": stages, "one_pass": asked["one_pass"], "output": path(ms_product)}


class Job:
    """What one chunk job asks for.

    Parameters
    ----------
    task
        As `task_of` gives it.
    run
        Runs a task: `chunkcal.cluster.attempts.Attempts.run` on the cluster.
    tell
        Called with what the user should know at once.
    output_dir
        Folder of all products, in which the plan is.
    on_bad_chunk
        The setting ``calibrate.on_bad_chunk``. It is none of the request, which is a parameter of the rule: a user who
        changes it must not lose the chunks that were solved.
    """

    def __init__(
        self,
        task: dict[str, Any],
        run: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        tell: Callable[[str], None],
        output_dir: str,
        on_bad_chunk: str | None = None,
    ) -> None:
        self.task, self.run, self.tell = task, run, tell
        self.output_dir, self.on_bad_chunk = output_dir, on_bad_chunk

    async def make(self) -> list[dict[str, Any]]:
        """Make the products.

        Returns
        -------
        list of dict
            ``product`` (its path until it is committed) and ``record`` of each stage.

        Raises
        ------
        ClusterError
            It could not be done: one line, behind which some of DP3's log may follow.
        """
        try:
            return await self._make()
        except ClusterError:
            raise
        except OSError as error:
            raise ClusterError(f"{self.task['name']}: {error}") from None
        except Exception as error:  # a fault of ours: say it, with the traceback in the log
            log.exception("%s", self.task["name"])
            raise ClusterError(f"{self.task['name']}: internal error: {error!r}") from None

    async def _make(self) -> list[dict[str, Any]]:
        stages = self.task.get("stages", {"": self.task})
        try:
            made = await self._stages() if "stages" in self.task else {"": await self._stage(self.task)}
        except BadChunk as error:
            missing = [part for stage, part in stages.items() if stage not in error.made]
            if self.on_bad_chunk != "flag" or len(missing) > 1 or missing[0]["expect"]["kind"] != "h5parms":
                raise
            return [*error.made.values(), self._without_solutions(error, missing[0]["output"])]
        return [made[stage] for stage in stages]

    async def _submit(self, task: dict[str, Any]) -> dict[str, Any]:
        reply = await self.run(task)
        if reply.get("out_of_memory"):
            raise OutOfMemory(reply["error"], reply["attempts"])
        if reply.get("bad_chunk"):
            raise BadChunk(reply["error"], reply.get("made"))
        if "error" in reply:
            raise ClusterError(reply["error"])
        return reply["result"]

    async def _stage(self, task: dict[str, Any]) -> dict[str, Any]:
        """Have a task of one stage done; while there is too little memory for it, again in pieces half as long."""
        attempts: list[dict[str, Any]] = []
        while True:
            try:
                result = await self._submit(task)
            except OutOfMemory as error:
                attempts += error.attempts
                task = task | {"pieces": self._halved(task, error)}
                n = len(task["pieces"]["runs"])
                self.tell(f"chunkcal: {task['name']}: out of memory; DP3 runs again on {n} pieces of it")
                continue
            return _attempted(result, attempts)

    async def _stages(self) -> dict[str, Any]:
        """Have a task of several stages done; if there is too little memory for it, its stages one by one."""
        try:
            return (await self._submit(self.task))["made"]
        except OutOfMemory as error:
            attempts = error.attempts
        made: dict[str, Any] = {}
        products: dict[str, str] = {}
        for stage, part in self.task["stages"].items():
            links = part["run"]["links"]
            run = part["run"] | {"links": {name: products.get(path, path) for name, path in links.items()}}
            try:
                result = await self._stage({key: self.task[key] for key in ("name", "log")} | part | {"run": run})
            except BadChunk as error:
                raise BadChunk(str(error), made) from None
            result["record"]["links"] = links
            made[stage], products[part["output"]] = _attempted(result, attempts), result["product"]
        return made

    def _halved(self, task: dict[str, Any], error: OutOfMemory) -> dict[str, Any]:
        """Cut a task into pieces half as long as before; where they would not give the same bits, say what helps."""
        obs, stage, name = task["output"].split("/")[-3:]
        plan = requests.load_plan(f"{self.output_dir}/plan/observations.json")[obs]
        try:
            return pieces.halved(plan, stage, name.partition(".")[0], task.get("pieces"))
        except pieces.Uncuttable as reason:
            first, newline, lines = str(error).partition("\n")
            what, _, log = first.rpartition("; log: ")
            why = f"it cannot be cut into smaller pieces, because {reason}; {pieces.remedy(plan, stage)}"
            raise ClusterError(f"{what}; {why}; log: {log}{newline}{lines}") from None

    def _without_solutions(self, error: BadChunk, output: str) -> dict[str, Any]:
        """Make the product that says that a chunk has no solutions."""
        self.tell(f"chunkcal: {error}\nchunkcal: its solutions become NaN (calibrate.on_bad_chunk: flag)")
        product = f"{output}.tmp-failed"
        os.makedirs(product, exist_ok=True)
        with open(f"{product}/{FAILED}", "w", encoding="utf-8") as file:
            file.write(f"{error}\n")
        return {"product": product, "record": {"name": self.task["name"], "failed": str(error).partition("\n")[0]}}


def _attempted(result: dict[str, Any], attempts: list[dict[str, Any]]) -> dict[str, Any]:
    if attempts:
        result["record"]["attempts"] = attempts + result["record"].get("attempts", [])
    return result
