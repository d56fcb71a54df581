"""Merge the chunks' h5parms of one observation."""

from chunkcal.logs import rule_log
from chunkcal.merge import Grid, merge

with rule_log(snakemake.log[0]):
    merge(snakemake.input, snakemake.output[0], Grid.of(**snakemake.params.grid))
