"""A configuration file of ska-sdp-batch-preprocess runs as it is."""

from pathlib import Path

import pytest
import yaml

import tiny_ms
from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError
from chunkcal.inputs import resolve_observations
from chunkcal.planning.plan import make_plan
from pipeline import ROOT, columns, must_run

SCHEMA = load_schema(ROOT / "workflow/schemas/config.schema.yaml")
# The step types that it allows, with comments, empty steps, natural types and paths relative to --extra-inputs-dir.
THEIRS = """\
steps:
  - MsIn:
  - PreFlagger:
      freqrange: "[139.9 .. 140.1 MHz]"
  - AOFlagger:
      memorymax: 8.0 # GB
  - Demixer:
      skymodel: bright sources.txt
      subtractsources: ["bright_a", "bright_b"]
      demixtimestep: 4
      demixfreqstep: 2
  - ApplyCal:
      parmdb: bandpass.h5
  - Averager:
      timestep: 4
      freqstep: 2
  - MsOut:
      overwrite: true
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "extra").mkdir()
    tiny_ms.make_ms(folder / "obs.ms", n_slots=24)
    tiny_ms.write_sky_model(folder / "extra/target.skymodel")
    run = {"msin": "obs.ms", "msout": "", "steps": "[d]", "d.type": "ddecal", "d.sourcedb": "extra/target.skymodel"}
    tiny_ms.run_dp3(folder, run | {"d.h5parm": "extra/bandpass.h5", "d.solint": 24})
    (folder / "extra/bright sources.txt").write_text(
        "FORMAT = Name, Type, Patch, Ra, Dec, I, SpectralIndex, LogarithmicSI, ReferenceFrequency\n\n"
        ", , bright_a, 34.05deg, 48.5875deg\n, , bright_b, 20.05deg, 57.5875deg\n\n"
        "point_a, POINT, bright_a, 34.05deg, 48.5875deg, 1.0, [0.0], true, 140e6\n"
        "point_b, POINT, bright_b, 20.05deg, 57.5875deg, 1.0, [0.0], true, 140e6\n"
    )
    (folder / "theirs.yaml").write_text(THEIRS)
    return folder


def config(folder: Path, preprocess):
    return {
        "input": [str(folder / "obs.ms")],
        "extra_inputs_dir": str(folder / "extra"),
        "preprocess": preprocess,
        "chunks": {"n_slots": 8},
    }


def test_their_file_runs(folder, tmp_path):
    must_run(tmp_path, config(folder, {"file": str(folder / "theirs.yaml")}))
    found = columns(tmp_path / "results/obs/obs.ms")
    assert found["DATA"].shape == (6 * 10, 2, 4)
    weights = found["WEIGHT_SPECTRUM"].mean(axis=(0, 2))
    assert weights[0] < 0.7 * weights[1]  # half of its channels are flagged by PreFlagger's freqrange


def test_pasted_in_it_is_the_same(folder):
    def plan(preprocess):
        given = validate(config(folder, preprocess), SCHEMA)
        return make_plan(resolve_observations(given), given).observations["obs"]

    from_file = plan({"file": str(folder / "theirs.yaml")})
    assert plan(yaml.safe_load(THEIRS)) == from_file
    parset = from_file["runs"]["preprocess"]["parsets"][0]
    assert parset["steps"] == "[preflagger1,aoflagger2,demixer3,applycal4,averager5]"
    assert parset["applycal4.steps"].strip("[]").split(",")
    assert parset["demixer3.subtractsources"] == "[bright_a,bright_b]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("steps: [", "is not valid YAML"),
        ("steps: []\ncluster: {}\n", "should hold the key steps"),
        ("- MsIn:\n", "should hold the key steps"),
        ("", "should hold the key steps"),
        ("steps: [MsIn: {datcolumn: DATA}]", "step 1 (MsIn): `datcolumn`: no such parameter; did you mean datacolumn?"),
        # One more than YAML takes for the step's own.
        ("steps:\n  - ApplyCal:\n    parmdb: a.h5\n", "indent the parameters of ApplyCal by two more blanks"),
    ],
)
def test_files_that_are_none(tmp_path, text, words):
    path = tmp_path / "theirs.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError) as caught:
        validate({"preprocess": {"file": str(path)}}, SCHEMA)
    assert words in str(caught.value)


def test_file_and_steps(folder):
    with pytest.raises(UserError, match="file and steps are both given"):
        validate({"preprocess": {"file": str(folder / "theirs.yaml"), "steps": ["Counter"]}}, SCHEMA)
    once = validate({"preprocess": {"file": str(folder / "theirs.yaml")}}, SCHEMA)
    assert validate(once, SCHEMA) == once
