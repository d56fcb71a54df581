"""Make src/chunkcal/data/dp3_steps.json: names, types and defaults of the parameters of DP3's steps.

Usage: python tools/dp3_steps.py DP3/docs/schemas

The schemas are DP3's own, of the release that pyproject.toml asks for (v6.6). Where they and the readers in steps/*.cc
of that release disagree, the readers win, because they decide what runs: those facts stand below. The integration test
tests/integration/test_dp3_parameters.py tries the result with DP3.
"""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

import yaml

DP3_VERSION = "6.6"
TABLE = Path(__file__).parents[1] / "src/chunkcal/data/dp3_steps.json"

# File names of schemas to step types, where they are not the same but for case.
TYPES = {"input": "msin", "output": "msout", "phaseshift": "phaseshifter", "pythonstep": "python"}
# No steps: descriptions, and what neither is a step in 6.6.
NO_STEPS = {"description of all parameters", "description of baseline selection parameters", "svpinput"}
NO_PARAMETERS = {"step_name", "type", "steps", "replaceparms"}

# Words of the schemas to ours. `text` takes any scalar; `list` also a single value, as DP3 does; `value` anything.
WORDS = {
    "array": "list",
    "array of strings": "list",
    "baseline": "text",
    "bool": "bool",
    "boolean": "bool",
    "double": "number",
    "double[]": "list",
    "enum": "text",
    "File": "text",
    "float": "number",
    "float[]": "list",
    "int": "integer",
    "integer": "integer",
    "list": "list",
    "list of doubles": "list",
    "list of ints": "list",
    "record": "record",
    "string": "text",
    "string[]": "list",
    "vector": "list",
}

INTEGER, COUNT, NUMBER, BOOL, TEXT, LIST, VALUE = (
    {"type": name} for name in ("integer", "count", "number", "bool", "text", "list", "value")
)
MISSING_ANTENNA = {"type": "text", "values": ["error", "flag", "unit"]}
INTERPOLATION = {"type": "text", "values": ["nearest", "linear"]}
OPERATION = {"type": "text", "values": ["replace", "add", "subtract"]}
# base/CalType.cc
MODES = {
    "type": "text",
    "values": [
        *("diagonal", "complexgain", "diagonalphase", "phaseonly", "diagonalamplitude", "amplitudeonly", "scalar"),
        *("scalarcomplexgain", "scalarcomplex", "scalaramplitude", "scalarphase", "tec", "tec+delay", "tec+phase"),
        *("tecandphase", "tec+phase+delay", "tecscreen", "fulljones", "rotation+diagonal", "rotation"),
        *("faradayrotation", "leakage", "leakageamplitude"),
    ],
}
# base/BaselineSelection.cc, base/FlagCounter.cc
BASELINES = {"baseline": VALUE, "corrtype": TEXT, "blrange": LIST}
COUNTER = {"save": BOOL, "path": TEXT, "warnperc": NUMBER, "showfullyflagged": BOOL}
FLAGGER = {f"count.{key}": spec for key, spec in COUNTER.items()}

