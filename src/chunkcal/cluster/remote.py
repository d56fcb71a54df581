"""What the supervisor has workers call.

It is here, and not where it is done, because supervisor and scheduler import it, too: they need no casacore nor h5py.
"""

from __future__ import annotations

from typing import Any


def run_dp3(request: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Run DP3, see `chunkcal.cluster.task.run_dp3`."""
    from chunkcal.cluster import task

    return task.run_dp3(request, settings)


async def verify_dp3(request: dict[str, Any], settings: dict[str, Any], unverified: dict[str, Any]) -> dict[str, Any]:
    """Verify what DP3 has made, see `chunkcal.cluster.task.verify_dp3`."""
    from chunkcal.cluster import task

    return await task.verify_dp3(request, settings, unverified)


def memory_limit(dask_worker: Any) -> int:
    """Tell how much memory a worker may use, see `chunkcal.cluster.task.memory_limit`."""
    from chunkcal.cluster import task

    return task.memory_limit(dask_worker)
