"""Runs do not get into each other's way, and listen to nobody from outside."""

from pathlib import Path

from background import DP3_AT_WORK, wait_until


def test_nothing_listens_beyond_loopback(make_run):
    run = make_run().start()
    run.wait_for(DP3_AT_WORK, 2)
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
    run.wait_for(DP3_AT_WORK)
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
