"""Solve for the gains of each chunk with DDECal, against the observation's sky model.

In: the chunk's pre-processed MeasurementSet, the sky model. Out: a folder with one h5parm per solve, and its record.
"""


rule calibrate_chunk:
    input:
        cluster=ancient(rules.start_cluster.output[0]),
        ms=rules.preprocess_chunk.output.product,
        sky_model=lambda wildcards: given(OBSERVATIONS[wildcards.obs]["sky_model"]),
        files=step_files("calibrate"),
    output:
        product=intermediate(directory(chunk_product("calibrate"))),
        record=f"{OUT}/{{obs}}/calibrate/{{chunk}}.json",
    log:
        "logs/calibrate_chunk/{obs}.{chunk}.log",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    threads: 0  # it only waits for its DP3; `inflight` bounds how many do
    resources:
        inflight=1,
    params:
        request=chunk_request("calibrate"),
    script:
        "../scripts/run_chunk.py"
