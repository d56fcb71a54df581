"""Start the dask cluster that every chunk of this run shares.

Out: a description of the cluster as it was first started. It stays, and chunk rules take it as ancient(): a cluster that
has ended since is no reason to make a finished chunk again, and a chunk that finds none starts it.

The rule has no params on purpose. With them, other cluster settings would make it run again, and Snakemake 9.27 then
leaves out everything behind its ancient() output, also what is missing, and ends as if all were done.
"""


rule start_cluster:
    input:
        # Only for the order: if the checkpoint ended while this job runs and its output is there already, Snakemake 9.27
        # would take all that needs the cluster for up to date, and end.
        plan=ancient(PLAN),
    output:
        f"{OUT}/cluster.json",
    log:
        "logs/start_cluster.log",
    retries: 0  # it has waited as long as the user wants to; a profile's retries are for heavy rules
    localrule: True
    conda:
        "../envs/chunkcal.yaml"
    script:
        "../scripts/start_cluster.py"
