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


def test_shipped_config_is_valid_and_documented():
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    assert validate(config, SCHEMA)["calibrate"]["solves"][0]["maxiter"] > 0
    page = (ROOT / "config/README.md").read_text()
    missing = [key for key in _keys(SCHEMA) if f"`{key}`" not in page]
    assert not missing


@pytest.mark.parametrize("preset", sorted((ROOT / "config/presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_configurations(preset):
    config = validate(yaml.safe_load(preset.read_text()), SCHEMA)
    assert {key: type(value) for key, value in config["calibrate"].items()}["solves"] is list


def _keys(schema):
    for key, spec in schema.get("properties", {}).items():
        yield key
        yield from _keys(spec)
        yield from _keys(spec.get("items", {}))


def test_every_key_says_what_it_is():
    def undocumented(schema, path=""):
        for key, spec in schema.get("properties", {}).items():
            if not spec.get("description", "").endswith("."):
                yield f"{path}{key}"
            yield from undocumented(spec, f"{path}{key}.")
            yield from undocumented(spec.get("items", {}), f"{path}{key}.")

    assert list(undocumented(SCHEMA)) == []


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


def test_nested_section_from_the_command_line():
    assert validate({"cluster": "{n_slots: 2}"}, SCHEMA)["cluster"]["n_slots"] == 2


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
        ({"cluster": {"backend": "existing"}}, ["backend existing and address go together"]),
        ({"keep_chunks": "{"}, ["keep_chunks", "not valid YAML"]),
        ({"output_dir": 3, "cluster": {"threads_per_slot": 0}}, ["output_dir", "cluster.threads_per_slot"]),
    ],
)
def test_refusals_name_the_key(given, words):
    with pytest.raises(UserError) as caught:
        validate(given, SCHEMA)
    for word in words:
        assert word in str(caught.value)


def test_the_given_config_is_left_alone():
    given = {"cluster": {}}
    validate(given, SCHEMA)
    assert given == {"cluster": {}}
