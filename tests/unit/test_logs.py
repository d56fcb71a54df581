import os
import subprocess
import sys

import pytest

from chunkcal.logs import last_lines

CODE = """
import os, sys
from chunkcal.errors import UserError
from chunkcal.logs import rule_log
with rule_log("logs/a.log"):
    print("python prints")
    os.write(1, b"a library writes\\n")
    os.system("echo a child writes >&2")
    print("a notice", file=sys.__stderr__)
    {}
print("and after it")
"""


def run(tmp_path, last_line):
    command = [sys.executable, "-c", CODE.format(last_line)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    return done, (tmp_path / "logs/a.log").read_text()


def test_everything_but_notices_goes_to_the_log(tmp_path):
    done, log = run(tmp_path, "pass")
    assert (done.returncode, done.stdout, done.stderr) == (0, "and after it\n", "a notice\n")
    assert sorted(log.splitlines()) == ["a child writes", "a library writes", "python prints"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ('raise UserError("input: wrong")', "chunkcal: input: wrong"),
        ('raise ValueError("odd")', f"chunkcal: ValueError: odd; log: {os.sep}"),
    ],
)
def test_failure_leaves_one_line_on_the_terminal(tmp_path, error, message):
    done, log = run(tmp_path, error)
    assert done.returncode == 1
    assert done.stdout == ""
    notice, line = done.stderr.splitlines()
    assert notice == "a notice"
    assert line.startswith(message)
    assert ("Traceback" in log) == ("ValueError" in error)
    assert message.removeprefix("chunkcal: ").split(";")[0] in log


def test_an_interruption_is_no_news_on_the_terminal(tmp_path):
    done, log = run(tmp_path, "os.kill(os.getpid(), 2)")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "a notice\n")
    assert log.endswith("interrupted\n")
    assert "Traceback" not in log


def test_last_lines_of_a_log(tmp_path):
    log = tmp_path / "a.log"
    log.write_text("before\n" + "".join(f"line {i}\n\n" for i in range(100)))
    assert last_lines(log).splitlines() == ["", *(f"    line {i}" for i in range(94, 100))]
    assert last_lines(log, start=log.stat().st_size) == ""
    assert last_lines(log, keep=lambda lines: [line for line in lines if line.endswith("98")]) == "\n    line 98"
    assert last_lines(tmp_path / "none") == ""
