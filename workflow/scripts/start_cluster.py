"""Start the run's cluster and describe what it was asked to be."""

import json
from pathlib import Path

from chunkcal.cluster.client import ensure_cluster
from chunkcal.logs import rule_log

with rule_log(snakemake.log[0]):
    ensure_cluster().close()
    Path(snakemake.output[0]).write_text(json.dumps(snakemake.params.wanted, indent=1) + "\n")
