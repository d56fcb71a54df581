"""Write the provenance of one observation."""

from chunkcal.lineage.provenance import write_provenance
from chunkcal.logs import rule_log

with rule_log(snakemake.log[0]):
    write_provenance(
        plan=snakemake.input.plan,
        records=snakemake.input.records,
        solutions=snakemake.input.get("solutions", []),
        ms=snakemake.input.ms,
        cluster=snakemake.input.cluster,
        config=snakemake.params.config,
        output=snakemake.output[0],
    )
