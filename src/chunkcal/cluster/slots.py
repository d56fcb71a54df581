"""Hands out the cluster's slots, first come first served, and never more of them than there are live workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Slots:
    """A semaphore whose size follows the live workers.

    dask could queue tasks itself, but then it blames a worker's death on tasks that were only waiting there, and a
    worker with several threads never gives its last queued task to an idle one.

    Parameters
    ----------
    count
        Returns the number of live slots.
    """

    def __init__(self, count: Callable[[], int]) -> None:
        self._count = count
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def n_waiting(self) -> int:
        """Number of tasks that wait for a slot."""
        return len(self._waiting)

    @property
    def n_busy(self) -> int:
        """Number of slots that are taken."""
        return self._busy

    def wake(self) -> None:
        """Hand free slots to those who wait; to be called whenever a worker has come or gone."""
        while self._waiting and self._busy < self._count():
            first = self._waiting.popleft()
            if not first.done():
                self._busy += 1
                first.set_result(None)

    def fail(self, error: Exception) -> None:
        """Raise `error` in all who wait."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_exception(error)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.wake()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:  # given and cancelled at once
                self._give_back()
            raise
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        self._busy -= 1
        self.wake()
