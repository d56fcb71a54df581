"""The conda environment and the locks name the same versions."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def locked(name):
    lines = (ROOT / name).read_text().splitlines()
    found = (re.match(r"([A-Za-z0-9_.-]+)==([^ ;]+)", line) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


def test_conda_environment_has_the_locked_versions():
    environment = yaml.safe_load((ROOT / "workflow/envs/chunkcal.yaml").read_text())
    pinned = dict(line.lower().split("==") for line in environment["dependencies"][-1]["pip"])
    lock = locked("requirements.lock")
    assert pinned == {name: lock[name] for name in pinned}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["build"]
    assert {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in wanted} == set(pinned)


def test_test_lock_extends_the_lock():
    lock, test = locked("requirements.lock"), locked("requirements-test.lock")
    assert lock.items() <= test.items()
    assert "pytest" in test


def test_locks_are_complete_and_name_no_index():
    for name in ("requirements.lock", "requirements-test.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        assert text.count("==") <= text.count("--hash=")
