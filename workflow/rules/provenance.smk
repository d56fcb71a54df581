"""Write down how everything was made.

In: the plan, the records of all chunks, the merged h5parms, the joined MeasurementSet. Out: <obs>/provenance.json;
and, over all observations, ro-crate-metadata.json, which describes the output folder for archives.
"""


rule write_provenance:
    input:
        cluster=ancient(rules.start_cluster.output[0]),
        plan=rules.plan_chunks.output.plan,
        records=chunk_records,
        solutions=solutions,
        ms=rules.join_chunks.output[0],
    output:
        f"{OUT}/{{obs}}/provenance.json",
    log:
        "logs/write_provenance/{obs}.log",
    benchmark:
        "benchmarks/write_provenance/{obs}.tsv"
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    params:
        # Without what makes no difference to a product.
        config={key: value for key, value in config.items() if key not in ("cluster", "scratch_dir")},
    script:
        "../scripts/write_provenance.py"


rule write_crate:
    input:
        # Not the report, which it only names: that can be written meanwhile.
        provenance=expand(rules.write_provenance.output, obs=OBSERVATIONS),
        snakefile=ancient(workflow.source_path("../../Snakefile")),
    output:
        f"{OUT}/ro-crate-metadata.json",
    log:
        "logs/write_crate.log",
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    script:
        "../scripts/write_crate.py"
