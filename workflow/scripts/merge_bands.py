"""Merge the solutions of the bands of one observation along frequency."""

from chunkcal.bands import merge_bands
from chunkcal.logs import rule_log

with rule_log(snakemake.log[0]):
    print(merge_bands(snakemake.input, snakemake.output[0]))
