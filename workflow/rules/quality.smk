"""Judge the solutions of each observation, and stop one whose solutions are not fit to be applied.

In: the records of the calibration, the final solutions. Out: <obs>/quality.json, and a mark that lets apply begin.
"""


rule judge_quality:
    input:
        records=lambda wildcards: expand(
            rules.calibrate_chunk.output.record, obs=wildcards.obs, chunk=chunk_names(wildcards.obs)
        ),
        solutions=solutions,
    output:
        f"{OUT}/{{obs}}/quality.json",
    log:
        "logs/judge_quality/{obs}.log",
    benchmark:
        "benchmarks/judge_quality/{obs}.tsv"
    conda:
        "../envs/chunkcal.yaml"
    resources:
        mem_mb=grows(4000),
        runtime=grows(60),
    params:
        # No input: a plan that is made again because another observation was added must not apply everything again.
        plan=rules.plan_chunks.output.plan,
        limits=config["quality"]["limits"],
    script:
        "../scripts/judge_quality.py"


rule require_quality:
    input:
        rules.judge_quality.output[0],
    output:
        touch(f"{OUT}/{{obs}}/quality.passed"),
    log:
        "logs/require_quality/{obs}.log",
    retries: 0  # another look would see the same
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    params:
        policy=config["quality"]["on_quality_fail"],
    script:
        "../scripts/require_quality.py"
