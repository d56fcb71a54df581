import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from chunkcal import dp3
from chunkcal.errors import UserError

WHEEL = Path(sys.executable).with_name("DP3.py")

# DP3's own reader, in a process of its own, as the dp3 package must not share one with casacore.
READER = """
import json, sys
from dp3.parameterset import ParameterSet
parset = ParameterSet(sys.argv[1])
keys = json.loads(sys.argv[2])
print(json.dumps([[parset.get_string(key), [str(item) for item in parset[key]]] for key in keys]))
"""


def read_back(folder, parset):
    """What DP3 reads from our text: each value as a string and as a list of strings."""
    file = folder / "parset"
    file.write_text(dp3.parset_text(parset))
    done = subprocess.run(
        [sys.executable, "-c", READER, str(file), json.dumps(list(parset))],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(parset, json.loads(done.stdout), strict=True))


def test_dp3_reads_back_what_was_meant(tmp_path):
    parset = {
        "msin": "in.ms",
        "msout": "",
        "comment": "a#b",
        "condition": "iif(bl<=100,0.5,1)",
        "backslash": "ends with \\",
        "quoted": "'a, b' # c",
        "spaces": "  CS*&& ; RS* ",
        "list": "[p#1,'a,b',[c=d]]",
        "step.nan_ok": "1e-05",
        "last": "x",
    }
    strings = {key: value.strip() for key, value in parset.items()} | {
        "quoted": "a, b # c",
        "list": "[p#1,a,b,[c=d]]",
    }
    found = read_back(tmp_path, parset)
    assert {key: value[0] for key, value in found.items()} == strings
    assert found["list"][1] == ["p#1", "a,b", "[c=d]"]


@pytest.mark.parametrize("value", ["two\nlines", "nul\0", "tab\tinside is fine but \r is not", "it's"])
def test_values_that_cannot_be_written(value):
    with pytest.raises(UserError, match="step.key"):
        dp3.parset_text({"step.key": value})


@pytest.mark.parametrize("key", ["", "a b", "a=b", "#a", "a\nb", ".a"])
def test_keys_that_cannot_be_written(key):
    with pytest.raises(UserError, match="parameter name"):
        dp3.parset_text({key: "1"})


def test_parset_comes_first():
    assert dp3.argv(["sh", "DP3"], "parset", 3) == ["sh", "DP3", "parset", "numthreads=3", "checkparset=1"]


def test_auto_prefers_the_path(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    command = dp3.find_command("auto")
    assert command[0] == sys.executable
    assert dp3.find_command(None) == command
    assert dp3.is_wheel(command)
    assert dp3.is_wheel([sys.executable, str(WHEEL)])
    own = tmp_path / "DP3"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    assert dp3.find_command("auto") == [str(own)]
    assert not dp3.is_wheel([str(own)])


def test_a_command_of_the_users(tmp_path):
    assert dp3.find_command(f"{sys.executable} -c 'a b'") == [sys.executable, "-c", "a b"]
    assert dp3.find_command([sys.executable, "x y"]) == [sys.executable, "x y"]
    for wrong in ("/no/such/DP3 exec", "'unbalanced", "", []):
        with pytest.raises(UserError, match="dp3.command"):
            dp3.find_command(wrong)


def test_environment_of_the_wheel():
    env = dp3.environment(3, command_is_users=False, base={})
    assert (env["OPENBLAS_NUM_THREADS"], env["OMP_NUM_THREADS"]) == ("1", "3")
    assert (Path(env["CASACORE_DATADIR"]) / "geodetic").is_dir()
    assert env["CASACORE_DATADIR"] == env["AIPSPATH"] + "/data"


def test_users_own_settings_win():
    own = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}
    assert dp3.environment(2, command_is_users=True, base={}) == own
    assert dp3.environment(2, command_is_users=False, base={"AIPSPATH": "/mine"}) == own


