#!/usr/bin/env bash
# Snakemake runs this in the new environment, from the folder that the run was started in: the repository's root.
set -euo pipefail
pip install --no-deps --no-build-isolation .
