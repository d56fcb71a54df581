"""The ``chunkcal`` command: what is useful outside of Snakemake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import chunkcal
from chunkcal import preflight, simulate
from chunkcal.cluster import cli as cluster
from chunkcal.errors import UserError
from chunkcal.lineage import replay
from chunkcal.reporting import report, summary, watch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; a user's mistake ends with one line and exit status 1."""
    parser = argparse.ArgumentParser(prog="chunkcal", description=__doc__)
    parser.add_argument("--version", action="version", version=chunkcal.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    preflight.add_arguments(
        commands.add_parser("check", help="say what a run would find and do, and all that is in its way; start nothing")
    )
    simulate.add_arguments(
        commands.add_parser("simulate", help="make a MeasurementSet whose sky, gains, noise and interference are known")
    )
    summary.add_arguments(commands.add_parser("summary", help="say what a run has made and what calibration gained"))
    report.add_arguments(commands.add_parser("report", help="write the report of a run that has not finished"))
    cluster.add_arguments(commands.add_parser("cluster", help="show what would be asked of the batch system"))
    replay.add_arguments(
        commands.add_parser("replay", help="make one chunk again and say whether it holds the same bits")
    )
    watch.add_arguments(commands.add_parser("watch", help="show how far a run is, while it runs"))
    options = parser.parse_args(arguments)
    modules = {
        "check": preflight,
        "cluster": cluster,
        "replay": replay,
        "report": report,
        "simulate": simulate,
        "summary": summary,
        "watch": watch,
    }
    try:
        return modules[options.command].run(options)
    except UserError as error:
        print(f"chunkcal: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
