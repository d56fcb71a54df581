import asyncio

import pytest

from chunkcal.cluster.slots import Slots


class Probe:
    """Tasks that say when they hold a slot and let go when told to."""

    def __init__(self, slots):
        self.slots = slots
        self.holding = []
        self.done = {}

    async def run(self, name):
        self.done[name] = asyncio.Event()
        async with self.slots.take():
            self.holding.append(name)
            await self.done[name].wait()
            self.holding.remove(name)

    async def start(self, *names):
        tasks = [asyncio.create_task(self.run(name)) for name in names]
        await settle()
        return tasks


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_first_come_first_served_and_never_more_than_live():
    async def main():
        live = 2
        slots = Slots(lambda: live)
        probe = Probe(slots)
        tasks = await probe.start("a", "b", "c", "d")
        assert probe.holding == ["a", "b"]
        assert slots.n_waiting == 2
        probe.done["b"].set()
        await settle()
        assert probe.holding == ["a", "c"]
        live = 1  # a worker has died: nothing new until the others have let go
        probe.done["a"].set()
        await settle()
        assert probe.holding == ["c"]
        live = 3
        slots.wake()
        await settle()
        assert probe.holding == ["c", "d"]
        for event in probe.done.values():
            event.set()
        await asyncio.gather(*tasks)
        assert slots.n_busy == 0

    asyncio.run(main())


def test_cancelled_waiters_do_not_keep_slots():
    async def main():
        slots = Slots(lambda: 1)
        probe = Probe(slots)
        first, second, third = await probe.start("a", "b", "c")
        second.cancel()
        first.cancel()  # holds the slot: it must pass to c, not to b
        await settle()
        assert probe.holding[-1] == "c"
        assert slots.n_busy == 1
        probe.done["c"].set()
        await third
        assert slots.n_busy == 0

    asyncio.run(main())


def test_slot_given_and_cancelled_in_the_same_moment_is_given_back():
    async def main():
        live = 0
        slots = Slots(lambda: live)
        probe = Probe(slots)
        first, second = await probe.start("a", "b")
        live = 1
        slots.wake()  # a's turn is set, but a has not run yet
        first.cancel()
        await settle()
        assert probe.holding == ["b"]
        assert slots.n_busy == 1
        second.cancel()
        await settle()
        assert slots.n_busy == 0

    asyncio.run(main())


def test_fail_reaches_all_who_wait():
    async def main():
        slots = Slots(lambda: 0)
        probe = Probe(slots)
        tasks = await probe.start("a", "b")
        slots.fail(RuntimeError("no workers"))
        for task in tasks:
            with pytest.raises(RuntimeError, match="no workers"):
                await task

    asyncio.run(main())
