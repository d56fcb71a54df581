"""Solve for the gains of each chunk with DDECal, against the observation's sky model.

In: the raw MeasurementSet, the sky model. Out: the pre-processed chunk, a folder with one h5parm per solve, and the records
of both. The solves follow in the same task, and where that changes no bit in the same DP3 process. If chunks are kept,
pre-processing is a rule of its own, so that other solves need not wait for it again.
"""

if ONE_PASS:

    rule calibrate_chunk:
        input:
            cluster=ancient(rules.start_cluster.output[0]),
            ms=lambda wildcards: ancient(OBSERVATIONS[wildcards.obs]["ms"]),
            sky_model=lambda wildcards: given(OBSERVATIONS[wildcards.obs]["sky_model"]),
            files=step_files("preprocess", "calibrate"),
        output:
            product=intermediate(directory(PRODUCTS["calibrate"])),
            record=f"{OUT}/{{obs}}/calibrate/{{chunk}}.json",
            ms=intermediate(directory(PRODUCTS["preprocess"])),
            ms_record=f"{OUT}/{{obs}}/preprocess/{{chunk}}.json",
        log:
            "logs/calibrate_chunk/{obs}.{chunk}.log",
        localrule: True
        conda:
            "../envs/chunkcal.yaml"
        threads: 0  # it only waits for its DP3; `inflight` bounds how many do
        resources:
            inflight=1,
        params:
            request=chunk_request("preprocess", "calibrate"),
        script:
            "../scripts/run_chunk.sh"

else:

    rule calibrate_chunk:
        input:
            cluster=ancient(rules.start_cluster.output[0]),
            ms=PRODUCTS["preprocess"],
            sky_model=lambda wildcards: given(OBSERVATIONS[wildcards.obs]["sky_model"]),
            files=step_files("calibrate"),
        output:
            product=intermediate(directory(PRODUCTS["calibrate"])),
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
            "../scripts/run_chunk.sh"
