"""What DP3 prints about the convergence of its solves."""

from __future__ import annotations

import re

_SHOWN = re.compile(r"^DDECal (?P<step>\S+)$")
_MAX_ITERATIONS = re.compile(r"^\s+max iter:\s+(?P<n>\d+)$")
_TIMED = re.compile(r"^\s*[\d.]+% \(.*\) DDECal (?P<step>\S+)$")
_TAKEN = re.compile(r"^Iterations taken: \[(?P<counts>[\d,|]*)\]$")


def convergence(log_text: str) -> dict[str, dict[str, int]]:
    """Count the solution intervals in which DDECal converged.

    At its start, DP3 6.6 prints ``max iter`` of each DDECal step, at its end a line ``Iterations taken: [51,12|7,…]``
    with one number per interval, |n being the ones with an approximate constraint (steps/DDECal.cc, ``show`` and
    ``showTimings``). One more iteration than the largest number stands for an interval that has not
    converged (ddecal/gain_solvers/SolverBase.cc, ``MakeResult``).

    What the log does not tell: an interval that `detectstalling` has stopped, possible from iteration 30 on, cannot be
    told from a converged one; one without any data takes 1 iteration and counts as converged. So `converged` is an
    upper bound, exact with ``detectstalling=false``. With the hybrid solver an interval that converges with its very
    last iteration may count as not converged.

    Parameters
    ----------
    log_text
        All that DP3 printed. If several runs are in it, the last one that ended counts.

    Returns
    -------
    dict
        By name of the DDECal step: ``n`` intervals, of which ``converged``. Steps that did not end are absent, so
        a DP3 that was killed gives nothing.
    """
    found: dict[str, dict[str, int]] = {}
    largest: dict[str, int] = {}
    step = None
    for line in log_text.splitlines():
        if match := _SHOWN.match(line) or _TIMED.match(line):
            step = match["step"].rstrip(".")
        elif step and (match := _MAX_ITERATIONS.match(line)):
            largest[step] = int(match["n"])
        elif step in largest and (match := _TAKEN.match(line)):
            counts = [int(count.split("|")[0]) for count in match["counts"].split(",") if count]
            found[step] = {"n": len(counts), "converged": sum(count <= largest[step] for count in counts)}
    return found
