"""What the backends hand to ssh and srun; whole runs are in tests/slurm."""

import asyncio
import json
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest

from chunkcal.cluster import state
from chunkcal.cluster.backends import allocation, local, ssh
from chunkcal.cluster.backends.base import shared_folder
from chunkcal.cluster.backends.ownscheduler import require_interface, served_by, worker_options
from chunkcal.cluster.state import ClusterError
from chunkcal.cluster.tls import as_configuration, make_security

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_CPUS_PER_NODE": "16(x2),8"}


def section(**changes):
    own = {
        "processes_per_node": "auto",
        "interface": None,
        "python": "env A=1 python",
        "srun_args": ["--cpu-bind=cores"],
    }
    return {"threads_per_slot": 4, "resource": "subprocess_slots", "start_timeout_s": 5, "allocation": own | changes}


def test_srun_line(tmp_path):
    argv = allocation.srun_argv(section(), JOB, "tls://10.0.0.1:99", worker_options(section(), tmp_path))
    spec = {
        "cls": "distributed.Nanny",
        "opts": {
            "nthreads": 4,
            "resources": {"subprocess_slots": 1},
            "protocol": "tls://",
            "dashboard_address": "127.0.0.1:0",
            "memory_limit": 0,
            "death_timeout": 60,
            "local_directory": str(tmp_path),
        },
    }
    assert json.loads(argv.pop()) == spec
    assert argv == [
        *(
            "srun",
            "--overlap",
            "--kill-on-bad-exit=0",
            "--export=ALL",
            "--nodes=3",
            "--ntasks=6",
            "--ntasks-per-node=2",
        ),
        *("--cpus-per-task=4", "--mem=0", "--job-name=chunkcal-workers", "--cpu-bind=cores"),
        *("env", "A=1", "python", "-m", "chunkcal.cluster.guard"),
        *("env", "A=1", "python", "-m", "distributed.cli.dask_spec", "tls://10.0.0.1:99", "--spec"),
    ]


def test_processes_per_node_as_given():
    argv = allocation.srun_argv(section(processes_per_node=5), JOB, "tls://10.0.0.1:99", {})
    assert {"--ntasks=15", "--ntasks-per-node=5"} < set(argv)


def test_node_that_is_too_small_for_a_slot():
    with pytest.raises(ClusterError, match=r"2 CPU\(s\) and cluster.threads_per_slot is 4; ask for more"):
        allocation.srun_argv(section(), JOB | {"SLURM_JOB_CPUS_PER_NODE": "16(x2),2"}, "", {})


def test_outside_of_a_job_the_remedy_is_said(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)

    async def start():
        async with allocation.open_allocation(section(), tmp_path, lambda: None):
            pass

    with pytest.raises(ClusterError, match="this is none: put the snakemake line into a batch script"):
        asyncio.run(start())


def test_hosts_that_see_different_addresses_need_an_interface():
    hosts = [ssh.Host("a", "10.0.0.2", "10.0.0.1"), ssh.Host("b", "10.1.0.2", "10.1.0.1")]
    with pytest.raises(ClusterError, match="set cluster.ssh.interface"):
        ssh._scheduler_place({"interface": None}, hosts)
    assert ssh._scheduler_place({"interface": "lo"}, hosts) == {"interface": "lo"}
    assert ssh._scheduler_place({"interface": None}, hosts[:1]) == {"host": "10.0.0.1"}


