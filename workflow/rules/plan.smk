"""Cut every observation into time chunks at boundaries where chunked equals unchunked.

In: the MeasurementSets and sky models. Out: the chunk table and, per observation, the DP3 runs of each stage. Planning
looks at all that is in the way of a run, too; `snakemake preflight` only looks.
"""


checkpoint plan_chunks:
    input:
        ms=[ancient(row["ms"]) for row in OBSERVATIONS.values()],
        sky_models=[given(row["sky_model"]) for row in OBSERVATIONS.values() if row["sky_model"]],
    output:
        table=f"{OUT}/plan/chunks.tsv",
        plan=PLAN,
    log:
        "logs/plan_chunks.log",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    params:
        observations=list(OBSERVATIONS.values()),
        sections=PLAN_SECTIONS,
        dp3_version=wanted_dp3_version(),
        place={"output_dir": OUT, "keep_chunks": config["keep_chunks"]},
        # Looked at by Snakemake alone: other content makes the plan out of date.
        contents=plan_contents,
    script:
        "../scripts/plan_chunks.py"


rule preflight:
    input:
        ms=[ancient(row["ms"]) for row in OBSERVATIONS.values()],
        sky_models=[given(row["sky_model"]) for row in OBSERVATIONS.values() if row["sky_model"]],
    log:
        "logs/preflight.log",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    params:
        config=config,
    script:
        "../scripts/preflight.py"
