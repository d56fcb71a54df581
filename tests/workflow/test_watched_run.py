"""A run that is watched: on a terminal, and without one."""

import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import termios
import time

import pytest

from background import DP3_AT_WORK, Run, wait_until
from chunkcal.simulate import Simulation, simulate

COMMAND = [sys.executable, "-m", "chunkcal.cli", "watch"]


def on_a_terminal(command, folder, controlling=False, **environment):
    """Start a command on a terminal of its own; return the process and the terminal's other end.

    Keys such as Ctrl-C reach the command's processes only if the terminal is their controlling one.
    """
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    ours = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    env = ours | {"TERM": "xterm", "CHUNKCAL_TEST_RUN": str(folder)} | environment
    # setsid opens no terminal by itself; --ctty takes the one that is its standard input.
    command = ["setsid", "--wait", "--ctty", *command] if controlling else command
    process = subprocess.Popen(command, cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=env)
    os.close(slave)
    return process, master


def read_all(master):
    shown = b""
    while piece := read_piece(master):
        shown += piece
    os.close(master)
    return shown.decode()


def read_piece(master):
    try:
        return os.read(master, 4096)
    except OSError:  # EIO: the other end is closed
        return b""


def read_until(master, *patterns, seconds=180):
    """Read what a terminal shows until all patterns have been there; return all of it."""
    shown = b""
    end = time.monotonic() + seconds
    while not all(re.search(pattern, without_codes(shown.decode(errors="ignore"))) for pattern in patterns):
        assert select.select([master], [], [], max(0, end - time.monotonic()))[0], shown.decode(errors="replace")
        piece = read_piece(master)
        assert piece, f"ended before {patterns}: {shown.decode(errors='replace')}"
        shown += piece
    return shown.decode(errors="ignore")


def without_codes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture(scope="module")
def ms(tmp_path_factory):
    settings = Simulation("lofar", n_stations=3, n_slots=8, n_channels=4, rfi=0.0)
    return simulate(settings, tmp_path_factory.mktemp("data") / "obs.ms").ms


@pytest.fixture
def own(ms, tmp_path):
    """A run of four chunks in two slots that the test itself starts; its DP3s begin when the test lets them `go`."""
    run = Run(tmp_path / "run", ms, slow_s=2.0)
    script = run.folder / "DP3"
    # However busy the machine is: what a test waits to see is there until it has been seen.
    script.write_text(script.read_text().replace("sleep 2.0", f"until [ -e {run.folder}/go ]; do sleep 0.1; done"))
    run.write_config()
    yield run
    run.close()


@pytest.fixture
def run(own):
    """The same, started."""
    return own.start()


def go(run):
    (run.folder / "go").touch()


def test_live_view_on_a_terminal_and_lines_without_one(run):
    run.wait_for(DP3_AT_WORK, 2)
    live, screen = on_a_terminal([*COMMAND, "results"], run.folder)
    lines = subprocess.Popen([*COMMAND], cwd=run.folder, stdout=subprocess.PIPE, text=True)
    first = [lines.stdout.readline(), lines.stdout.readline()]
    shown = read_until(screen, r"\d/4 \(2 running", r"preprocess obs t000\d: \d+ s", "2 of 2 slots busy")
    go(run)
    shown += read_all(screen)
    assert live.wait(60) == 0
    text = without_codes(shown)
    assert "\x1b[" in shown  # drawn over what was there
    assert "has ended" in text
    plain = "".join([*first, lines.communicate(timeout=60)[0]])
    assert lines.returncode == 0
    assert "\x1b" not in plain
    assert re.search(r"^dashboard: http://127.0.0.1:\d+/status$", plain, re.MULTILINE)
    assert re.search(r"^\d\d:\d\d:\d\d preprocess \d/4 chunks; \d of 2 slots busy, \d waiting; ", plain, re.MULTILINE)
    run.must_finish()
    (told,) = [line for line in run.text().splitlines() if "dashboard" in line]
    assert re.fullmatch(
        r"chunkcal: the cluster's dashboard is http://127.0.0.1:\d+/status; watch the run with: chunkcal watch results",
        told,
    )


