"""Clusters that cannot serve: refused with the line that puts it right, within ten seconds."""

import asyncio
import json
import time

import pytest
from distributed import Client

from background import wait_until
from chunkcal.cluster.backends.existing import open_existing


def section(cluster, **changes):
    return {"backend": "existing", "address": cluster.address, "start_timeout_s": 8} | changes


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "none of the 1 workers owns the resource subprocess_slots"),
        (("--resources", "process=1"), "none of the 1 workers owns the resource subprocess_slots"),
        (("--resources", "subprocess_slots=2"), "owns 2 units of subprocess_slots"),
    ],
)
def test_wrong_workers_are_refused_with_the_right_line(make_run, cluster, count, words, complaint):
    cluster.start_worker(*words)
    run = make_run(cluster=section(cluster, start_timeout_s=60))
    time.sleep(3)  # the worker is there before the run
    run.start()
    wait_until((run.folder / "logs/cluster.log").exists, 60, "no cluster was asked for")
    with count("workers without the right resource"):
        # Ten seconds on a machine that is not busy (docs/faults.md has the figures).
        wait_until(lambda: complaint in run.text(), 20, "no complaint in time")
    assert run.process.wait(60) != 0
    line = f"dask worker {cluster.address} --nworkers 1 --nthreads 1 --resources subprocess_slots=1"
    assert line in run.text()
    run.must_be_gone()


def test_no_workers_at_all(make_run, cluster, count):
    with count("no worker comes"):
        run = make_run(cluster=section(cluster)).start()
        assert run.process.wait(40) != 0
        assert "no worker came up within cluster.start_timeout_s = 8 s" in run.text()
        run.must_be_gone()


def test_no_scheduler(make_run, count):
    with count("no scheduler answers"):
        changes = {"backend": "existing", "address": "tcp://127.0.0.1:9", "start_timeout_s": 3}
        run = make_run(cluster=changes).start()
        assert run.process.wait(40) != 0
        assert "no dask scheduler answers at cluster.address tcp://127.0.0.1:9" in run.text()
        run.must_be_gone()


def test_workers_that_vanish_for_good(make_run, cluster, count):
    worker = cluster.start_worker("--resources", "subprocess_slots=1")
    run = make_run(cluster=section(cluster))
    run.start()
    wait_until(run.records, 60, run.text())
    with count("all workers vanish"):
        worker.kill()
        assert run.process.wait(60) != 0
        assert "all workers are gone" in run.text()
        run.must_be_gone()


def test_workers_of_an_existing_cluster_come_and_go(make_run, cluster, clean, count):
    def ran_on(run):
        return [json.loads(path.read_text())["worker"] for path in run.records()]

    first = cluster.start_worker("--resources", "subprocess_slots=1", "--name", "first")
    run = make_run(cluster=section(cluster, start_timeout_s=60)).start()
    wait_until(run.records, 60, run.text())
    with count("a worker of an existing cluster"):
        cluster.start_worker("--resources", "subprocess_slots=1", "--name", "second")
        wait_until(lambda: "second" in ran_on(run), 30, "the worker that came was not used")
        first.kill()
        run.must_finish()
    run.must_equal(clean)
    run.must_be_gone()
    assert set(ran_on(run)) == {"first", "second"}


def test_workers_of_an_existing_cluster_import_before_their_first_task(cluster, tmp_path):
    cluster.start_worker("--resources", "subprocess_slots=1")

    async def look():
        async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            await client.wait_for_workers(1, timeout=60)
            imported = "'chunkcal.cluster.task' in __import__('sys').modules"
            assert not any((await client.run(eval, imported)).values())
            async with open_existing(section(cluster, scheduler_file=None), tmp_path, lambda: None):
                for _ in range(300):
                    if all((await client.run(eval, imported)).values()):
                        return True
                    await asyncio.sleep(0.1)
        return False

    assert asyncio.run(look())


@pytest.mark.parametrize(
    ("resource", "place", "n_threads"), [("subprocess_slots", "address", None), ("process", "scheduler_file", 2)]
)
def test_existing_cluster_serves_and_outlives_the_run(make_run, cluster, clean, resource, place, n_threads):
    granted = f",dp3_threads={n_threads}" if n_threads else ""
    worker = cluster.start_worker("--resources", f"{resource}=1{granted}")
    changes = {"address": None, place: getattr(cluster, place)}
    run = make_run(slow_s=0, cluster=section(cluster, resource=resource, **changes)).start()
    run.must_finish()
    run.must_equal(clean)
    assert {json.loads(path.read_text())["threads"] for path in run.records()} == {n_threads or 1}
    run.must_be_gone()
    assert worker.poll() is None


def test_no_scheduler_file(make_run):
    changes = {"backend": "existing", "scheduler_file": "nowhere.json", "start_timeout_s": 3}
    run = make_run(cluster=changes).start()
    assert run.process.wait(40) != 0
    assert "cluster.scheduler_file: there is no file nowhere.json" in run.text()
