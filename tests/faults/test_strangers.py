"""Others cannot talk to a run's cluster, and runs do not get into each other's way."""

import subprocess
import sys
from pathlib import Path

import pytest

from background import wait_until
from chunkcal.cluster import state, tls

# Prints "in" if the scheduler at argv[1] runs something for it; argv[2] is the state folder of another run, if any.
CLIENT = """
import sys
from pathlib import Path
from distributed import Client
from chunkcal.cluster import tls
security = tls.make_security(Path(sys.argv[2])) if len(sys.argv) > 2 else None
with Client(sys.argv[1], security=security, timeout=5) as client:
    print("in", client.submit(sum, [1, 2]).result(timeout=5))
"""


def knock(*words):
    """Tell whether a client gets in; one that hangs has not."""
    try:
        done = subprocess.run([sys.executable, "-c", CLIENT, *words], capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return False
    return "in 3" in done.stdout


def test_client_knows_how_to_get_in(tmp_path):
    """The client above does get in where it may: else the tests below would show nothing."""
    code = (
        "import sys\nfrom distributed import LocalCluster\nif __name__ == '__main__':\n"
        "  with LocalCluster(n_workers=1, protocol='tcp://', dashboard_address='127.0.0.1:0') as c:\n"
        "    print(c.scheduler_address, flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as cluster:
        assert knock(cluster.stdout.readline().strip())
        cluster.stdin.close()


@pytest.mark.parametrize("how", ["no certificate", "plain tcp", "another run's certificate"])
def test_stranger_is_refused_and_the_run_goes_on(make_run, clean, tmp_path, count, how):
    run = make_run().start()
    guard = run.wait_for("guard.py")[0]
    words = Path(f"/proc/{guard}/environ").read_bytes().split(b"\0")
    folder = next(word for word in words if word.startswith(b"CHUNKCAL_RUN=")).split(b"=", 1)[1].decode()
    address = state.read_json(Path(folder) / "supervisor.json")["scheduler"]
    assert address.startswith("tls://127.0.0.1:")
    with count(f"client with {how}"):
        if how == "plain tcp":
            assert not knock(address.replace("tls://", "tcp://"))
        elif how == "no certificate":
            assert not knock(address)
        else:
            other = tmp_path / "other"
            other.mkdir(0o700)
            tls.make_security(other)
            assert not knock(address, str(other))
        run.must_finish()
        run.must_equal(clean)


def test_nothing_listens_beyond_loopback(make_run):
    run = make_run().start()
    run.wait_for("guard.py", 2)
    pids = ",".join(map(str, run.processes()))
    inodes = set()
    for pid in pids.split(","):
        for fd in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                target = str(fd.readlink())
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = []
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append(fields[1].split(":")[0])
    assert listening
    assert set(listening) == {"0100007F"}  # 127.0.0.1


def test_two_runs_at_once(make_run, clean, count):
    with count("two runs at once"):
        runs = [make_run(name).start() for name in ("one", "two")]
        for run in runs:
            run.must_finish()
            run.must_equal(clean)
            run.must_be_gone()


def test_second_run_in_the_same_folder_is_refused(make_run, clean, count):
    run = make_run().start()
    run.wait_for("guard.py")
    first, text = run.process, run.folder / "output"
    with count("second run in the same folder"):
        second = run.start().process
        assert second.wait(30) != 0
        assert "lock" in text.read_text().lower()
        run.process = first
        wait_until(lambda: first.poll() is not None, 60, "the first run hangs")
        assert first.returncode == 0
        run.must_equal(clean)
        run.must_be_gone()
