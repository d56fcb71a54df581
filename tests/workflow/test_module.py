"""The workflow as a module of another one, under other rule names, with its configuration below a key."""

import subprocess
import sys

import yaml

from elsewhere import CALIBRATE, observation
from pipeline import ROOT, assert_same_bits, columns, must_run

SNAKEFILE = f"""
configfile: "ours.yaml"

onstart:
    shell("touch begun")

module chunkcal:
    snakefile: "{ROOT / "Snakefile"}"
    config: config["calibration"]

use rule * from chunkcal as chunkcal_*

rule everything:
    default_target: True
    input:
        rules.chunkcal_all.input,
    output:
        "done"
    shell:
        "touch {{output}}"
"""


def test_another_workflow_uses_it(tmp_path):
    ms = observation(tmp_path, n_slots=4)
    config = {"input": [str(ms)], "chunks": {"n_slots": 2}, "calibrate": CALIBRATE}
    must_run(tmp_path / "alone", config)
    work = tmp_path / "work"
    work.mkdir()
    (work / "Snakefile").write_text(SNAKEFILE)
    (work / "ours.yaml").write_text(yaml.safe_dump({"calibration": config}))
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
    assert (work / "done").exists()
    assert (work / "begun").exists()  # their own hook
    assert_same_bits(columns(tmp_path / "alone/results/a/a.ms"), columns(work / "results/a/a.ms"))
    assert (work / "results/report.html").exists()