def test_ssh_waits_no_longer_than_the_supervisor():
    assert ssh.connect_options({"port": 22}, 5)["connect_timeout"] == 5
    assert ssh.connect_options({}, 1000)["login_timeout"] == ssh.CONNECT_TIMEOUT_S


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """State folder of a run that this process owns."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return state.create({}, tmp_path / "log", tmp_path / "results")


def test_shared_folder_is_private_and_goes_away(run_folder, tmp_path):
    with shared_folder(run_folder) as shared:
        assert shared.parent == tmp_path / "results/.chunkcal"
        security = make_security(shared)
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (shared, shared.parent, *shared.glob("tls-*"))}
        assert modes == {
            shared: 0o700,
            shared.parent: 0o700,
            shared / "tls-cert.pem": 0o600,
            shared / "tls-key.pem": 0o600,
        }
        assert as_configuration(security)["distributed.comm.tls.worker.key"] == str(shared / "tls-key.pem")
    assert not shared.parent.exists()


@pytest.mark.parametrize(("owner", "stays"), [({"start": "1"}, False), ({"start": "1", "host": "elsewhere"}, True)])
def test_shared_folder_of_a_killed_run_goes_with_the_next(run_folder, tmp_path, owner, stays):
    with shared_folder(run_folder):
        left = tmp_path / "results/.chunkcal/chunkcal-left"
        left.mkdir()
        state.write_json(left / "run.json", {"owner": state.read_json(run_folder / "run.json")["owner"] | owner})
        state.create({}, tmp_path / "log", tmp_path / "results")
        assert left.exists() == stays


@pytest.mark.parametrize(
    ("asked", "url"),
    [
        ("127.0.0.1:0", "http://127.0.0.1:4321/status"),
        (":8787", f"http://{socket.gethostname()}:4321/status"),
        ("10.0.0.1:0", "http://10.0.0.1:4321/status"),
    ],
)
def test_dashboard_is_where_it_listens_not_where_the_scheduler_does(asked, url):
    services = {"dashboard": SimpleNamespace(port=4321)}
    scheduler = SimpleNamespace(
        services=services, address="tls://10.0.0.1:99", add_plugin=lambda _: None, periodic_callbacks={}
    )
    assert served_by({"dashboard_address": asked}, scheduler, None, None).dashboard == url


def test_network_interface_that_is_not_there_is_refused():
    require_interface("cluster.ssh.interface", None)
    require_interface("cluster.ssh.interface", "lo")
    with pytest.raises(ClusterError, match=r"^cluster\.ssh\.interface: .* 'ib9' is not a valid network interface"):
        require_interface("cluster.ssh.interface", "ib9")


@pytest.mark.parametrize(("folder", "forks"), [("/tmp/chunkcal-12345678", True), (f"/tmp/{'long' * 20}", False)])
def test_workers_are_forked_where_the_socket_for_it_has_room_in_the_runs_folder(monkeypatch, folder, forks):
    monkeypatch.setattr(local.tempfile, "tempdir", None)
    with dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}):
        local._fork_workers(Path(folder))
        method = dask.config.get("distributed.worker.multiprocessing-method")
    assert (method, local.tempfile.tempdir) == (("forkserver", folder) if forks else ("spawn", None))
    assert forks == (len(f"{folder}/pymp-12345678/listener-12345678") < 108)


def test_nothing_of_a_local_cluster_is_left_when_it_is_closed(tmp_path):
    """In a process of its own: how this one starts others, and where its temporary files go, stays as it is."""
    script = """
import asyncio, os, pathlib, sys
from chunkcal.cluster.backends.local import open_local

def started():
    found = [task.read_text().split() for task in pathlib.Path("/proc/self/task").glob("*/children")]
    commands = [pathlib.Path(f"/proc/{child}/cmdline").read_bytes() for child in sum(found, [])]
    return sum(b"forkserver" in command for command in commands)

async def main():
    settings = {"n_slots": 1, "threads_per_slot": 1, "resource": "slots", "dashboard_address": "127.0.0.1:0"}
    async with open_local(settings, pathlib.Path(sys.argv[1]), lambda: None):
        print(started())
    print(started())

if __name__ == "__main__":
    asyncio.run(main())
"""
    (tmp_path / "script.py").write_text(script)
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # of a socket's path
        command = [sys.executable, str(tmp_path / "script.py"), short]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["1", "0"]
