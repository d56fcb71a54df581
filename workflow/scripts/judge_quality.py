"""Judge the solutions of one observation."""

from chunkcal.logs import rule_log
from chunkcal.planning.requests import load_plan
from chunkcal.quality.observation import judge_observation

with rule_log(snakemake.log[0]):
    obs = snakemake.wildcards.obs
    found = judge_observation(
        obs=obs,
        plan=load_plan(snakemake.params.plan)[obs],
        records=snakemake.input.records,
        solutions=snakemake.input.solutions,
        limits=snakemake.params.limits,
        output=snakemake.output[0],
    )
    print("\n".join([f"verdict: {found['verdict']}", *found["summary"]]))
