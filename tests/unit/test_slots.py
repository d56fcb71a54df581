import asyncio
import math

import pytest

from chunkcal.cluster.slots import Slots


def workers(n):
    """As many slots, none of which ends."""
    return {f"worker {i}": math.inf for i in range(n)}


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
        slots = Slots(lambda: workers(live))
        probe = Probe(slots)
        tasks = await probe.start("a", "b", "c", "d")
        assert probe.holding == ["a", "b"]
        assert slots.n_waiting == 2
        probe.done["b"].set()
        await settle()
        assert probe.holding == ["a", "c"]
        live = 0  # the workers have died: nothing new, whoever lets go
        probe.done["a"].set()
        await settle()
        assert probe.holding == ["c"]
        live = 2
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
        slots = Slots(lambda: workers(1))
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
        slots = Slots(lambda: workers(live))
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
        slots = Slots(lambda: workers(0))
        probe = Probe(slots)
        tasks = await probe.start("a", "b")
        slots.fail(RuntimeError("no workers"))
        for task in tasks:
            with pytest.raises(RuntimeError, match="no workers"):
                await task

    asyncio.run(main())


def test_every_task_has_a_worker_of_its_own_that_lasts_long_enough():
    async def main():
        live = {"short": 10.0, "long": 100.0}
        slots = Slots(lambda: live)
        given = {}

        async def run(name, needs_s):
            async with slots.take(lambda: needs_s) as slot:
                given[name] = slot
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(run("quick", 5.0)), asyncio.create_task(run("slow", 50.0))]
        await settle()
        assert given == {"quick": "short", "slow": "long"}  # the long-lived one was kept for the slow task
        tasks += [asyncio.create_task(run("slow 2", 50.0)), asyncio.create_task(run("quick 2", 5.0))]
        live |= {"short 2": 10.0}
        slots.wake()
        await settle()
        assert "slow 2" not in given
        assert given["quick 2"] == "short 2"  # who cannot go yet does not hold up who can
        live |= {"short 3": 10.0}
        assert slots.too_short() == ["short 3"]
        live |= {"long 2": 100.0}
        slots.wake()
        await settle()
        assert given["slow 2"] == "long 2"
        assert slots.too_short() == []  # nobody waits
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert slots.n_busy == 0

    asyncio.run(main())


def test_another_attempt_goes_first():
    async def main():
        live = {}
        slots = Slots(lambda: live)
        order = []

        async def run(name, first):
            async with slots.take(first=first):
                order.append(name)

        tasks = [asyncio.create_task(run(name, name == "again")) for name in ("a", "b", "again")]
        await settle()
        live["worker"] = math.inf
        slots.wake()
        await asyncio.gather(*tasks)
        assert order == ["again", "a", "b"]

    asyncio.run(main())
