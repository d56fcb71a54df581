"""Write docs/configuration.md: every key of the configuration, from workflow/schemas/config.schema.yaml.

Usage: python tools/config_reference.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
SCHEMA = ROOT / "workflow/schemas/config.schema.yaml"
PAGE = ROOT / "docs/configuration.md"
HEAD = """\
<!-- Made by tools/config_reference.py from workflow/schemas/config.schema.yaml; change the schema, not this page. -->
# Configuration reference

Every key of a run's configuration. [config/README.md](../config/README.md) tells how to give it, and what to know about
the larger sections. `a[].b` is the key `b` of each element of the list `a`. A key that is not here is refused.
"""
UNITS = {
    "s": "s",
    "hz": "Hz",
    "mhz": "MHz",
    "deg": "degrees",
    "arcmin": "arcmin",
    "arcsec": "arcsec",
    "lambda": "wavelengths",
    "m": "m",
    "mb": "MB",
    "gb": "GB",
    "jy": "Jy",
    "percent": "%",
    "sigma": "standard deviations",
}
BOUNDS = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
NAMES = {"string": "text", "boolean": "true or false", "integer": "whole number", "null": "null", "object": "map"}

Spec = Mapping[str, Any]


def render(schema: Spec) -> str:
    """Give the page of a schema."""
    parts = [HEAD]
    for title, description, properties, required in sections(schema, schema, ""):
        parts.append(f"\n## {title}\n" if title else "")
        parts.append(f"\n{description}\n" if title and description else "")
        parts.append("\n| key | type | unit | default | meaning |\n|---|---|---|---|---|\n")
        parts += [row(schema, title, name, spec, name in required) for name, spec in properties.items()]
    return "".join(parts)


def sections(root: Spec, spec: Spec, path: str) -> Iterator[tuple[str, str, Mapping[str, Spec], set[str]]]:
    """List title, description, keys and required keys of a map and of all maps inside it, in the schema's order."""
    properties = {name: resolved(root, value) for name, value in spec.get("properties", {}).items()}
    if properties:
        yield f"`{path}`" if path else "", sentence(spec), properties, set(spec.get("required", ()))
    for name, value in properties.items():
        yield from inner(root, value, f"{path}.{name}" if path else name)


def inner(root: Spec, spec: Spec, path: str) -> Iterator[tuple[str, str, Mapping[str, Spec], set[str]]]:
    """List the maps inside a value: its own keys, those of list elements, of alternatives and of free names."""
    yield from sections(root, spec, path)
    if isinstance(spec.get("items"), dict):
        yield from inner(root, resolved(root, spec["items"]), f"{path}[]")
    if isinstance(spec.get("additionalProperties"), dict):
        yield from inner(root, resolved(root, spec["additionalProperties"]), f"{path}.<name>")
    for option in alternatives(root, spec):
        title = option.get("title")
        for heading, *rest in inner(root, option, path):
            yield f"{heading}: {title}" if title and heading == f"`{path}`" else heading, *rest


def alternatives(root: Spec, spec: Spec) -> list[Spec]:
    """Give the alternatives of anyOf and oneOf; those that only say which keys go together have nothing to tell."""
    options = [resolved(root, option) for key in ("anyOf", "oneOf") for option in spec.get(key, ())]
    return [option for option in options if set(option) - {"required", "not"}]


def resolved(root: Spec, spec: Spec) -> Spec:
    """Follow a local $ref; what stands beside it wins."""
    if "$ref" not in spec:
        return spec
    target: Any = root
    for word in spec["$ref"].removeprefix("#/").split("/"):
        target = target[word]
    return {**resolved(root, target), **{key: value for key, value in spec.items() if key != "$ref"}}


def row(root: Spec, title: str, name: str, spec: Spec, required: bool) -> str:
    """Give one row of a table."""
    default = "required" if required else code(spec["default"]) if "default" in spec else ""
    unit = UNITS.get(name.rpartition("_")[2], "") if "_" in name else ""
    cells = (f"`{name}`", kind(root, spec), unit, default, sentence(spec))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def kind(root: Spec, spec: Spec) -> str:
    """Say in words which values a key can have."""
    options = alternatives(root, spec)
    if options:
        return " or ".join(dict.fromkeys(kind(root, option) for option in options))
    if "enum" in spec:
        return ", ".join(code(value) for value in spec["enum"])
    if "const" in spec:
        return code(spec["const"])
    types = spec.get("type", [])
    types = [types] if isinstance(types, str) else types
    return " or ".join(one_kind(root, spec, name) for name in types) or "any value"


def one_kind(root: Spec, spec: Spec, name: str) -> str:
    """Say in words what one type of a key means, with its bounds."""
    if name == "array":
        items = resolved(root, spec["items"]) if isinstance(spec.get("items"), dict) else {}
        return f"list of ({kind(root, items)})" if " " in kind(root, items) else f"list of {kind(root, items)}"
    bounds = [f"{sign} {spec[key]:g}" for key, sign in BOUNDS if key in spec and name in ("number", "integer")]
    return " ".join([NAMES.get(name, name), ", ".join(bounds)]).strip()


def sentence(spec: Spec) -> str:
    """Give the description in one line."""
    return " ".join(spec.get("description", "").split())


def code(value: Any) -> str:
    """Write a value as YAML flow text would have it."""
    return f"`{value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)}`"


if __name__ == "__main__":
    PAGE.write_text(render(yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))), encoding="utf-8")
