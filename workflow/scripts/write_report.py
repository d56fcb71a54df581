"""Write the report of the run."""

from chunkcal.logs import rule_log
from chunkcal.reporting.report import write_report

with rule_log(snakemake.log[0]):
    write_report(
        plan=snakemake.input.plan,
        records=snakemake.input.records,
        fits=snakemake.input.get("fits", []),
        solutions=snakemake.input.get("solutions", []),
        measurement_sets=snakemake.params.ms,
        settings=snakemake.params.settings,
        quality=snakemake.input.get("quality", []),
        images=snakemake.input.get("images", []),
        output=snakemake.output[0],
    )
