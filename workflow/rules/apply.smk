"""Apply the merged solutions to each chunk.

In: the chunk's pre-processed MeasurementSet, the merged h5parms. Out: one calibrated MeasurementSet per chunk.
"""


rule apply_chunk:
    input:
        cluster=ancient(rules.start_cluster.output[0]),
        ms=PRODUCTS["preprocess"],
        solutions=solutions,
        fit_for_use=rules.require_quality.output[0],
        files=step_files("apply"),
    output:
        product=intermediate(directory(PRODUCTS["apply"])),
        record=f"{OUT}/{{obs}}/apply/{{chunk}}.json",
    log:
        "logs/apply_chunk/{obs}.{chunk}.log",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    threads: 0  # it only waits for its DP3; `inflight` bounds how many do
    resources:
        inflight=1,
    params:
        request=chunk_request("apply"),
    script:
        "../scripts/run_chunk.sh"
