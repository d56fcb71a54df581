"""Merge the solutions of the bands of one observation along frequency."""

from chunkcal.logs import rule_log
from chunkcal.solutions.bands import merge_bands

with rule_log(snakemake.log[0]):
    print(merge_bands(snakemake.input, snakemake.output[0]))
