"""Slots and threads are chosen from cores and memory, and the choice is explained."""

import pytest

from chunkcal.cluster import layout
from chunkcal.planning.plan import make_plan
from tiny_ms import make_ms

GB = 1e9
JOB = {"n_processes": "auto", "n_cores": 12, "memory_gb": 24, "n_jobs": 5, "max_jobs": None}
LOCAL = {"backend": "local", "machine_cores": 8, "job": JOB}


@pytest.mark.parametrize(
    ("n_cores", "memory_gb", "dp3_gb", "most", "chosen", "why"),
    [
        (8, 64, 1, 8, (8, 1), "one thread each is the fastest"),
        (1, 64, 1, 1, (1, 1), "one thread each is the fastest"),
        # 0.8 * 64 GB are enough for 12 DP3s of 4.2 GB.
        (12, 64, 4, 12, (12, 1), "one thread each is the fastest"),
        (16, 64, 4, 16, (8, 2), "the memory suffices for 12, with 20% left"),
        # Five would leave three of eight cores idle.
        (8, 22.5, 3.4, 8, (4, 2), "the memory suffices for 5"),
        # Two threads each would use one core more, and be slower.
        (48, 71.3, 1, 48, (47, 1), "the memory suffices for 47"),
        (128, 64, 20, 128, (2, 24), "the memory suffices for 2"),
        (8, 16, 40, 8, (1, 8), "it may need more memory than there is"),
        (8, 64, 1, 2, (2, 4), "cluster.n_slots is 2"),
        (2, 64, 1, 4, (2, 1), "one thread each is the fastest"),
    ],
)
def test_as_many_slots_as_cores_and_memory_allow(n_cores, memory_gb, dp3_gb, most, chosen, why):
    found = layout.choose(n_cores, memory_gb * GB, dp3_gb * GB, most)
    assert (found.n_slots, found.threads) == chosen
    assert why in found.note


@pytest.mark.parametrize("n_cores", [1, 2, 7, 48, 100])
@pytest.mark.parametrize("memory_gb", [0.1, 3, 9, 1000])
def test_never_more_than_there_is(n_cores, memory_gb):
    found = layout.choose(n_cores, memory_gb * GB, 1.5 * GB, n_cores)
    assert found.n_slots * found.threads <= n_cores
    assert 1 <= found.threads <= layout.MAX_THREADS
    assert found.n_slots == 1 or found.n_slots * 1.5 <= memory_gb


def test_processes_of_a_job_share_its_cores_evenly():
    # Memory for 5; 5 do not divide 12 cores.
    settings = {"backend": "slurm", "threads_per_slot": 1, "n_slots": 1, "job": JOB}
    settled, note = layout.settle(settings, 3500)
    assert settled["job"]["n_processes"] == 4
    assert (settled["n_slots"], settled["threads_per_slot"]) == (20, 3)
    assert "auto chose 4 slots of 3 threads for 12 cores and 24 GB, where a DP3 needs 3.5 GB" in note
    assert not layout.is_open(settled)
    # Before there is a plan: as many as there may be.
    assert layout.settle(settings)[0]["n_slots"] == 60


def test_the_stage_and_observation_that_need_most_count(monkeypatch):
    monkeypatch.setattr(layout, "memory_here", lambda: 10 * GB)
    settings = LOCAL | {"threads_per_slot": "auto", "n_slots": "auto"}
    small, large = {"memory_mb": {"preprocess": 700, "calibrate": 300}}, {"memory_mb": {"preprocess": 3500}}
    assert layout.settle(settings, layout.memory_mb([small]))[0]["n_slots"] == 8
    settled, note = layout.settle(settings, layout.memory_mb([small, large]))
    assert (settled["n_slots"], settled["threads_per_slot"]) == (2, 4)
    assert settled["layout"] == note
    assert layout.settle(settled, layout.memory_mb([large])) == (settled, None)


def test_what_is_given_stays():
    settings = LOCAL | {"threads_per_slot": 2, "n_slots": 3}
    assert layout.settle(settings, 10**6) == (settings, None)


def test_a_plan_has_the_memory_that_is_gone_by(tmp_path):
    make_ms(tmp_path / "a.ms", n_slots=4)
    rows = [{"obs": "a", "ms": str(tmp_path / "a.ms"), "sky_model": None}]
    plans = make_plan(rows, {"chunks": {"n_slots": 4}, "preprocess": {"steps": [{"AOFlagger": {}}]}}).observations
    assert layout.memory_mb(plans.values()) > 91


def test_the_memory_of_a_control_group_counts(monkeypatch, tmp_path):
    machine = layout.memory_here()
    files = {
        "/proc/self/cgroup": "0::/job_7/step_0\n",
        "/sys/fs/cgroup/job_7/step_0/memory.max": "max\n",
        "/sys/fs/cgroup/job_7/memory.max": "1000000\n",
    }
    monkeypatch.setattr(layout, "_read", lambda path: files.get(str(path), ""))
    assert layout.memory_here() == 1e6
    files["/proc/self/cgroup"] = "4:memory:/box\n0::/\n"
    assert layout.memory_here() >= machine
    files["/sys/fs/cgroup/memory/box/memory.limit_in_bytes"] = "2000000\n"
    assert layout.memory_here() == 2e6
