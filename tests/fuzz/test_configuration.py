"""Configurations that nobody would write: each is refused in words, or makes a plan; never a traceback, never a file.

The way of a configuration is that of a run: YAML, validation, observations, plan. `make fuzz` tries 2,000 of them.
"""

import copy
import json
import os
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny_ms
from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError
from chunkcal.inputs import resolve_observations
from chunkcal.planning.plan import make_plan
from chunkcal.planning.stepschemas import table

ROOT = Path(__file__).parents[2]
SCHEMA = load_schema(ROOT / "workflow/schemas/config.schema.yaml")
SHIPPED = yaml.safe_load((ROOT / "config/config.yaml").read_text())
CASES = int(os.environ.get("CHUNKCAL_FUZZ_CASES", "200"))

STEPS = [
    {"MsIn": {"datacolumn": "DATA", "autoweight": False}},
    {"PreFlagger": {"baseline": "*&&&", "expr": "a", "a.elevation": "0deg..20deg", "count": {"save": False}}},
    {"AOFlagger": {"timewindow": 4}},
    {"ApplyCal": {"parmdb": "sky.txt", "steps": ["p"], "p.correction": "phase000"}},
    {"Demixer": {"skymodel": "sky.txt", "demixtimestep": 2, "propagatesolutions": False}},
    "Counter",
    {"own": {"type": "StationAdder", "stations": {"NEW": ["ST000", "ST001"]}}},
    {"Averager": {"timestep": 2, "freqresolution": "400 kHz"}},
    {"MsOut": {"overwrite": True, "storagemanager": {"name": "dysco"}}},
]
SOLVE = {
    "name": "gain",
    "mode": "diagonal",
    "solint_s": 40,
    "smoothness_hz": 1e6,
    "antenna_constraint": [["ST000", "ST001"]],
    "extra": {"propagatesolutions": False, "usebeammodel": True},
}


def keys_of(schema, path=()):
    """List the paths of all keys that a schema knows, the first element standing for all of a list."""
    for name, spec in schema.get("properties", {}).items():
        yield (*path, name)
        yield from keys_of(spec, (*path, name))
        yield from keys_of(spec.get("items", {}), (*path, name, 0))


def places(value, path=()):
    """List the paths of everything inside a configuration."""
    if path:
        yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


KEYS = [(key,) for key in SCHEMA["properties"]] + list(keys_of(SCHEMA))
NUMBERS = [0, -1, 1, 7, 2**31, -(2**63), 10**30, 0.5, -0.0, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")]
TEXTS = [
    *(
        "",
        " ",
        "\n",
        "{obs}",
        "{nothing}",
        "{",
        "}}",
        "{0}",
        "%s",
        "$(touch x)",
        "`touch x`",
        "'",
        '"',
        "\\",
        "#",
        "a=b",
        "[",
        "]",
    ),
    *(
        "[a,[b]",
        "null",
        "true",
        "1e6",
        "1,5",
        "-1",
        "*",
        "?",
        "[!a]",
        "~",
        "~nobody/x",
        "..",
        "/",
        "\0",
        "\x1b[31m",
        "ünï ☃",
    ),
    *(
        "\ud800".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
        "a" * 5000,
        "٣",
        "obs.ms",
        "sky.txt",
        "auto",
    ),
    *(
        "<b>",
        "!!python/object:os.system",
        "&a *a",
        "2024-03-14",
        "0x10",
        "12:30:45",
        "yes",
        "msin",
        "steps",
        "2024-13-44",
    ),
    "[" * 500 + "]" * 500,
]
# YAML's own reader ends at some 200 levels.
WEIRD = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.recursive(
        st.sampled_from([None, 0, "", "x", True]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([40, 100]).map(lambda depth: json.loads("[" * depth + "]" * depth)),
    st.sampled_from([40, 100]).map(lambda depth: json.loads('{"a":' * depth + "1" + "}" * depth)),
)


@st.composite
def steps(draw):
    """Draw a step with parameters that exist, and any values."""
    name = draw(st.sampled_from(sorted(table())))
    names = st.sampled_from(sorted(table()[name]) or ["x"])
    fitting = {
        "bool": st.booleans(),
        "count": st.integers(0, 20),
        "number": st.floats(0, 1e9),
        "text": st.text(max_size=5),
    }
    values = {
        key: draw(fitting.get(table()[name].get(key, {}).get("type"), WEIRD) if draw(st.booleans()) else WEIRD)
        for key in draw(st.lists(names, max_size=4))
    }
    return {name: values}


@st.composite
def configurations(draw, folder):
    """Draw a valid configuration and change it in some places."""
    base = draw(st.sampled_from([SHIPPED, {}, {"preprocess": {"steps": STEPS}}]))
    config = copy.deepcopy(base) | {"input": [str(folder / "obs.ms")], "extra_inputs_dir": str(folder)}
    config.setdefault("calibrate", {"sky_model": "sky.txt", "solves": [copy.deepcopy(SOLVE)]})
    config["calibrate"]["sky_model"] = "sky.txt"
    config["chunks"] = {"n_slots": 4, "allow_approximate": draw(st.booleans())}
    if draw(st.booleans()):
        config["preprocess"] = {"steps": draw(st.lists(steps(), max_size=3))}
    for _ in range(draw(st.integers(0, 3))):
        change(draw, config)
    return config


def change(draw, config):
    """Change a configuration in one place."""
    what = draw(st.sampled_from(["set", "replace", "delete", "rename", "wrap", "repeat"]))
    if what == "set":
        *path, key = draw(st.sampled_from(KEYS))
        parent = config
        for name in path:
            try:
                parent = parent[name] if not isinstance(parent, dict) else parent.setdefault(name, {})
            except (TypeError, LookupError):
                return
        if isinstance(parent, dict):
            parent[key] = draw(WEIRD)
        return
    *path, key = draw(st.sampled_from(sorted(places(config), key=str)))
    parent = config
    for name in path:
        parent = parent[name]
    if what == "replace":
        parent[key] = draw(WEIRD)
    elif what == "delete":
        del parent[key]
    elif what == "wrap":
        parent[key] = draw(st.sampled_from([[parent[key]], {"value": parent[key]}, {str(key): parent[key]}]))
    elif what == "repeat" and isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))
    elif what == "rename" and isinstance(parent, dict) and isinstance(key, str):
        new = draw(
            st.sampled_from([key[:-1], f"{key}s", key.upper(), f" {key}", f"{key}.{key}", "", "ü", 3, None, True])
        )
        parent[new] = parent.pop(key)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiny_ms.make_ms(folder / "obs.ms", n_slots=12, n_stations=3)
    tiny_ms.write_sky_model(folder / "sky.txt")
    return folder


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """An empty working folder."""
    folder = tmp_path_factory.mktemp("here")
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def state(*folders):
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for folder in folders for path in folder.rglob("*")
    }


