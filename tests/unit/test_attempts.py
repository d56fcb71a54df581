import asyncio
import math
from types import SimpleNamespace

import pytest

from chunkcal.cluster import attempts
from chunkcal.cluster.attempts import Attempts
from chunkcal.cluster.slots import Slots

REQUEST = {"name": "preprocess a t0001", "log": "the log"}


class FakeFuture:
    def __init__(self):
        self.given = asyncio.get_running_loop().create_future()

    def __await__(self):
        return self.given.__await__()

    def release(self):
        pass


class Fake:
    """A cluster of which every step is told by the test."""

    def __init__(self, *workers, limit=1):
        self.live = dict.fromkeys(workers, math.inf)
        self.ending = {}
        self.memory = {}
        self.tasks = []
        self.verifications = []
        self.cancelled = []
        client = SimpleNamespace(submit=self.submit, cancel=self.cancel, run=self.run_on_all)
        self.cluster = SimpleNamespace(client=client, ends=lambda: self.ending, lifetime_s=math.inf)
        self.slots = Slots(lambda: self.live)
        self.attempts = Attempts(self.slots, {"worker_failures": limit, "resource": "slot"}, {})

    def submit(self, _, request, settings, *, key, workers, resources, pure):
        assert resources == {"slot": 1}
        future = FakeFuture()
        self.tasks.append((workers[0], key, future.given))
        self.asked = request
        return future

    async def cancel(self, futures, force):
        self.cancelled += futures

    def run_on_all(self, *told, on_error=None, workers=None):
        future = asyncio.get_running_loop().create_future()
        if workers:
            self.verifications.append((workers[0], told[-1], future))
        else:
            future.set_result(self.memory)
        return future

    def run(self):
        return asyncio.ensure_future(self.attempts.run(REQUEST, 7, self.cluster))

    async def task(self, number):
        for _ in range(20):
            await asyncio.sleep(0)
        return self.tasks[number]


def test_chunk_of_a_lost_worker_runs_on_another_one():
    async def main():
        fake = Fake("w0")
        reply = fake.run()
        assert (await fake.task(0))[0] == "w0"
        fake.live = {"w1": math.inf}
        fake.attempts.lose_all_but({"w1"})
        worker, key, given = await fake.task(1)
        assert worker == "w1"
        assert key != fake.tasks[0][1]
        assert len(fake.cancelled) == 1
        given.set_result({"product": "p"})
        assert (await reply)["result"]["product"] == "p"
        assert fake.slots.n_busy == 0

    asyncio.run(main())


def test_number_of_attempts_is_limited():
    async def main():
        fake = Fake("w0", "w1", limit=1)
        reply = fake.run()
        for number in range(2):
            worker, _, _ = await fake.task(number)
            del fake.live[worker]
            fake.attempts.lose_all_but(fake.live)
        assert await reply == {"error": "preprocess a t0001: its worker died 2 times; log: the log"}

    asyncio.run(main())


def test_failure_of_dp3_is_no_reason_for_another_attempt():
    async def main():
        fake = Fake("w0")
        reply = fake.run()
        (await fake.task(0))[2].set_result({"error": "no such column", "killed": False})
        assert await reply == {"error": "no such column"}
        assert len(fake.tasks) == 1

    asyncio.run(main())


def test_worker_whose_dp3_was_killed_gets_nothing_for_a_while_if_its_allocation_may_be_over(monkeypatch):
    monkeypatch.setattr(attempts, "KILL_SETTLES_S", 0.05)

    async def main():
        fake = Fake("w0")
        fake.ending = {"w0": 0.0}
        reply = fake.run()
        (await fake.task(0))[2].set_result({"error": "killed", "killed": True})
        with pytest.raises(IndexError):
            await fake.task(1)
        await asyncio.sleep(0.1)
        (await fake.task(1))[2].set_result({"product": "p"})
        assert "result" in await reply

    asyncio.run(main())


def test_given_up_tasks_say_why():
    async def main():
        fake = Fake("w0")
        reply = fake.run()
        await fake.task(0)
        fake.attempts.give_up("nobody is left")
        assert await reply == {"error": "preprocess a t0001: nobody is left"}

    asyncio.run(main())


def test_finished_chunks_say_how_long_a_worker_must_last():
    async def main():
        fake = Fake("w0")
        fake.attempts.durations.add("preprocess", 100.0)
        fake.live = {"w0": 60.0}
        reply = fake.run()
        with pytest.raises(IndexError):
            await fake.task(0)
        assert fake.slots.too_short() == ["w0"]
        fake.cluster.lifetime_s = 50.0  # a new worker could not give more: then it is tried
        fake.slots.wake()
        (await fake.task(0))[2].set_result({"product": "p"})
        await reply

    asyncio.run(main())


