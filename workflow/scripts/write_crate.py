"""Describe the output folder as an RO-Crate."""

from chunkcal.lineage.crate import write_crate
from chunkcal.logs import rule_log

with rule_log(snakemake.log[0]):
    write_crate(
        provenance=snakemake.input.provenance,
        snakefile=snakemake.input.snakefile,
        output=snakemake.output[0],
    )
