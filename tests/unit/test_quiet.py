"""A scheduler with `chunkcal.cluster.quiet` as a preload hears of its workers, and looks at itself, less often."""

import asyncio

import pytest
from distributed import Nanny, Scheduler, scheduler


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Give later tests dask's own intervals."""
    monkeypatch.setattr(scheduler, "heartbeat_interval", scheduler.heartbeat_interval)


def test_it_looks_every_five_seconds_whether_it_is_needed():
    async def periods():
        async with Scheduler(preload="chunkcal.cluster.quiet", port=0, dashboard_address=None) as quiet:
            callbacks = [quiet.periodic_callbacks[name] for name in ("idle-timeout", "no-workers-timeout")]
            assert all(callback.is_running() for callback in callbacks)
            return [callback.callback_time for callback in callbacks]

    assert asyncio.run(periods()) == [5000.0, 5000.0]


def test_workers_beat_every_five_seconds():
    usual = scheduler.heartbeat_interval(1000)

    async def times_seen():
        async with (
            Scheduler(preload="chunkcal.cluster.quiet", port=0, dashboard_address=None) as quiet,
            Nanny(quiet.address, nthreads=1, dashboard_address=None) as nanny,
        ):
            worker = quiet.workers[nanny.worker_address]
            seen = set()
            for _ in range(40):
                seen.add(worker.last_seen)
                await asyncio.sleep(0.1)
            return len(seen)

    # In these four seconds as it registers, and at its first beat, which is soon and brings the interval of the next;
    # with dask's own interval eight times.
    assert asyncio.run(times_seen()) <= 3
    assert scheduler.heartbeat_interval(2) == 5.0
    assert scheduler.heartbeat_interval(1000) == max(5.0, usual)
