"""Run DP3 for one chunk on the shared cluster; all chunk rules use it, so it imports nothing slow."""

import os

from chunkcal.cluster.client import run_chunk, run_pass

LINKS = {"ms": "in.ms", "corrected": "corrected.ms"}
common = {
    "name": " ".join((snakemake.rule.removesuffix("_chunk"), *snakemake.wildcards)),
    "request": snakemake.params.request,
    "log": snakemake.log[0],
}
if "stages" in snakemake.params.request:
    run_pass(
        outputs={"preprocess": snakemake.output.ms, "calibrate": snakemake.output.product},
        records={"preprocess": snakemake.output.ms_record, "calibrate": snakemake.output.record},
        **common,
    )
else:
    inputs = {LINKS[name]: str(path) for name, path in snakemake.input.items() if name in LINKS}
    # DP3 finds the solutions of a solve under its name, processed or not.
    inputs |= {f"{os.path.basename(path).partition('.')[0]}.h5": path for path in snakemake.input.get("solutions", [])}
    run_chunk(inputs=inputs, output=snakemake.output.product, record=snakemake.output.record, **common)
