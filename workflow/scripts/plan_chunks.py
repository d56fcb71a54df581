"""Read the observations, cut them into chunks, and see whether that can be carried out here."""

from chunkcal.cluster import layout, state
from chunkcal.logs import rule_log, tell
from chunkcal.planning import requests
from chunkcal.preflight import checked_plan

with rule_log(snakemake.log[0]):
    params = snakemake.params
    # Not among the params: another number of slots, or another place for chunks, is no reason to plan anew.
    run = state.read_json(f"{state.folder_of_this_run()}/run.json")["settings"]
    here = {key: run[key] for key in ("previous_lengths", "chunks_dir")}
    here["n_slots"] = layout.settle(run["cluster"])[0]["n_slots"]
    plan = checked_plan(params.observations, params.sections, dp3_version=params.dp3_version, **params.place, **here)
    for line in requests.choices(plan.observations):
        tell(line)
    plan.write(table=snakemake.output.table, plan=snakemake.output.plan)
