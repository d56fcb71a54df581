"""Read the observations and cut them into chunks."""

from chunkcal.logs import rule_log
from chunkcal.planning.plan import make_plan

with rule_log(snakemake.log[0]):
    plan = make_plan(snakemake.params.observations, snakemake.params.sections, snakemake.params.dp3_version)
    plan.write(table=snakemake.output.table, plan=snakemake.output.plan)
