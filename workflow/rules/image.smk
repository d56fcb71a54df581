"""Take a quick look at the sky with WSClean, before and after calibration; optional.

In: pre-processed and calibrated chunks, which therefore stay until all of them are there. Out: the folder <obs>/image.
Chunks and not the joined data, because before calibration there are no others, and both pictures shall show the same.
"""


rule image_observation:
    input:
        before=lambda wildcards: expand(
            PRODUCTS["preprocess"], obs=wildcards.obs, chunk=image_chunk_names(wildcards.obs)
        ),
        after=lambda wildcards: expand(
            rules.apply_chunk.output.product,
            obs=wildcards.obs,
            chunk=image_chunk_names(wildcards.obs) if CALIBRATE else [],
        ),
    output:
        directory(f"{OUT}/{{obs}}/image"),
    log:
        "logs/image_observation/{obs}.log",
    benchmark:
        "benchmarks/image_observation/{obs}.tsv"
    conda:
        "../envs/chunkcal.yaml"
    threads: min(8, workflow.cores or 4)
    resources:
        mem_mb=grows(8000),
        runtime=grows(60),
    params:
        settings={key: value for key, value in config["image"].items() if key not in ("enabled", "max_chunks")},
        # Once WSClean is installed, the rule runs again.
        found=WSCLEAN,
    script:
        "../scripts/image_observation.py"
