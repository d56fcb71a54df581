"""Run DP3 for one chunk on the shared cluster; all chunk rules use it, so it imports nothing slow."""

from chunkcal.cluster.client import run_chunk

LINKS = {"ms": "in.ms", "solutions": "solutions.h5", "corrected": "corrected.ms"}
inputs = {LINKS[name]: str(path) for name, path in snakemake.input.items() if name in LINKS}
run_chunk(
    name=" ".join((snakemake.rule.removesuffix("_chunk"), *snakemake.wildcards)),
    request=snakemake.params.request,
    inputs=inputs,
    output=snakemake.output.product,
    record=snakemake.output.record,
    log=snakemake.log[0],
)
