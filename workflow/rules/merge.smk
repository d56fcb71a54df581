"""Merge the solutions of all chunks into one h5parm per solve, and verify that they cover it exactly once.

In: the chunks' h5parms. Out: <obs>/solutions/<solve>.h5.
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
    params:
        grid=lambda wildcards: requests.solution_grid(plan_of(wildcards.obs), wildcards.solve),
    script:
        "../scripts/merge_solutions.py"
