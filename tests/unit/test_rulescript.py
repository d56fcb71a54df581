"""A script gets what its rule says without Snakemake's import; what is not known is left to Snakemake."""

import json
import subprocess
import sys

import pytest

from chunkcal import rulescript

SNAKEFILE = """
import os
from chunkcal import rulescript

if config["light"]:
    rulescript.lighten(os.path.realpath("ours"))

rule all:
    input: "made/a.ours.json", "made/a.theirs.json"

rule make:
    input:
        "Snakefile",
        script="{place}/script.py",
        both=["ours/script.py", "theirs/script.py"],
    output: "made/{name}.{place}.json"
    log: "logs/{name}.{place}.log"
    threads: 2
    params:
        settings={"number": 1.5, "none": None, "list": [1, "two", (3,)]},
        path=lambda wildcards, input: input.script,
    script: "{wildcards.place}/script.py"
"""
SCRIPT = """
import json
import sys

found = {
    "imported": "snakemake" in sys.modules,
    "file": __file__,
    "input": list(snakemake.input),
    "both": list(snakemake.input.both),
    "script": snakemake.input.get("script"),
    "other": snakemake.input.get("other", "none"),
    "settings": snakemake.params.settings,
    "is_tuple": isinstance(snakemake.params.settings["list"][2], tuple),
    "path": snakemake.params.path,
    "name": snakemake.wildcards.name,
    "log": snakemake.log[0],
    "threads": snakemake.threads,
}
json.dump(found, open(snakemake.output[0], "w"))
"""


def run(folder, *, light):
    (folder / "Snakefile").write_text(SNAKEFILE)
    for place in ("ours", "theirs"):
        (folder / place).mkdir()
        (folder / place / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--quiet", "all", "--config", f"light={light}"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return [json.loads((folder / f"made/a.{place}.json").read_text()) for place in ("ours", "theirs")]


def test_a_script_gets_the_same_without_snakemake(tmp_path):
    ours, theirs = run(tmp_path, light=True)
    assert not ours.pop("imported")
    assert theirs.pop("imported")
    assert ours["input"] == ["Snakefile", "ours/script.py", "ours/script.py", "theirs/script.py"]
    for found, place in ((ours, "ours"), (theirs, "theirs")):
        assert found.pop("path") == found.pop("script") == f"{place}/script.py"
        assert found.pop("file") == str(tmp_path / place / "script.py")
        assert found.pop("log") == f"logs/a.{place}.log"
        assert found.pop("input")[1] == f"{place}/script.py"
    assert ours == theirs


def test_snakemake_still_needs_it(tmp_path):
    # What fails here can go: this Snakemake does it itself.
    assert all(found["imported"] for found in run(tmp_path, light=False))


@pytest.mark.parametrize("kind", [None, type("PythonScript", (), {"get_preamble": lambda self: ""})])
def test_an_unknown_snakemake_is_left_alone(kind, monkeypatch):
    monkeypatch.setattr("snakemake.script.PythonScript", kind)
    assert not rulescript.lighten("/nowhere")
    assert kind is None or kind.get_preamble(None) == ""
