"""Let an observation go on if its solutions are fit to be applied, or if the user wants it anyway."""

from chunkcal.logs import rule_log
from chunkcal.quality.observation import require_quality

with rule_log(snakemake.log[0]):
    require_quality(snakemake.input[0], snakemake.params.policy)
