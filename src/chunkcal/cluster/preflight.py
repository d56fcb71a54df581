"""Ask the batch system whether it would take the workers' jobs (``python -m chunkcal.cluster.preflight FOLDER``)."""

from __future__ import annotations

import sys
from pathlib import Path

from chunkcal.cluster import layout, state
from chunkcal.cluster.backends.jobqueue import preflight
from chunkcal.cluster.state import ClusterError


def main(folder: Path) -> int:
    """Print the reason of a refusal, if there is one, as the last line of standard error."""
    settings, _ = layout.settle(state.read_json(folder / "run.json")["settings"]["cluster"])
    try:
        preflight(settings, folder)
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
