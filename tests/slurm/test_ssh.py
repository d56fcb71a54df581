"""Workers over ssh, through a private sshd on loopback with keys of its own: needs Debian's openssh-server."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from background import DP3_AT_WORK, GUARD, Run, wait_until
from chunkcal.cluster import state
from elsewhere import CALIBRATE, TARGETS, local_products, observation, products, python_of
from pipeline import assert_same_bits

SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """A server that lets in who has the client key, with its port, its `known_hosts` and that key."""
    folder = tmp_path_factory.mktemp("sshd")
    folder.chmod(0o700)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    kind, key = (folder / "host.pub").read_text().split()[:2]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "PidFile": "none",
        "AuthorizedKeysFile": folder / "client.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
    }
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd of root confines itself; Debian makes it at boot
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=log)
    wait_until(lambda: b"Server listening" in (folder / "log").read_bytes(), 10, "sshd does not listen")
    yield SimpleNamespace(port=port, known_hosts=str(folder / "known_hosts"), client_key=str(folder / "client"))
    server.kill()
    server.wait()


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    return observation(tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def clean(ms, tmp_path_factory):
    """What a run on this machine alone makes of it."""
    return local_products(tmp_path_factory.mktemp("clean"), ms)


@pytest.fixture
def make_run(ms, sshd, tmp_path):
    """Make runs with two slots over ssh, which are ended with the test."""
    runs = []

    def make(slow_s=0.5, start_timeout_s=180, **changes):
        run = Run(tmp_path / "run", ms, slow_s)
        connect = {"port": sshd.port, "known_hosts": sshd.known_hosts, "client_keys": sshd.client_key}
        ssh = {"hosts": ["127.0.0.1"], "connect_options": connect, "processes_per_host": 2, "python": python_of(run)}
        run.config["cluster"] = {"backend": "ssh", "start_timeout_s": start_timeout_s, "ssh": ssh | changes}
        run.config["calibrate"] = CALIBRATE
        run.targets = TARGETS
        runs.append(run)
        return run

    yield make
    for run in runs:
        run.close()


def shared_folders(run):
    return list(run.results.glob(f"{state.SHARED}/*"))


def test_gives_the_bytes_of_a_local_run_and_leaves_nothing(make_run, clean):
    run = make_run().start()
    shared = wait_until(lambda: shared_folders(run), 180, run.text())[0]
    most = 0
    while run.process.poll() is None:
        most = max(most, len(run.dp3s()))
        if (shared / "tls-key.pem").exists():
            assert (shared / "tls-key.pem").stat().st_mode & 0o777 == 0o600
            assert shared.stat().st_mode & 0o777 == 0o700
    run.must_finish()
    assert most == 2
    run.must_be_gone()
    assert not (run.results / state.SHARED).exists()
    assert_same_bits(products(run.results), clean)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_outlives_snakemake(make_run, number):
    run = make_run(slow_s=30).start()
    run.wait_for(DP3_AT_WORK, 2)
    run.process.send_signal(number)
    assert run.process.wait(20) != 0
    run.must_be_gone(10)
    assert not (run.results / state.SHARED).exists()


def test_nothing_outlives_a_supervisor_that_is_killed_while_its_workers_hang(make_run):
    """Workers that are stopped notice nothing themselves: their guard must do it."""
    run = make_run(slow_s=30).start()
    run.wait_for(DP3_AT_WORK, 2)
    old = run.find("distributed.cli.dask_spec") + run.find("multiprocessing") + run.find(GUARD)
    assert len(old) >= 6
    for pid in run.find("multiprocessing"):
        os.kill(pid, signal.SIGSTOP)
    os.kill(run.find("chunkcal.cluster.supervisor")[0], signal.SIGKILL)
    wait_until(lambda: not any(map(state.start_time, old)), 5, "workers have outlived their supervisor by 5 s")
    run.process.kill()
    run.must_be_gone(20)


def test_lost_host_comes_back(make_run, clean):
    run = make_run().start()
    run.wait_for(DP3_AT_WORK, 2)
    for pid in run.find("chunkcal.cluster.guard"):
        os.kill(pid, signal.SIGKILL)
    run.must_finish()
    run.must_be_gone()
    assert_same_bits(products(run.results), clean)
    assert "next attempt in" in (run.folder / "logs/cluster.log").read_text()


@pytest.mark.parametrize(
    ("changes", "complaints"),
    [
        (
            {"hosts": ["127.0.0.1", "127.0.0.9"]},
            ["127.0.0.9 of cluster.ssh.hosts cannot be reached", "`ssh 127.0.0.9 true`"],
        ),
        ({"python": "/no/python"}, ["127.0.0.1: workers cannot run with /no/python", "set cluster.ssh.python"]),
        ({"python": f"{sys.executable} -S"}, ["No module named", "set cluster.ssh.python"]),
    ],
    ids=["unreachable host", "wrong python", "missing module"],
)
def test_host_that_cannot_serve_is_refused(make_run, changes, complaints):
    run = make_run(**changes).start()
    assert run.process.wait(120) != 0
    lines = [line for line in run.text().splitlines() if complaints[0] in line]
    assert lines, run.text()
    for complaint in complaints:
        assert complaint in lines[0]
    assert "Traceback" not in run.text()
    run.must_be_gone()


def test_host_with_another_key_is_refused(make_run, sshd, tmp_path):
    other = tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    other.write_text(f"[127.0.0.1]:{sshd.port} {(tmp_path / 'other.pub').read_text()}")
    run = make_run()
    run.config["cluster"]["ssh"]["connect_options"]["known_hosts"] = str(other)
    run.start()
    assert run.process.wait(120) != 0
    assert "Host key is not trusted for host 127.0.0.1" in run.text()
    run.must_be_gone()
