"""``chunkcal cluster``: what would be asked of the batch system."""

from __future__ import annotations

import argparse
from pathlib import Path

from chunkcal.cluster import layout
from chunkcal.cluster.state import SHARED, ClusterError
from chunkcal.commandline import add_config_arguments, read_config
from chunkcal.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``chunkcal cluster``."""
    actions = parser.add_subparsers(dest="action", required=True)
    script = actions.add_parser("job-script", help="print the script that would be submitted for each worker job")
    add_config_arguments(script)


def run(options: argparse.Namespace) -> int:
    """Print the job script."""
    # Here, not above: dask takes a second to import, which every other command of chunkcal would wait for.
    from chunkcal.cluster.backends.jobqueue import CLUSTERS, Place, job_script

    config, executor = read_config(options)
    settings = config["cluster"]
    if settings["backend"] == "auto" and executor == "slurm":
        settings["backend"] = "slurm"
    if settings["backend"] not in CLUSTERS:
        raise UserError(
            f"cluster.backend {settings['backend']} submits no jobs; add --profile slurm, or "
            "--config cluster='{backend: slurm}'"
        )
    settings, _ = layout.settle(settings)
    shared = Path.cwd() / config["output_dir"] / SHARED / "RUN"
    try:
        print(job_script(settings, Place("ccal-RUN", shared, Path.cwd() / "logs/workers")))
    except ClusterError as error:
        raise UserError(str(error)) from error
    return 0