# What the readers know beyond the schemas, or read as another type. None: no reader asks for it, so that DP3, which
# is run with checkparset=1, would refuse it.
READERS: dict[str, dict[str, Any]] = {
    "aoflagger": FLAGGER
    | {"memoryperc": NUMBER, "timewindow": COUNT, "overlapmax": COUNT, "overlap": COUNT, "pulsar": None}
    | {"pedantic": None},
    "applybeam": {"beamproximitylimit": None, "onebeamperpatch": None, "direction": LIST, "debuglevel": INTEGER},
    "applycal": {"correction": TEXT, "interpolation": INTERPOLATION, "missingantennabehavior": MISSING_ANTENNA}
    | {"steps": LIST, "*.*": {"step": "applycal", "named_in": "steps"}},
    "averager": {"timestep": COUNT, "freqstep": COUNT, "minpoints": COUNT, "freqresolution": {"type": "frequency"}},
    "clipper": {"amplmax": NUMBER},
    "combine": {"operation": {"type": "text", "values": ["add", "subtract"]}},
    "counter": COUNTER,
    "ddecal": {
        "mode": MODES,
        "rotationdiagonalmode": MODES,
        "faradaydiagonalmode": MODES,
        "solveralgorithm": {
            "type": "text",
            "values": ["directionsolve", "directioniterative", "lowrank", "hybrid", "lbfgs"],
        },
        "llssolver": {"type": "text", "values": ["qr", "svd", "normalequations"]},
        "datause": {"type": "text", "values": ["full", "dual", "single"]},
        "initialsolutions.interpolation": INTERPOLATION,
        "initialsolutions.missingantennabehavior": MISSING_ANTENNA,
        **dict.fromkeys(
            ("solint", "nchan", "maxiter", "approxchunksize", "maxapproxiter", "max_tec_delay_wraps"), COUNT
        ),
        **dict.fromkeys(("lra.iterations", "lra.power_iterations"), COUNT),
        "usemodelcolumn": BOOL,
        "sagecalpredict": BOOL,
        "tecscreen.*": {"any": True},
        "modelnextsteps.<direction>": None,
        "modelnextsteps.*": {"any": True},
        "idg.buffersize": None,
        "sources": None,
        "grouppredict": None,  # only with data averaged by baseline length
        "aterms": LIST,
        "*.*": {"any": True, "named_in": "aterms"},
    },
    "demixer": {
        **dict.fromkeys(("timestep", "freqstep", "demixtimestep", "demixfreqstep", "ntimechunk"), COUNT),
        "demixfreqresolution": {"type": "frequency"},
        "lbfgs.solution.range": LIST,
        "*.*": {"step": "phaseshifter", "named_in": "subtractsources modelsources othersources targetsource"},
    },
    "filter": {"startchan": {"type": "channels"}, "nchan": {"type": "channels"}},
    "gaincal": {"caltype": MODES, "minblperant": None, "onebeamperpatch": BOOL, "applycal.*": {"step": "applycal"}},
    "h5parmpredict": {"directions": LIST, "onebeamperpatch": BOOL, "sources": None},
    "idgpredict": {"aterms": LIST, "*.*": {"any": True, "named_in": "aterms"}, "saveaterms": None}
    | dict.fromkeys(
        (
            "aterm.type",
            "atermkernelsize",
            "beam.frequency_interpolation",
            "beam.differential",
            "beam.usechannelfreq",
            "beam.element_response_model",
        )
    ),
    "interpolate": {"windowsize": COUNT},
    "madflagger": FLAGGER
    | {"threshold": VALUE, "timewindow": VALUE, "freqwindow": VALUE, "correlations": LIST}
    | {"blmin": NUMBER, "blmax": NUMBER},
    "msin": {"startchan": {"type": "channels"}, "nchan": {"type": "channels"}, "timetolerance": NUMBER}
    | {"modelcolumn": TEXT, "baseline": TEXT, "orderms": None},
    "msout": {"flush": COUNT, "copycorrecteddata": BOOL, "copymodeldata": BOOL, "tilesize": COUNT, "tilenchan": COUNT}
    | dict.fromkeys(("scalarflags", "antennacompression", "uvwcompression"), BOOL),
    "phaseshifter": {"phasecenter": LIST},
    "predict": {"debuglevel": INTEGER, "operation": OPERATION, "sources": LIST, "applycal.*": {"step": "applycal"}}
    | {"usefastpredict": BOOL},
    "preflagger": FLAGGER
    | dict.fromkeys(("timeofday", "abstime", "reltime", "timeslot", "lst", "azimuth", "elevation"), LIST)
    | dict.fromkeys(("freqrange", "chan"), LIST)
    | {f"{part}{end}": VALUE for part in ("ampl", "phase", "real", "imag") for end in ("min", "max")}
    | {"mode": {"type": "text", "values": "set clear setcomplement setother clearcomplement clearother".split()}}
    | dict.fromkeys(("uvmmin", "uvmmax", "blmin", "blmax"), NUMBER)
    | {"*.*": {"step": "preflagger", "named_in": "expr"}},
    "python": {"*": {"any": True}, "*.*": {"any": True}},  # the user's own class reads them
    "sagecalpredict": {"directions": LIST},
    "scaledata": {"stations": LIST, "coeffs": LIST, "scalesize": BOOL},
    "setbeam": {"direction": LIST},
    "stationadder": {"minpoints": COUNT},
    "uvwflagger": FLAGGER
    | {"phasecenter": LIST, "beammode": None}
    | {f"{name}range": LIST for name in ("uvm um vm wm uvlambda ulambda vlambda wlambda").split()},
    "wgridderpredict": {"buffersize": BOOL},
}
# Steps whose constructors hand their own prefix to others.
USES = {
    "clipper": ("filter", "predict"),
    "ddecal": ("predict", "uvwflagger"),
    "gaincal": ("predict", "uvwflagger", "applybeam"),
    "h5parmpredict": ("predict",),
    "sagecalpredict": ("predict",),
}
SELECTS_BASELINES = ("demixer", "filter", "gaincal", "preflagger")


