"""Merge the chunks' h5parms of one solve; a chunk that DP3 has failed on becomes NaN."""

from pathlib import Path

from chunkcal.cluster.jobs import FAILED
from chunkcal.lineage import history
from chunkcal.logs import rule_log
from chunkcal.solutions.merge import Grid, merge

with rule_log(snakemake.log[0]):
    folders, name = [Path(folder) for folder in snakemake.input], f"{snakemake.wildcards.solve}.h5"
    chunks = [None if (folder / FAILED).exists() else folder / name for folder in folders]
    merge(chunks, snakemake.output[0], Grid.of(**snakemake.params.grid))
    history.add_to_h5parm(snakemake.output[0], history.lines(**snakemake.params.history))