def test_watching_can_be_interrupted_and_costs_little(run):
    run.wait_for(DP3_AT_WORK, 2)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = subprocess.Popen([*COMMAND, "--quiet"], cwd=run.folder, stdout=subprocess.PIPE, text=True)
    wait_until(lambda: lines.stdout.readline().startswith("dashboard"), 30, "nothing was printed")
    lines.send_signal(signal.SIGINT)
    assert lines.wait(30) == 130
    go(run)
    lines.stdout.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < 5  # most of it to start Python
    run.must_finish()


def test_nothing_to_watch(tmp_path):
    done = subprocess.run([*COMMAND, "here"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"chunkcal: no run of this machine and user writes to {tmp_path}/here now")


def test_snakemake_shows_the_live_view_on_a_terminal(own):
    process, screen = on_a_terminal(own.command(), own.folder)
    shown = read_until(screen, r"\d/4 \(2 running", r"preprocess obs t000\d: \d+ s")
    go(own)
    shown += read_all(screen)
    text = without_codes(shown)
    assert process.wait(60) == 0, text
    # One of the jobs that are no chunks; each may be too short to be seen.
    assert re.search(r"\d+ of \d+ jobs done; .*(join_chunks obs|write_\w+( obs)?) \(\d+ s\)", text)
    assert re.search(r"dashboard: http://127.0.0.1:\d+/status", text)
    assert "4/4" in text
    assert "all chunks are done" in text
    # Snakemake's own lines are in its log file, and not in the view.
    (log,) = own.folder.glob(".snakemake/log/*.log")
    assert "rule preprocess_chunk:" in log.read_text()
    assert "rule preprocess_chunk:" not in text
    assert f"Complete log(s): {log}" in text
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back


def test_errors_stay_above_the_live_view(own):
    command = own.folder / "DP3"
    command.write_text(command.read_text().replace("sleep 0.1; done", "sleep 0.1; done; echo no such luck >&2; exit 3"))
    go(own)
    process, screen = on_a_terminal(own.command(), own.folder)
    text = without_codes(read_all(screen))
    assert process.wait(60) == 1
    assert re.search(r"chunkcal: preprocess obs t000\d: .*exit status 3", text)
    failures = re.findall(r"Error in rule preprocess_chunk: job \d+ failed; +log: +logs/preprocess_chunk/obs", text)
    assert len(failures) == len(re.findall("chunkcal: preprocess obs t000", text)) > 0, text
    assert "no such luck" in text
    # What Snakemake says besides is in its log, not between what a person must read.
    assert "CalledProcessError" not in text
    (log,) = own.folder.glob(".snakemake/log/*.log")
    assert "CalledProcessError" in log.read_text()
    assert text.rstrip().endswith("At least one job did not complete successfully.")


def test_an_interruption_leaves_a_clean_terminal(own):
    process, screen = on_a_terminal(own.command(), own.folder, controlling=True)
    # While a script starts, its first lines are Snakemake's, which leave a traceback.
    shown = read_until(screen, r"\d/4 \(2 running", "2 of 2 slots busy, 2 waiting")
    os.write(screen, b"\x03")  # Ctrl-C: to all processes on the terminal
    shown += read_all(screen)
    assert process.wait(60) == 1
    assert "Traceback" not in shown
    assert "KeyboardInterrupt" not in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back
    end = without_codes(shown).rpartition("observation")[2]
    assert "the run has ended before all chunks were done" in end
    assert "running" not in end
    own.must_be_gone()


@pytest.mark.parametrize("words", [["--quiet", "progress"], ["--dry-run"]], ids=" ".join)
def test_lines_instead_of_the_live_view(own, words):
    go(own)
    process, screen = on_a_terminal([*own.command(), *words], own.folder)
    shown = read_all(screen)
    assert process.wait(60) == 0, shown
    assert "plan_chunks" in shown
    assert "\x1b[?25l" not in shown
