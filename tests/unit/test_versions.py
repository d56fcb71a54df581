import re
import subprocess
import time
from importlib import metadata

import pytest

import chunkcal
from chunkcal import dp3
from chunkcal.lineage import versions


def test_software():
    found = versions.software()
    assert found["chunkcal"] == chunkcal.__version__
    assert found["packages"]["h5py"] == metadata.version("h5py")
    assert "pytest" not in found["packages"]  # no requirement of a run


def test_commit_says_whether_the_source_was_edited(tmp_path, monkeypatch):
    package = tmp_path / "src/chunkcal"
    package.mkdir(parents=True)
    monkeypatch.setattr(chunkcal, "__file__", str(package / "__init__.py"))
    assert versions.commit() is None
    (package / "__init__.py").write_text("a = 1\n")

    def git(*words):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add", "-A")
    git("commit", "-m", "one")
    assert re.fullmatch("[0-9a-f]{40}", versions.commit())
    (package / "__init__.py").write_text("a = 2\n")
    assert versions.commit().endswith("+changes")


def test_version_of_the_wheel_is_the_one_that_it_says_itself():
    assert versions.dp3_here("auto") == dp3.version(dp3.find_command("auto"))


@pytest.mark.parametrize(("answer", "version"), [("echo DP3 7.0.1", "7.0.1"), ("exit 1", None)])
def test_version_of_another_dp3(tmp_path, answer, version):
    command = tmp_path / "DP3"
    command.write_text(f"#!/bin/sh\n{answer}\n")
    command.chmod(0o755)
    assert versions.dp3_here(str(command)) == version
    assert versions.dp3_here("/no/such/DP3") is None


def test_dp3_that_does_not_answer_holds_nothing_up(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "ANSWER_TIMEOUT_S", 0.3)
    command = tmp_path / "DP3"
    command.write_text("#!/bin/sh\nsleep 60; echo DP3 6.6.0\n")
    command.chmod(0o755)
    began = time.monotonic()
    assert versions.dp3_here(str(command)) is None
    assert time.monotonic() - began < 30


def test_casacore_of_the_wheel():
    assert re.fullmatch(r"3\.\d+\.\d+", versions.casacore_of_wheel())


def test_measures_data():
    environment = dp3.environment(1, command_is_users=False, base={})
    found = versions.measures(environment)
    assert found["editions"].keys() == {"IERSeop97", "IERSpredict", "TAI_UTC"}
    assert re.fullmatch(r"\d{4}\.\d{4} of \d{4}/\d\d/\d\d/.*", found["editions"]["TAI_UTC"])
    assert versions.measures({"AIPSPATH": environment["AIPSPATH"]}) == found
    assert versions.measures(environment, "/no/such/folder") == {"folder": "/no/such/folder", "editions": {}}
    assert versions.measures({}) is None
