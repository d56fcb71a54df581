"""Cut every observation into time chunks at boundaries where chunked equals unchunked.

In: the MeasurementSets and sky models. Out: the chunk table and, per observation, the DP3 runs of each stage.
"""


checkpoint plan_chunks:
    input:
        ms=[ancient(row["ms"]) for row in OBSERVATIONS.values()],
        sky_models=[row["sky_model"] for row in OBSERVATIONS.values() if row["sky_model"]],
    output:
        table=f"{OUT}/plan/chunks.tsv",
        plan=f"{OUT}/plan/observations.json",
    log:
        "logs/plan_chunks.log",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    params:
        observations=list(OBSERVATIONS.values()),
        sections={
            key: config[key]
            for key in ("chunks", "preprocess", "calibrate", "apply", "quality", "extra_inputs_dir", "dp3")
        },
    script:
        "../scripts/plan_chunks.py"
