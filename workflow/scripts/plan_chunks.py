"""Read the observations, cut them into chunks, and see whether that can be carried out here."""

from chunkcal.logs import rule_log
from chunkcal.preflight import checked_plan

with rule_log(snakemake.log[0]):
    params = snakemake.params
    plan = checked_plan(params.observations, params.sections, dp3_version=params.dp3_version, **params.place)
    plan.write(table=snakemake.output.table, plan=snakemake.output.plan)
