"""Merge the solutions of all chunks into one h5parm per solve, and verify that they cover it exactly once.

In: the chunks' h5parms. Out: <obs>/solutions/<solve>.h5; processed, if the solve says so, <solve>.processed.h5; and for
observations that are bands of one (column band_of of the sample sheet) <band_of>/bands/<solve>.h5.
"""


rule merge_solutions:
    input:
        lambda wildcards: expand(
            rules.calibrate_chunk.output.product, obs=wildcards.obs, chunk=chunk_names(wildcards.obs)
        ),
    output:
        f"{OUT}/{{obs}}/solutions/{{solve}}.h5",
    log:
        "logs/merge_solutions/{obs}.{solve}.log",
    benchmark:
        "benchmarks/merge_solutions/{obs}.{solve}.tsv"
    conda:
        "../envs/chunkcal.yaml"
    resources:
        mem_mb=grows(4000),
        runtime=grows(60),
    params:
        history=lambda wildcards: requests.history(plan_of(wildcards.obs), "preprocess", "calibrate"),
        grid=lambda wildcards: requests.solution_grid(plan_of(wildcards.obs), wildcards.solve),
    script:
        "../scripts/merge_solutions.py"


rule process_solutions:
    input:
        rules.merge_solutions.output[0],
    output:
        f"{OUT}/{{obs}}/solutions/{{solve}}.processed.h5",
    log:
        "logs/process_solutions/{obs}.{solve}.log",
    benchmark:
        "benchmarks/process_solutions/{obs}.{solve}.tsv"
    conda:
        "../envs/chunkcal.yaml"
    resources:
        mem_mb=grows(4000),
        runtime=grows(60),
    params:
        steps=process_steps,
    script:
        "../scripts/process_solutions.py"


rule merge_bands:
    input:
        lambda wildcards: [
            final_solutions(obs, wildcards.solve)
            for obs, row in OBSERVATIONS.items()
            if row["band_of"] == wildcards.obs
        ],
    output:
        f"{OUT}/{{obs}}/bands/{{solve}}.h5",
    log:
        "logs/merge_bands/{obs}.{solve}.log",
    benchmark:
        "benchmarks/merge_bands/{obs}.{solve}.tsv"
    conda:
        "../envs/chunkcal.yaml"
    resources:
        mem_mb=grows(4000),
        runtime=grows(60),
    script:
        "../scripts/merge_bands.py"
