"""Start the run's cluster and describe what it was asked to be."""

from chunkcal.cluster import state
from chunkcal.cluster.client import ensure_cluster
from chunkcal.logs import rule_log

with rule_log(snakemake.log[0]):
    ensure_cluster().close()
    run = state.read_json(f"{state.folder_of_this_run()}/run.json")
    state.write_json(snakemake.output[0], run["settings"]["cluster"])
