"""Simulate one observation of the demo."""

from chunkcal.logs import rule_log
from chunkcal.simulate import Simulation, simulate

with rule_log(snakemake.log[0]):
    simulate(Simulation(**snakemake.params.settings), snakemake.output.ms)
