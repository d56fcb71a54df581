"""Write the page that a person looks at.

In: the plan, the records of all chunks, the fits, the merged solutions and verdicts on them, the quick-look images. Out: report.html.
"""


rule write_report:
    input:
        plan=rules.plan_chunks.output.plan,
        records=lambda wildcards: [
            f"{OUT}/{obs}/{stage}/{chunk}.json"
            for obs in OBSERVATIONS
            for stage in (("preprocess", "calibrate", "apply") if CALIBRATE else ("preprocess",))
            for chunk in chunk_names(obs)
        ]
        + [
            f"{OUT}/{obs}/fit/{chunk}.json"
            for obs in (OBSERVATIONS if CALIBRATE else [])
            for chunk in fit_chunk_names(obs)
        ],
        fits=lambda wildcards: [
            f"{OUT}/{obs}/fit/{chunk}.fit.json"
            for obs in (OBSERVATIONS if CALIBRATE else [])
            for chunk in fit_chunk_names(obs)
        ],
        solutions=[final_solutions(obs, solve) for obs in OBSERVATIONS for solve in SOLVES],
        quality=expand(rules.judge_quality.output, obs=OBSERVATIONS if CALIBRATE else []),
        images=expand(rules.image_observation.output, obs=OBSERVATIONS if IMAGE else []),
    output:
        report(f"{OUT}/report.html", caption="../report/summary.rst"),
    log:
        "logs/write_report.log",
    benchmark:
        "benchmarks/write_report.tsv"
    conda:
        "../envs/chunkcal.yaml"
    resources:
        mem_mb=grows(4000),
        runtime=grows(60),
    params:
        # No input: the page only names them, and can be written while they are joined.
        ms=expand(rules.join_chunks.output, obs=OBSERVATIONS),
        settings={key: config[key] for key in ("chunks", "preprocess", "calibrate", "apply")},
    script:
        "../scripts/write_report.py"