def test_dp3_uses_the_measures_folder_of_the_user(tmp_path):
    folder = tmp_path / "measures data"
    with pytest.raises(UserError, match="geodetic"):
        dp3.environment(1, False, measures_dir=folder)
    (folder / "geodetic").mkdir(parents=True)
    env = dp3.environment(1, False, measures_dir=folder)
    assert Path(env["CASARCFILES"]).read_text() == f"measures.directory: {folder}\n"
    assert dp3.environment(1, False, measures_dir=folder)["CASARCFILES"] == env["CASARCFILES"]
    Path(env["CASARCFILES"]).unlink()


def test_importing_is_cheap_and_safe():
    code = "import sys, chunkcal.dp3, chunkcal.planning.requests; print(sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'casacore'", "'dp3'", "'numpy'", "'pandas'", "'h5py'"):
        assert heavy not in modules


def test_the_wheel_starts_without_numpy(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    runs = [
        subprocess.run([python, "-X", "importtime", *script, "-v"], capture_output=True, text=True, check=True)
        for python, *script in ([sys.executable, str(WHEEL)], dp3.find_command("auto"))
    ]
    assert runs[0].stdout == runs[1].stdout
    assert ["numpy.linalg" in run.stderr for run in runs] == [True, False]


def test_numpy_is_there_when_it_is_used():
    code = (
        "import sys; from chunkcal.startdp3 import _numpy_when_used; sys.modules['numpy'] = _numpy_when_used();"
        "import numpy as np; before = len(sys.modules); from numpy.linalg import norm;"
        "assert len(sys.modules) > before + 20; assert norm(np.array([3, 4])) == 5; import numpy; print(numpy.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout


def test_version():
    assert dp3.version([sys.executable, str(WHEEL)]).startswith("6.")
    with pytest.raises(UserError, match="does not answer like DP3"):
        dp3.version(["echo"])
    with pytest.raises(UserError, match="does not start"):
        dp3.version(["/no/such/file"])


@pytest.mark.parametrize("telescope", [*dp3.STRATEGIES, "lofar", "MeerKAT", "SKA-Mid", ""])
def test_every_telescope_has_a_strategy(telescope):
    strategy = dp3.strategy_file(telescope)
    assert strategy.is_file()
    assert (strategy.name == dp3.GENERIC_STRATEGY) == (telescope.upper() not in dp3.STRATEGIES)
    assert dp3.strategy_file(telescope, command_is_users=True) is None


@pytest.mark.parametrize(
    ("status", "tail", "words"),
    [
        (1, "x\nstd exception detected: No such MS: in.ms\n", ["status 1", "No such MS: in.ms"]),
        (1, "Traceback\nRuntimeError: Unused parset keywords found", ["unknown to DP3", "Unused"]),
        (-9, "", ["SIGKILL", "out of memory"]),
        (137, "", ["SIGKILL", "out of memory"]),
        (-signal.SIGABRT, "", ["SIGABRT", "full disk"]),
        (139, "", ["SIGSEGV"]),
        (1, "RuntimeError: write: No space left on device", ["disk is full"]),
        (1, "RuntimeError: (LockFile.cc : 375) Failed AlwaysAssert tracePWRITE(fd, buffer) == leng", ["disk is full"]),
        (1, "RuntimeError: FiledesIO::write - write error in /a/table.f0: No such file or directory", ["disk is full"]),
        (1, "RuntimeError: FiledesIO::write - write error in /a/table.f0: Input/output error", ["status 1: FiledesIO"]),
        (127, "", ["status 127"]),
        (-15, "last words", ["SIGTERM", "last words"]),
    ],
)
def test_failures_in_one_line(status, tail, words):
    text = dp3.describe_failure(status, tail)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_tracebacks_of_the_wheel_are_left_out():
    lines = [
        "Processing",
        "Traceback (most recent call last):",
        '  File "DP3.py", line 8, in <module>',
        "    sys.exit(entrypoint())",
        "RuntimeError: BucketCache::getBucket: bucket 2 exceeds nr of buckets",
        "  an indented line",
    ]
    assert dp3.without_tracebacks(lines) == [lines[0], *lines[4:]]
    assert "damaged or incomplete; copy it again" in dp3.describe_failure(1, "\n".join(lines))
