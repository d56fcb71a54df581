"""Pre-process and calibrate MeasurementSets with DP3, in time chunks, on one shared dask cluster.

Data flow: plan -> cluster -> preprocess -> calibrate -> merge -> quality -> apply -> fit -> join -> flags -> image ->
report -> provenance.
"""

import atexit
import gc

from snakemake.utils import min_version

min_version("9.27")

# A tenth of the time in which a large DAG is built: what Snakemake has imported is no garbage, nor are the jobs.
gc.freeze()
gc.set_threshold(50_000, 20, 100)
atexit.register(gc.freeze)  # nor is there anything to look for at the end


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/demo.smk"
include: "workflow/rules/plan.smk"
include: "workflow/rules/cluster.smk"
include: "workflow/rules/preprocess.smk"
include: "workflow/rules/calibrate.smk"
include: "workflow/rules/merge.smk"
include: "workflow/rules/quality.smk"
include: "workflow/rules/apply.smk"
include: "workflow/rules/fit.smk"
include: "workflow/rules/join.smk"
include: "workflow/rules/flags.smk"
include: "workflow/rules/image.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/provenance.smk"


rule all:
    default_target: True
    input:
        expand(f"{OUT}/{{obs}}/{{obs}}.ms", obs=OBSERVATIONS),
        [final_solutions(obs, solve) for obs in OBSERVATIONS for solve in SOLVES],
        expand(f"{OUT}/{{obs}}/bands/{{solve}}.h5", obs=BANDS, solve=SOLVES),
        expand(rules.merge_flags.output, obs=OBSERVATIONS),
        expand(f"{OUT}/{{obs}}/provenance.json", obs=OBSERVATIONS),
        kept_chunks,
        f"{OUT}/report.html",
        f"{OUT}/ro-crate-metadata.json",
