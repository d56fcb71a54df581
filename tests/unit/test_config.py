from pathlib import Path

import pytest
import yaml

from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError

ROOT = Path(__file__).parents[2]
SCHEMA = load_schema(ROOT / "workflow/schemas/config.schema.yaml")


def test_empty_config_gets_every_default():
    config = validate({}, SCHEMA)
    assert config["cluster"]["resource"] == "subprocess_slots"
    assert config["chunks"] == {"length": "auto", "allow_approximate": False}
    assert config["calibrate"] is None
    assert set(config) == set(SCHEMA["properties"])


def test_shipped_config_is_valid():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert validate(config, SCHEMA)["calibrate"]["solves"][0]["maxiter"] > 0


@pytest.mark.parametrize("preset", sorted((ROOT / "config/presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_configurations(preset):
    config = validate(yaml.safe_load(preset.read_text()), SCHEMA)
    assert isinstance(config["calibrate"]["solves"], list)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"keep_chunks": "true"}, {"keep_chunks": True}),
        ({"calibrate": "null"}, {"calibrate": None}),
        ({"input": "/data/*.ms"}, {"input": "/data/*.ms"}),
    ],
)
def test_strings_of_the_command_line_become_what_the_schema_wants(given, expected):
    config = validate(given, SCHEMA)
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("nested", ["{n_slots: 2}", {"n_slots": "2"}])
def test_nested_section_from_the_command_line(nested):
    """Snakemake makes a dictionary of strings of it."""
    assert validate({"cluster": nested}, SCHEMA)["cluster"]["n_slots"] == 2


def test_a_cluster_that_is_all_automatic():
    cluster = validate({"cluster": "auto"}, SCHEMA)["cluster"]
    assert (cluster["backend"], cluster["threads_per_slot"], cluster["job"]["n_processes"]) == ("auto",) * 3
    assert cluster["start_timeout_s"] == 120
    with pytest.raises(UserError, match="threads_per_slot: auto needs the cores .* backend ssh does not tell"):
        validate({"cluster": {"backend": "ssh", "ssh": {"hosts": ["a"]}, "threads_per_slot": "auto"}}, SCHEMA)
    with pytest.raises(UserError, match="cluster: 'all' is not of type 'object'"):
        validate({"cluster": "all"}, SCHEMA)


def test_keys_of_jobs_from_the_command_line():
    job = {"n_cores": "8", "queue": "long", "account": "null", "walltime_min": "1.5", "prologue": ["module load x"]}
    job = validate({"cluster": {"job": job}}, SCHEMA)["cluster"]["job"]
    assert (job["n_cores"], job["queue"], job["account"], job["walltime_min"]) == (8, "long", None, 1.5)
    assert job["prologue"] == ["module load x"]


def test_empty_section_means_its_defaults():
    assert validate({"chunks": None}, SCHEMA)["chunks"]["length"] == "auto"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"chunk": {}}, ["chunk: no such key", "did you mean chunks?"]),
        ({"cluster": {"n_slot": 2}}, ["cluster.n_slot: no such key", "did you mean n_slots?"]),
        ({"cluster": {"n_slots": 0}}, ["cluster.n_slots"]),
        ({"chunks": {"count": 3, "n_slots": 4}}, ["n_slots and count are both given"]),
        ({"calibrate": {"sky_model": "a"}}, ["calibrate", "'solves' is a required property"]),
        ({"output_dir": "{obs}"}, ["output_dir: {obs} has braces"]),
        ({"cluster": {"backend": "existing"}}, ["backend existing goes with one of address and scheduler_file"]),
        ({"cluster": {"address": "tcp://a:1"}}, ["backend existing goes with one of address and scheduler_file"]),
        ({"cluster": {"job": {"n_cores": 5, "n_processes": 2}}}, ["n_cores must be a multiple of n_processes"]),
        ({"cluster": {"job": {"min_jobs": 5, "max_jobs": 2}}}, ["max_jobs is less than min_jobs"]),
        ({"keep_chunks": "{"}, ["keep_chunks", "not valid YAML"]),
        ({"keep_chunks": "[" * 500}, ["keep_chunks", "not valid YAML"]),
        ({"keep_chunks": "2024-13-44"}, ["keep_chunks", "not valid YAML"]),
        ({"preprocess": {"steps": [{"Averager": {"timestp": 2}}]}}, ["step 1 (Averager): `timestp`", "mean timestep?"]),
        (
            {"calibrate": {"sky_model": "a", "solves": [{"mode": "tec", "solint_s": 1, "extra": {"nothing": 1}}]}},
            ["calibrate.solves, solve gain: extra: `nothing`: no such parameter"],
        ),
        ({"output_dir": 3, "cluster": {"threads_per_slot": 0}}, ["output_dir", "cluster.threads_per_slot"]),
    ],
)
def test_refusals_name_the_key(given, words):
    with pytest.raises(UserError) as caught:
        validate(given, SCHEMA)
    for word in words:
        assert word in str(caught.value)


def test_a_newer_dp3_may_have_more_parameters():
    steps = [{"Averager": {"timestp": 2}}]
    section = validate({"preprocess": {"steps": steps, "allow_unknown_step_parameters": True}}, SCHEMA)["preprocess"]
    assert section["steps"] == steps


def test_the_given_config_is_left_alone():
    given = {"cluster": {}}
    validate(given, SCHEMA)
    assert given == {"cluster": {}}
