"""Add up what each chunk's record says of flags.

In: the records of all chunks, before and after each stage. Out: <obs>/flags.tsv.
"""


rule merge_flags:
    input:
        lambda wildcards: [
            f"{OUT}/{wildcards.obs}/{stage}/{chunk}.json"
            for stage in (("preprocess", "apply") if CALIBRATE else ("preprocess",))
            for chunk in chunk_names(wildcards.obs)
        ],
    output:
        f"{OUT}/{{obs}}/flags.tsv",
    log:
        "logs/merge_flags/{obs}.log",
    priority: -1  # nothing waits for it, and join_chunks and write_report can begin when it can
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    params:
        plan=rules.plan_chunks.output.plan,
    script:
        "../scripts/merge_flags.py"
