"""Configuration, observations, the plan, and the life of the shared cluster; no rules.

Everything here is evaluated by each Snakemake process of a run, so it imports nothing that is slow to import.
"""

import glob
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from snakemake.exceptions import IncompleteCheckpointException
from snakemake.io import IOFile
from snakemake.persistence import PersistenceBase
from snakemake.settings.types import DeploymentMethod

from chunkcal import rulescript, scheduling, wsclean
from chunkcal.lineage import digest, versions
from chunkcal.planning import requests
from chunkcal.planning.dryrun import plans_for_dry_run
from chunkcal.reporting import progress, terminal
from chunkcal.cluster import client, layout, state
from chunkcal.cluster.state import BATCH_BACKENDS, ClusterError
from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError
from chunkcal.logs import tell
from chunkcal.inputs import chunks_dir, for_observation, refuse_output_dir, refuse_scratch_dir, resolve_observations

try:
    config = validate(config, load_schema(workflow.source_path("../schemas/config.schema.yaml")))
    OBSERVATIONS = {row["obs"]: row for row in resolve_observations(config)}
    refuse_output_dir(config["output_dir"])
    refuse_scratch_dir(config["scratch_dir"])
except UserError as error:
    sys.exit(f"chunkcal: {error}")

rulescript.lighten(os.path.realpath(workflow.current_basedir.join("../scripts").get_path_or_uri(secret_free=True)))

OUT = config["output_dir"].rstrip("/")
CHUNKS = chunks_dir(config)
CALIBRATE = config["calibrate"] is not None
# Pre-processing and solving are one task, unless what is between them shall stay, or is there.
ONE_PASS = CALIBRATE and not config["keep_chunks"] and not progress.has_kept_chunks(OUT)
SOLVES = {solve["name"]: solve for solve in config["calibrate"]["solves"]} if CALIBRATE else {}
BANDS = sorted({row["band_of"] for row in OBSERVATIONS.values()} - {None})
IMAGE = config["image"]["enabled"]
WSCLEAN = wsclean.find(config["image"]["command"]) is not None
# Chunks that fit_chunk looks at, spread over the observation: enough for a figure, cheap beside the calibration.
FIT_CHUNKS = 4
PLAN = f"{OUT}/plan/observations.json"
# What DP3 makes of a chunk in each stage; it lies elsewhere than the records if there is a `scratch_dir`.
PRODUCTS = {
    "preprocess": f"{CHUNKS}/{{obs}}/preprocess/{{chunk}}.ms",
    "calibrate": f"{CHUNKS}/{{obs}}/calibrate/{{chunk}}",
    "apply": f"{CHUNKS}/{{obs}}/apply/{{chunk}}.ms",
}
# Sections of the configuration that the plan is made from.
PLAN_SECTIONS = {
    key: config[key] for key in ("chunks", "preprocess", "calibrate", "apply", "quality", "extra_inputs_dir")
} | {"dp3": {key: config["dp3"][key] for key in ("command", "measures_dir")}}


wildcard_constraints:
    obs=r"[A-Za-z0-9_+][A-Za-z0-9_.+-]*",
    chunk=r"t\d+",
    solve=r"[A-Za-z][A-Za-z0-9_]*",


def input_names(with_places):
    """Wrap what Snakemake notes, and compares, of the inputs of a job: where chunks lie makes nothing out of date.

    Snakemake 9.27 has no other way to say that another path is the same input.
    """

    def names(self, job):
        return sorted(
            OUT + path.removeprefix(CHUNKS) if path.startswith(f"{CHUNKS}/") else path
            for path in map(str, with_places(self, job))
        )

    return names


if CHUNKS != OUT and hasattr(PersistenceBase, "_input"):
    PersistenceBase._input = input_names(PersistenceBase._input)


def intermediate(path):
    """Mark a chunk product as one that goes away as soon as nothing needs it, unless the user keeps chunks."""
    return path if config["keep_chunks"] else temp(path)


def given(path):
    """Mark a file of the user: its content is compared, in params, so that its time means nothing.

    What the demo makes is no such file: the rules behind it must run when it is made again.
    """
    return path if path.startswith("demo/") else ancient(path)


def plan_contents(_):
    """Digest the files that the plan is made from: those that the configuration names, and of the data the table.dat."""
    rows = OBSERVATIONS.values()
    sections = [PLAN_SECTIONS["preprocess"], PLAN_SECTIONS["calibrate"]]
    try:
        named = digest.named_in([for_observation(sections, row) for row in rows], config["extra_inputs_dir"])
    except UserError as error:
        sys.exit(f"chunkcal: {error}")
    return digest.of_contents([*(row["ms"] for row in rows), *(row["sky_model"] for row in rows), *named])


def wanted_dp3_version():
    """Give the version of DP3 that products must be made with.

    Where another version is no reason to make anything again, or cannot be told, it is the one of the plan that exists.
    """
    # Not from load_plan, which remembers: this plan may be about to be replaced.
    plans = state.read_json(PLAN)
    planned = next(iter(plans.values())).get("dp3_version") if plans else None
    if planned and not config["dp3"]["rerun_on_new_version"]:
        return planned
    return versions.dp3_here(config["dp3"]["command"]) or planned


