"""Snakemake's scheduler with a cost per job that does not grow with the number of chunks.

After each job Snakemake 9.27 looks up the size of each input file of each job that is ready, and lists all jobs that
are left: work that grows with the square of the number of chunks. And it runs no more jobs at a time than it has cores
and five, whatever they need. No setting changes that. All of it is Snakemake's own: where another version or another
scheduler lacks one of the pieces, its way is left alone. Standard library only.
"""

from __future__ import annotations

import heapq
import inspect
from collections import defaultdict
from typing import Any

# The resource of which each chunk job holds one.
INFLIGHT = "inflight"
# Threads besides those of chunks, for heavy rules.
SPARE_THREADS = 5


def bound(workflow: Any) -> dict[str, bool]:
    """Bound what Snakemake does for each job of the run that is about to start.

    Parameters
    ----------
    workflow
        Snakemake's, in ``onstart``.

    Returns
    -------
    dict
        Which of ``timers``, ``rounds`` and ``threads`` have been bounded.
    """
    scheduler = getattr(workflow, "scheduler", None)
    return {
        "timers": _without_timers(scheduler),
        "rounds": _with_short_rounds(workflow, scheduler),
        "threads": _with_enough_threads(scheduler),
    }


def _without_timers(scheduler: Any) -> bool:
    """Switch the job rate limiter off.

    With it, Snakemake 9.27 starts a timer thread at each scheduling step that starts another one.
    """
    if getattr(scheduler, "job_rate_limiter", None) is None:
        return False
    scheduler.job_rate_limiter = None
    return True


def _with_short_rounds(workflow: Any, scheduler: Any) -> bool:
    """Let each step of the scheduler look at no more jobs than can start."""
    selector = getattr(scheduler, "_scheduler", None)
    kind = type(scheduler)
    known = (
        type(selector).__module__ == "snakemake.scheduling.greedy"
        and hasattr(selector.settings, "omit_prioritize_by_temp_and_input")
        and all(isinstance(getattr(kind, name, None), property) for name in ("open_jobs", "remaining_jobs"))
        and inspect.iscoroutinefunction(getattr(kind, "update_input_sizes", None))
        and INFLIGHT in getattr(scheduler, "resources", {})
        and hasattr(scheduler, "running")
        and hasattr(getattr(workflow, "dag", None), "depending")
    )
    if not known:
        return False
    # Rules that come later in the data flow are written later.
    depth = {
        rule.name: (rule.priority, number) for number, rule in enumerate(workflow.rules) if INFLIGHT in rule.resources
    }
    depending = workflow.dag.depending

    def n_depending(job: Any) -> int:
        return len(depending.get(job, ()))

    class ShortRounds(kind):
        @property
        def open_jobs(self) -> list[Any]:
            """Jobs that may start: as many chunks as may be in flight, by priority, then those that others led to.

            Of one rule first those that most others wait for, which are the chunks that the fit is measured on.
            """
            chunks: dict[tuple[float, int], list[Any]] = defaultdict(list)
            others = []
            for job in super().open_jobs:
                number = depth.get(job.rule.name) if hasattr(job, "rule") else None  # a group has none
                if number is None:
                    others.append(job)
                else:
                    chunks[number].append(job)
            free = self.resources[INFLIGHT]
            for number in sorted(chunks, reverse=True):
                chosen = heapq.nlargest(max(0, free), chunks[number], key=n_depending)
                free -= len(chosen)
                others += chosen
            return others

        @property
        def remaining_jobs(self) -> list[Any]:
            """All jobs that are left, which is asked for after each job, but looked at only in the end."""
            return [] if self.running or super().open_jobs else super().remaining_jobs

        async def update_input_sizes(self, jobs: Any) -> None:
            """Look at no file."""

    selector.settings.omit_prioritize_by_temp_and_input = True
    scheduler.__class__ = ShortRounds
    return True


def _with_enough_threads(scheduler: Any) -> bool:
    """Let as many jobs run here as may be in flight; each is a thread that waits."""
    executor = getattr(scheduler, "_local_executor", None) or getattr(scheduler, "_executor", None)
    pool = getattr(executor, "pool", None)
    wanted = getattr(scheduler, "resources", {}).get(INFLIGHT, 0) + SPARE_THREADS
    if not isinstance(getattr(pool, "_max_workers", None), int) or pool._max_workers >= wanted:
        return False
    pool._max_workers = wanted
    return True
