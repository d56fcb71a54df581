"""Run the pre-processing steps on each time chunk of the raw data.

In: the raw MeasurementSet (read only). Out: one MeasurementSet per chunk, and the record of how it was made.
Where chunks are calibrated and not kept, calibrate_chunk does it.
"""

if not ONE_PASS:

    rule preprocess_chunk:
        input:
            cluster=ancient(rules.start_cluster.output[0]),
            ms=lambda wildcards: ancient(OBSERVATIONS[wildcards.obs]["ms"]),
            files=step_files("preprocess"),
        output:
            product=intermediate(directory(PRODUCTS["preprocess"])),
            record=f"{OUT}/{{obs}}/preprocess/{{chunk}}.json",
        log:
            "logs/preprocess_chunk/{obs}.{chunk}.log",
        localrule: True
        conda:
            "../envs/chunkcal.yaml"
        threads: 0  # it only waits for its DP3; `inflight` bounds how many do
        resources:
            inflight=1,
        params:
            request=chunk_request("preprocess"),
        script:
            "../scripts/run_chunk.sh"