@lru_cache(maxsize=1)
def load_plan(path, written_ns):
    """Read the plan, once per process and plan."""
    return requests.load_plan(path)


@lru_cache(maxsize=1)
def plan_in_memory():
    """Plan for a dry run, which shall show every job although it makes no plan."""
    try:
        slots_each = -(-most_slots() // max(1, len(OBSERVATIONS)))
        plans = plans_for_dry_run(list(OBSERVATIONS.values()), PLAN_SECTIONS, wanted_dp3_version(), DEMO, slots_each)
    except UserError as error:
        sys.exit(f"chunkcal: {error}")
    for line in requests.choices(plans):
        tell(line)
    return plans


def plan_of(obs):
    """Return the plan of one observation; the DAG behind it is built when the plan exists."""
    try:
        path = checkpoints.plan_chunks.get().output.plan
    except IncompleteCheckpointException:
        if workflow.dryrun:
            tell_layout(layout.memory_mb(plan_in_memory().values()))
            return plan_in_memory()[obs]
        raise
    plan = load_plan(path, os.stat(path).st_mtime_ns)
    if workflow.dryrun:
        tell_layout(layout.memory_mb(plan.values()))
    if obs not in plan:
        # Of a run with other input. Snakemake plans anew when the input is another, but not when there is none.
        sys.exit(
            f"chunkcal: input: {OBSERVATIONS[obs]['ms']} does not exist, or {path} is not its plan; check the path"
        )
    return plan[obs]


def chunk_names(obs):
    """Name the chunks of an observation in time order."""
    return [chunk["name"] for chunk in plan_of(obs)["chunks"]]


def fit_chunk_names(obs):
    """Name the few chunks, spread over the observation, that the fit to the model is measured on."""
    names = chunk_names(obs)
    step = max(1, -(-len(names) // FIT_CHUNKS))
    return names[::step]


def image_chunk_names(obs):
    """Name the chunks, spread over the observation, that go into the quick-look images; without WSClean, none."""
    names = chunk_names(obs) if WSCLEAN else []
    return names[:: max(1, -(-len(names) // config["image"]["max_chunks"]))]


def chunk_request(*stages):
    """Return the params function of a chunk rule: the DP3 run of its stage or stages, and what to expect of it, as JSON.

    With what makes its product out of date besides: the content of the user's files, and the version of DP3.
    """

    def request(wildcards):
        plan = plan_of(wildcards.obs)
        contents = {path: of for stage in stages for path, of in requests.contents(plan, stage).items()}
        asked = {"contents": contents, "dp3_version": plan["dp3_version"]}
        if stages[0] in ("apply", "fit"):  # DP3 finds the solutions of a solve under its name, processed or not
            asked["solutions"] = {f"{solve}.h5": final_solutions(wildcards.obs, solve) for solve in SOLVES}
        one = requests.chunk_request(plan, stages[0], wildcards.chunk) if len(stages) == 1 else None
        return json.dumps((one or requests.pass_request(plan, wildcards.chunk)) | asked)

    return request


def step_files(*stages):
    """Return the input function for the user's files that the DP3 runs of stages read: solutions, strategies."""
    return lambda wildcards: [
        given(path)
        for path in dict.fromkeys(
            path for stage in stages for path in requests.step_files(plan_of(wildcards.obs), stage)
        )
    ]


def chunk_records(wildcards):
    """List the records of an observation's chunks, of all stages that make its data and solutions."""
    stages = ("preprocess", "calibrate", "apply") if CALIBRATE else ("preprocess",)
    return expand(f"{OUT}/{wildcards.obs}/{{stage}}/{{chunk}}.json", stage=stages, chunk=chunk_names(wildcards.obs))


def final_solutions(obs, solve):
    """Name the h5parm that is applied: merged, and processed if the solve says so."""
    processed = ".processed" if SOLVES[solve]["process"] else ""
    return f"{OUT}/{obs}/solutions/{solve}{processed}.h5"


def process_steps(wildcards):
    """Give the steps that solutions are processed by, with the observation's own reference station if it has one."""
    steps = SOLVES[wildcards.solve]["process"]
    station = OBSERVATIONS[wildcards.obs]["reference_station"]
    return [{"reference": {"station": station}} if station and "reference" in step else step for step in steps]


def solutions(wildcards):
    """List the solutions that are applied, in the order of the solves."""
    return [final_solutions(wildcards.obs, solve) for solve in SOLVES]


def kept_chunks(wildcards):
    """List the chunk products that are guaranteed to exist: none, unless the user keeps them."""
    if not config["keep_chunks"]:
        return []
    products = PRODUCTS.values() if CALIBRATE else [PRODUCTS["preprocess"]]
    return [path for obs in OBSERVATIONS for path in expand(products, obs=obs, chunk=chunk_names(obs))]


def grows(first):
    """Return what a job asks for (MB, minutes) as a function: `first`, and as much more with each further attempt."""
    return lambda wildcards, attempt: first * attempt


def executor_is_slurm():
    """Tell whether snakemake itself submits jobs to SLURM (``executor: slurm``, as in profiles/slurm)."""
    plugin = workflow.executor_plugin
    return plugin is not None and plugin.name == "slurm"


def cluster_settings():
    """Resolve what the cluster section leaves to the machine: the backend, the slots and their threads.

    What goes by the memory of a DP3 stays open until the cluster starts, which is when there is a plan.
    """
    settings = dict(config["cluster"]) | {"machine_cores": workflow.cores or 1}
    if settings["backend"] == "auto":
        settings["backend"] = "slurm" if executor_is_slurm() else "local"
    if layout.is_open(settings):
        return settings
    if settings["backend"] in BATCH_BACKENDS:
        job = settings["job"]
        settings["threads_per_slot"] = job["n_cores"] // job["n_processes"]
        settings["n_slots"] = (job["max_jobs"] or job["n_jobs"]) * job["n_processes"]
    elif settings["n_slots"] == "auto":
        settings["n_slots"] = max(1, (workflow.cores or 1) // settings["threads_per_slot"])
    return settings


def most_slots():
    """Return the number of slots, where it goes by the memory of a DP3 the largest that it can be."""
    return layout.settle(cluster_settings())[0]["n_slots"]


@lru_cache(maxsize=1)
def tell_layout(memory_mb):
    """Say in a dry run what layout the cluster would have, with DP3s that need so much memory, if that is left open."""
    _, note = layout.settle(cluster_settings(), memory_mb)
    if note:
        tell(note)


def chunks_in_flight():
    """Return how many chunk jobs may be under way at once: a spare one waits at each slot, which so is never idle."""
    n_slots = most_slots()
    return max(2 * n_slots, n_slots + 4)


def starts_ahead(settings):
    """Tell whether the cluster starts while the plan is made: if it will be needed, and costs nobody a place in a queue."""
    return (
        settings["backend"] in ("local", "existing")
        and not layout.is_open(settings)
        and any(
            job.rule.name == "start_cluster" or "inflight" in job.rule.resources for job in workflow.dag.needrun_jobs()
        )
    )


def slurm_job_name():
    """Return the name of all jobs that snakemake itself submits to SLURM in this run, None if it submits none."""
    return getattr(workflow.scheduler._executor, "run_uuid", None) if executor_is_slurm() else None


# As `--resources inflight=N`, where neither the command line nor the profile says so.
if "inflight" not in workflow.global_resources:
    workflow.register_resource("inflight", chunks_in_flight())


onstart:
    scheduling.bound(workflow)
    settings = {
        "cluster": cluster_settings(),
        "dp3": config["dp3"] | {"product_digests": config["provenance"]["product_digests"]},
        "on_bad_chunk": config["calibrate"]["on_bad_chunk"] if CALIBRATE else "stop",
        "chunks_dir": CHUNKS,
        "previous_lengths": {obs: plan["chunk_length"] for obs, plan in (state.read_json(PLAN) or {}).items()},
    }
    deployed = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
    try:
        folder = client.begin_run(
            settings,
            log="logs/cluster.log",
            output_dir=OUT,
            slurm_job_name=slurm_job_name(),
            python="python" if deployed else sys.executable,
        )
    except ClusterError as error:
        sys.exit(f"chunkcal: {error}")
    if not terminal.begin(OUT, folder):
        progress.report(OUT, folder)
    if starts_ahead(settings["cluster"]):
        client.start_ahead()


onsuccess:
    client.end_run()
    terminal.end()
    # Snakemake 9.27 takes all behind an ancient() output for up to date when the rule that makes it runs again, as after
    # a kill in the wrong moment: nothing must end as a success that is none.
    targets = [path for job in workflow.dag.targetjobs if not job.output for path in job.input]
    missing = [path for path in targets if not os.path.exists(path)]
    if missing:
        sys.exit(f"chunkcal: {missing[0]} has not been made yet; run snakemake again")
    if CHUNKS != OUT:
        client.leave_scratch(CHUNKS)


onerror:
    interrupted = client.end_run()
    terminal.end()
    # What there is, for whoever looks for the reason; a report that cannot be made is not worth another message.
    if not interrupted and glob.glob(f"{glob.escape(OUT)}/*/preprocess/*.json"):
        subprocess.run([sys.executable, "-m", "chunkcal.cli", "report", OUT], capture_output=True)
        if os.path.exists(f"{OUT}/report.html"):
            # Out of date, whatever the next run makes: without metadata, times count.
            os.utime(f"{OUT}/report.html", (1, 1))
            workflow.persistence.cleanup_metadata(IOFile(f"{OUT}/report.html"))


def also(theirs, ours):
    """Make one hook of two."""

    def both(log):
        ours()
        theirs(log)

    return both


# Of a workflow that is used as a module, Snakemake calls no hook; without ours there is no cluster.
if not workflow.modifier.is_main_snakefile():
    workflow._onstart = also(workflow._onstart, onstart)
    workflow._onsuccess = also(workflow._onsuccess, onsuccess)
    workflow._onerror = also(workflow._onerror, onerror)
