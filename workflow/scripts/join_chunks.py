"""Join the chunk MeasurementSets of one observation."""

from chunkcal.join import dp3_times, join
from chunkcal.lineage import history
from chunkcal.logs import rule_log

with rule_log(snakemake.log[0]):
    times = snakemake.params.times
    join(snakemake.input, snakemake.output[0], snakemake.params.expects, times and dp3_times(**times))
    history.add_to_ms(snakemake.output[0], history.lines(**snakemake.params.history))
