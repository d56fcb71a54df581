"""Join the chunks of an observation into one physical MeasurementSet.

In: the calibrated chunks, or the pre-processed ones where nothing is solved for. Out: <obs>/<obs>.ms.
"""


rule join_chunks:
    input:
        lambda wildcards: expand(
            PRODUCTS["apply" if CALIBRATE else "preprocess"],
            obs=wildcards.obs,
            chunk=chunk_names(wildcards.obs),
        ),
    output:
        directory(f"{OUT}/{{obs}}/{{obs}}.ms"),
    log:
        "logs/join_chunks/{obs}.log",
    benchmark:
        "benchmarks/join_chunks/{obs}.tsv"
    conda:
        "../envs/chunkcal.yaml"
    resources:
        mem_mb=grows(4000),
        runtime=grows(60),
    params:
        history=lambda wildcards: requests.history(plan_of(wildcards.obs), "preprocess", "calibrate", "apply"),
        expects=lambda wildcards: requests.join_expects(plan_of(wildcards.obs)),
        times=lambda wildcards: requests.join_times(plan_of(wildcards.obs)),
    script:
        "../scripts/join_chunks.py"