def test_what_was_made_is_verified_while_the_slot_runs_the_next_chunk():
    async def main():
        fake = Fake("w0")
        first, second = fake.run(), fake.run()
        (await fake.task(0))[2].set_result({"unverified": "made"})
        worker, _, given = await fake.task(1)
        assert worker == "w0"
        assert not first.done()
        assert fake.attempts.verifying == {REQUEST["name"]}
        worker, what, verified = fake.verifications[0]
        assert (worker, what) == ("w0", "made")
        verified.set_result({"w0": {"product": "p"}})
        assert (await first)["result"]["product"] == "p"
        assert fake.attempts.verifying == set()
        given.set_result({"error": "no such column"})
        assert await second == {"error": "no such column"}

    asyncio.run(main())


@pytest.mark.parametrize("noticed_by", ["supervisor", "connection"])
def test_worker_that_is_lost_while_it_verifies_has_made_nothing(noticed_by, monkeypatch):
    monkeypatch.setattr(attempts, "LOSS_SETTLES_S", 0.0)

    async def main():
        fake = Fake("w0", limit=1)
        reply = fake.run()
        for number in range(2):
            (await fake.task(number))[2].set_result({"unverified": "made"})
            with pytest.raises(IndexError):
                await fake.task(number + 1)
            if noticed_by == "supervisor":
                fake.attempts.lose_all_but({"w1"})
            else:
                fake.verifications[-1][2].set_exception(OSError("connection closed"))
        assert await reply == {"error": "preprocess a t0001: its worker died 2 times; log: the log"}
        assert not fake.attempts.lost
        assert not fake.attempts.verifying

    asyncio.run(main())


def test_what_one_pass_made_wrongly_is_made_stage_by_stage_and_nobody_has_died():
    async def main():
        fake = Fake("w0", limit=0)
        reply = asyncio.ensure_future(fake.attempts.run(REQUEST | {"one_pass": {}}, 7, fake.cluster))
        (await fake.task(0))[2].set_result({"unverified": "made"})
        with pytest.raises(IndexError):
            await fake.task(1)
        fake.verifications[0][2].set_result({"w0": {"stage_by_stage": True}})
        (await fake.task(1))[2].set_result({"made": {}})
        assert fake.asked["one_pass"] is None
        assert (await reply)["result"]["made"] == {}

    asyncio.run(main())


def test_chunk_that_nobody_wants_any_more_is_not_verified_to_its_end():
    async def main():
        fake = Fake("w0")
        reply = fake.run()
        (await fake.task(0))[2].set_result({"unverified": "made"})
        with pytest.raises(IndexError):
            await fake.task(1)
        reply.cancel()
        await asyncio.wait([reply])
        assert fake.verifications[0][2].cancelled()
        assert not fake.attempts.lost

    asyncio.run(main())


def starved(n):
    return {"error": "no memory", "killed": False, "out_of_memory": True, "attempt": {"number": n}}


def test_chunk_without_memory_waits_for_a_worker_with_more():
    async def main():
        fake = Fake("small")
        fake.memory = {"small": 1e9, "same": 1.1e9, "large": 2e9}
        fake.live |= {"large": math.inf}
        other = asyncio.ensure_future(fake.attempts.run(REQUEST | {"name": "preprocess b t0000"}, 8, fake.cluster))
        assert (await fake.task(0))[0] == "small"
        reply = fake.run()
        assert (await fake.task(1))[0] == "large"
        fake.live |= {"same": math.inf}
        fake.slots.wake()
        fake.tasks[0][2].set_result(starved(1))
        with pytest.raises(IndexError):  # both the same and its own are free
            await fake.task(2)
        fake.tasks[1][2].set_result({"product": "p", "record": {}})
        worker, _, given = await fake.task(2)
        assert worker == "large"
        given.set_result({"product": "p", "record": {}})
        assert (await other)["result"]["record"] == {"attempts": [{"number": 1}]}
        assert (await reply)["result"]["record"] == {}

    asyncio.run(main())


def test_chunk_without_memory_runs_anywhere_when_the_worker_with_more_is_gone():
    async def main():
        fake = Fake("large", "small")
        fake.memory = {"small": 1e9, "large": 2e9}
        first, reply = fake.run(), fake.run()
        assert [(await fake.task(n))[0] for n in range(2)] == ["large", "small"]
        fake.tasks[1][2].set_result(starved(1))
        with pytest.raises(IndexError):
            await fake.task(2)
        first.cancel()
        del fake.live["large"]
        fake.memory = {"small": 1e9}
        fake.slots.wake()
        worker, _, given = await fake.task(2)
        assert worker == "small"
        given.set_result(starved(2))
        told = await reply
        assert told == {"error": "no memory", "out_of_memory": True, "attempts": [{"number": 1}, {"number": 2}]}
        assert len(fake.tasks) == 3

    asyncio.run(main())


def test_where_no_worker_has_more_memory_the_client_is_told():
    async def main():
        fake = Fake("w0", "w1")
        fake.memory = {"w0": 1e9, "w1": 1e9}
        reply = fake.run()
        (await fake.task(0))[2].set_result(starved(1))
        assert await reply == {"error": "no memory", "out_of_memory": True, "attempts": [{"number": 1}]}
        assert fake.slots.n_busy == 0

    asyncio.run(main())
