"""Image one observation; without WSClean, say so and go on."""

import sys

from chunkcal.image import make_images
from chunkcal.logs import rule_log

with rule_log(snakemake.log[0]):
    problem = make_images(
        before=snakemake.input.before,
        after=snakemake.input.get("after", []),
        output=snakemake.output[0],
        settings=snakemake.params.settings,
        n_threads=snakemake.threads,
    )
if problem:
    print(f"chunkcal: {snakemake.wildcards.obs}: {problem}; log: {snakemake.log[0]}", file=sys.stderr)
