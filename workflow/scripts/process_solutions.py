"""Process the merged solutions of one solve: reference, flag, smooth, interpolate, normalise."""

from chunkcal.logs import rule_log
from chunkcal.solutions.process import process

with rule_log(snakemake.log[0]):
    print(process(snakemake.input[0], snakemake.output[0], snakemake.params.steps))