def plan_of(config):
    config = validate(config, SCHEMA)
    assert validate(config, SCHEMA) == config or has_nan(config)  # what is valid stays as it is
    plan = make_plan(resolve_observations(config), config)
    json.dumps(plan.observations)
    return plan


def refusals(config):
    """Give what is said of a configuration; nothing if it can be planned."""
    try:
        plan_of(config)
    except UserError as error:
        return error.lines
    return ()


def has_nan(value):
    return "NaN" in json.dumps(value, default=str)


def is_named(line, *folders):
    """Whether a line of a refusal names a key of the configuration, the observation, or a file."""
    names = {key for path in KEYS for key in path if isinstance(key, str)} | {"top level", "configuration:"}
    return any(text in line for text in (*names, *map(str, folders))) or line.startswith(("obs: ", "/"))


def test_refused_in_words_or_planned(folder, here):
    before = state(folder, here)
    outcomes = {"refused": 0, "planned": 0}

    @settings(
        max_examples=CASES,
        deadline=None,
        derandomize=CASES <= 200,  # the same cases in each run of the tests; others each night
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(config=configurations(folder))
    def run(config):
        config = yaml.safe_load(yaml.safe_dump(config))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lines = refusals(config)
        outcomes["refused" if lines else "planned"] += 1
        assert all(is_named(line, folder, here) for line in lines), lines
        assert state(folder, here) == before

    run()
    assert min(outcomes.values()) > CASES / 20, outcomes  # it is worth nothing if one of them never happens


@pytest.mark.parametrize("path", KEYS, ids=lambda path: ".".join(map(str, path)))
def test_every_key_with_numbers_that_nobody_means(folder, here, path):
    """What chance would seldom hit: each number in each place."""
    base = {"input": [str(folder / "obs.ms")], "extra_inputs_dir": str(folder), "chunks": {}}
    base |= {"calibrate": {"sky_model": "sky.txt", "solves": [SOLVE]}}
    for number in NUMBERS:
        config = copy.deepcopy(base)
        parent = config
        for name, behind in zip(path, path[1:], strict=False):
            empty = [{}] if isinstance(behind, int) else {}
            parent = parent[name] if isinstance(name, int) else parent.setdefault(name, empty)
        parent[path[-1]] = number
        unnamed = [line for line in refusals(config) if not is_named(line, folder, here)]
        assert unnamed == []