def read_default(given: Any, kind: str) -> Any:
    """Read a default as a value of its type; None where there is none, or only words about it."""
    if kind in ("number", "integer"):
        try:
            return None if given is None else float(given) if kind == "number" else int(given)
        except ValueError:
            return None
    if isinstance(given, str):
        text = given.strip('"')
        if text == "empty" or "..." in text:
            return None
        given = yaml.safe_load(text) if kind in ("list", "record", "bool") or text.startswith("[") else text
        return None if isinstance(given, str) and (" " in given or kind == "bool") else given
    return given


def read_schema(path: Path, step_type: str) -> dict[str, dict[str, Any]]:
    """Read the names, types and defaults of one step."""
    found: dict[str, dict[str, Any]] = {}
    for names, given in (yaml.safe_load(path.read_text(encoding="utf-8")).get("inputs") or {}).items():
        for name in html.unescape(names).split("/"):
            key = name.strip().removeprefix(f"{step_type}.")
            if (key in NO_PARAMETERS and not (key == "steps" and step_type == "applycal")) or key == step_type:
                continue
            if key.endswith(".*"):
                found[key] = {"step": key.removesuffix(".*")}
                continue
            spec = found[key] = {"type": WORDS[given["type"].rstrip("?").rstrip()] if given.get("type") else "value"}
            if spec["type"] == "text" and str(given.get("default")).startswith("["):
                spec["type"] = "list"  # a single value is a list, too, so some are called strings
            default = read_default(given.get("default"), spec["type"])
            if default is not None:
                spec["default"] = default
            closed = given.get("type") == "enum" and "(" not in given["symbols"]
            if closed:
                spec["values"] = given["symbols"].replace(" ", "").split(",")
    return found


def make_table(folder: Path) -> dict[str, dict[str, Any]]:
    """Make the table of all steps: type of the step, then name of the parameter."""
    steps: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.yml")):
        name = path.stem.lower()
        if name not in NO_STEPS:
            step_type = TYPES.get(name, name)
            steps[step_type] = read_schema(path, step_type)
    for step_type, readers in READERS.items():
        for key, spec in readers.items():
            default = steps[step_type].get(key, {}).get("default")
            steps[step_type][key] = spec and spec | ({} if default is None else {"default": default})
    for step_type in SELECTS_BASELINES:
        steps[step_type] = BASELINES | steps[step_type] | {"baseline": VALUE}
    for step_type, others in USES.items():
        for other in others:
            steps[step_type] = {key: spec for key, spec in steps[other].items() if key != "*.*"} | steps[step_type]
    for step_type in steps:
        steps[step_type] = {key: spec for key, spec in steps[step_type].items() if spec is not None}
    return {step_type: dict(sorted(steps[step_type].items())) for step_type in sorted(steps)}


def write(steps: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the table with one parameter per line, so that a change of DP3 shows as a change of lines."""
    blocks = []
    for step_type, parameters in steps.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(spec)}" for name, spec in parameters.items()]
        blocks.append(
            f" {json.dumps(step_type)}: {{\n" + ",\n".join(lines) + "\n }" if lines else f' "{step_type}": {{}}'
        )
    head = f'"dp3": {json.dumps(DP3_VERSION)},\n"steps": {{\n'
    path.write_text("{\n" + head + ",\n".join(blocks) + "\n}\n}\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__.split("\n\n")[1])
    write(make_table(Path(sys.argv[1])), TABLE)
