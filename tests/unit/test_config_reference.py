"""The reference page says what the schema says, about every key."""

import runpy
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOL = runpy.run_path(str(ROOT / "tools/config_reference.py"))
SCHEMA = yaml.safe_load(TOOL["SCHEMA"].read_text())
SECTIONS = list(TOOL["sections"](SCHEMA, SCHEMA, ""))


def rows(schema):
    """Read the rows of a page back: section and key to the other cells."""
    found, section = {}, ""
    for line in TOOL["render"](schema).splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif line.startswith("| `"):
            name, *cells = (cell.strip() for cell in line.replace("\\|", "/")[2:-2].split(" | "))
            found[section, name.strip("`")] = cells
    return found


def test_the_page_is_that_of_the_schema():
    assert TOOL["PAGE"].read_text() == TOOL["render"](SCHEMA), "run: python tools/config_reference.py"


@pytest.mark.parametrize("title", [section[0] for section in SECTIONS])
def test_every_key_has_a_sentence(title):
    _, _, properties, _ = next(section for section in SECTIONS if section[0] == title)
    unsaid = [name for name, spec in properties.items() if not TOOL["sentence"](spec).endswith(".")]
    assert unsaid == []


def test_every_map_of_the_schema_refuses_strange_keys():
    open_maps = []

    def look(spec, path):
        if isinstance(spec, dict):
            if "properties" in spec and spec.get("type") and spec.get("additionalProperties") is not False:
                open_maps.append(path)
            for key, value in spec.items():
                look(value, f"{path}.{key}")
        elif isinstance(spec, list):
            for value in spec:
                look(value, path)

    look(SCHEMA, "")
    assert open_maps == []


def test_what_a_schema_can_hold():
    box = {"type": "object", "description": "A box.", "properties": {"size_m": {"type": "number", "minimum": 0}}}
    schema = {
        "$defs": {"box": box, "name": {"type": "string", "default": "a|b"}},
        "properties": {
            "one": {"$ref": "#/$defs/box", "description": "Mine."},
            "many": {"type": "array", "items": {"$ref": "#/$defs/box"}, "default": []},
            "either": {
                "description": "This or that.",
                "oneOf": [
                    {"const": "auto"},
                    {
                        "title": "as a map",
                        "type": "object",
                        "required": ["x_hz"],
                        "properties": {"x_hz": {"type": "integer"}},
                    },
                ],
            },
            "named": {"type": "object", "additionalProperties": {"$ref": "#/$defs/box"}},
            "name": {"$ref": "#/$defs/name"},
            "level": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1, "default": None},
            "which": {"enum": ["a", 2, None]},
        },
    }
    assert rows(schema) == {
        ("", "one"): ["map", "", "", "Mine."],
        ("", "many"): ["list of map", "", "`[]`", ""],
        ("", "either"): ["`auto` or map", "", "", "This or that."],
        ("", "named"): ["map", "", "", ""],
        ("", "name"): ["text", "", "`a/b`", ""],
        ("", "level"): ["number > 0, ≤ 1 or null", "", "`null`", ""],
        ("", "which"): ["`a`, `2`, `null`", "", "", ""],
        ("`one`", "size_m"): ["number ≥ 0", "m", "", ""],
        ("`many[]`", "size_m"): ["number ≥ 0", "m", "", ""],
        ("`either`: as a map", "x_hz"): ["whole number", "Hz", "required", ""],
        ("`named.<name>`", "size_m"): ["number ≥ 0", "m", "", ""],
    }
