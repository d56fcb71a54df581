"""Start the dask cluster that every chunk of this run shares.

Out: a description of the wanted cluster. It stays, and chunk rules take it as ancient(): a cluster that has ended since
is no reason to make a finished chunk again, and a chunk that finds none starts it.
"""


rule start_cluster:
    output:
        f"{OUT}/cluster.json",
    log:
        "logs/start_cluster.log",
    conda:
        "../envs/chunkcal.yaml"
    params:
        wanted=config["cluster"],
    script:
        "../scripts/start_cluster.py"
