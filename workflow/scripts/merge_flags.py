"""Add up the flag counts of one observation."""

from chunkcal.logs import rule_log
from chunkcal.reporting.results import write_flags

with rule_log(snakemake.log[0]):
    write_flags(snakemake.params.plan, snakemake.input, snakemake.wildcards.obs, snakemake.output[0])
