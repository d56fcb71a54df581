"""Hands out the cluster's slots, first come first served, one task to each live worker."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class _Turn:
    """One who waits for a slot, how long the slot must last at least, and which slots will do."""

    needs_s: Callable[[], float]
    suits: Callable[[str], bool]
    given: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Slots:
    """Gives every task a live worker of its own.

    dask could queue tasks itself, but then it blames a worker's death on tasks that were only waiting there, and a
    worker with several threads never gives its last queued task to an idle one. Nor does dask know that a worker's
    allocation ends before the task would.

    Parameters
    ----------
    live
        Returns the address of every live slot, with the seconds that it will last (infinity where nothing ends it).
    """

    def __init__(self, live: Callable[[], Mapping[str, float]]) -> None:
        self._live = live
        self._busy: list[str] = []
        self._waiting: deque[_Turn] = deque()

    @property
    def live(self) -> list[str]:
        """The live slots, free or not."""
        return list(self._live())

    @property
    def n_waiting(self) -> int:
        """Number of tasks that wait for a slot."""
        return len(self._waiting)

    @property
    def n_busy(self) -> int:
        """Number of slots that are taken."""
        return len(self._busy)

    def wake(self) -> None:
        """Hand free slots to those who wait; to be called whenever a worker has come or gone."""
        free = {slot: lasts for slot, lasts in self._live().items() if slot not in self._busy}
        for turn in list(self._waiting):
            if turn.given.done():
                self._waiting.remove(turn)
                continue
            lasting = [slot for slot, lasts in free.items() if lasts >= turn.needs_s() and turn.suits(slot)]
            if not lasting:
                continue
            slot = min(lasting, key=free.__getitem__)  # the long-lived ones are kept for the long tasks
            del free[slot]
            self._waiting.remove(turn)
            self._busy.append(slot)
            turn.given.set_result(slot)

    def too_short(self) -> list[str]:
        """List the free slots that end too early for every task that waits: none if none waits."""
        if not self._waiting:
            return []
        least = min(turn.needs_s() for turn in self._waiting)
        return [slot for slot, lasts in self._live().items() if slot not in self._busy and lasts < least]

    def fail(self, error: Exception) -> None:
        """Raise `error` in all who wait."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.given.done():
                turn.given.set_exception(error)

    @asynccontextmanager
    async def take(
        self,
        needs_s: Callable[[], float] = lambda: 0.0,
        first: bool = False,
        suits: Callable[[str], bool] = lambda slot: True,
    ) -> AsyncIterator[str]:
        """Wait for a slot that `suits` and lasts `needs_s` seconds, and hold it; ahead of all others if `first`.

        Yields
        ------
        str
            Address of the slot's worker.
        """
        turn = _Turn(needs_s, suits)
        (self._waiting.appendleft if first else self._waiting.append)(turn)
        self.wake()
        try:
            slot = await turn.given
        except asyncio.CancelledError:
            # given and cancelled at once
            if turn.given.done() and not turn.given.cancelled() and turn.given.exception() is None:
                self._give_back(turn.given.result())
            raise
        try:
            yield slot
        finally:
            self._give_back(slot)

    def _give_back(self, slot: str) -> None:
        self._busy.remove(slot)
        self.wake()
