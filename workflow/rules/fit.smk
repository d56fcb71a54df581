"""Measure, on a few chunks, how well the data fit the sky model before and after calibration.

In: a chunk before and after apply, the merged h5parms, the sky model. Out: <obs>/fit/<chunk>.json with the residuals.
"""


rule fit_chunk:
    input:
        cluster=ancient(rules.start_cluster.output[0]),
        ms=PRODUCTS["preprocess"],
        corrected=rules.apply_chunk.output.product,
        solutions=solutions,
        sky_model=lambda wildcards: given(OBSERVATIONS[wildcards.obs]["sky_model"]),
    output:
        product=f"{OUT}/{{obs}}/fit/{{chunk}}.fit.json",
        record=f"{OUT}/{{obs}}/fit/{{chunk}}.json",
    log:
        "logs/fit_chunk/{obs}.{chunk}.log",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    threads: 0  # it only waits for its DP3; `inflight` bounds how many do
    resources:
        inflight=1,
    params:
        request=chunk_request("fit"),
    script:
        "../scripts/run_chunk.sh"
