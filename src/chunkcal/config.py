"""The configuration: validated against the JSON schema, defaults filled in, every problem said at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError, validators

from chunkcal.errors import UserError, near_miss, refuse_braces
from chunkcal.planning import parameters, stepschemas
from chunkcal.planning.steps import parse_steps

# What `cluster: auto` stands for; everything else is found out by default.
AUTOMATIC_CLUSTER = {"threads_per_slot": "auto", "job": {"n_processes": "auto"}}
CHUNK_LENGTHS = ("length", "duration_s", "n_slots", "count")


def load_schema(path: str | Path) -> dict[str, Any]:
    """Read a JSON schema that is written as YAML."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # eight times as fast, but not in every PyYAML
    return yaml.load(Path(path).read_text(encoding="utf-8"), loader)  # noqa: S506


def validate(config: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of `config` with all defaults of `schema` filled in.

    Strings that ``snakemake --config key=value`` could not turn into another type (``false``, ``null``,
    ``{n_slots: 2}``) are read as YAML where the schema wants no string there.

    Raises
    ------
    UserError
        Naming the path of every key that is wrong, one problem per line.
    """
    config = deepcopy(config)
    if config.get("cluster") == "auto":
        config["cluster"] = deepcopy(AUTOMATIC_CLUSTER)
    for key, spec in schema["properties"].items():
        if isinstance(config.get(key), str) and not _allows_string(spec):
            config[key] = _from_yaml(key, config[key])
    problems = [_describe(error) for error in _filler(schema).iter_errors(config)]
    if not problems:
        problems = _check_meaning(config)
    if problems:
        raise UserError(*(f"configuration: {problem}" for problem in dict.fromkeys(problems)))
    return config


def _allows_string(spec: dict[str, Any]) -> bool:
    types = spec.get("type", [])
    return "string" in (types if isinstance(types, list) else [types]) or any(
        _allows_string(option) for option in spec.get("anyOf", [])
    )


def _from_yaml(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:  # dates that are none are ValueErrors
        raise UserError(f"configuration: {key}: {text!r} is not valid YAML: {' '.join(str(error).split())}") from None


def _filler(schema: dict[str, Any]) -> Draft202012Validator:
    """Make a validator that writes the schema's defaults into what it validates, outer objects first."""
    check_properties = Draft202012Validator.VALIDATORS["properties"]

    def fill_and_check(
        validator: Any, properties: dict[str, Any], instance: Any, parent: dict[str, Any]
    ) -> Iterator[ValidationError]:
        if isinstance(instance, dict):
            for key, spec in properties.items():
                if "default" in spec:
                    instance.setdefault(key, deepcopy(spec["default"]))
                if isinstance(instance.get(key), str):
                    instance[key] = _typed(instance[key], spec)
                # A section that is written down but left empty (`chunks:`) means its defaults.
                if instance.get(key, ...) is None and spec.get("type") == "object":
                    instance[key] = {}
        yield from check_properties(validator, properties, instance, parent)

    finite = Draft202012Validator.TYPE_CHECKER.redefine("number", _is_finite_number)
    return validators.extend(Draft202012Validator, {"properties": fill_and_check}, type_checker=finite)(schema)


def _is_finite_number(checker: Any, value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _typed(text: str, spec: dict[str, Any]) -> Any:
    """Read a string as what the schema wants, where it wants no string.

    YAML 1.1 takes ``1e6`` for a string, and ``snakemake --config key='{nested: 2}'`` makes strings of what is nested.
    """
    types = spec.get("type", [])
    types = types if isinstance(types, list) else [types]
    if "number" in types:
        try:
            return float(text)
        except ValueError:
            pass
    if not _allows_string(spec) or ("null" in types and text == "null"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            pass
    return text


def _describe(error: ValidationError) -> str:
    where = ".".join(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        return "; ".join(
            f"{f'{where}.' if where else ''}{key}: no such key{near_miss(key, known, 'known keys:')}"
            for key in error.instance
            if key not in known
        )
    hint = error.schema.get("description") if isinstance(error.schema, dict) else None
    return f"{where or 'top level'}: {error.message}" + (f" ({hint})" if hint else "")


def _check_meaning(config: dict[str, Any]) -> list[str]:
    problems = []
    lengths = [key for key in CHUNK_LENGTHS if config["chunks"].get(key) is not None]
    if len(lengths) > 1:
        problems.append(f"chunks: {' and '.join(lengths)} are both given; give one of {', '.join(CHUNK_LENGTHS)}")
    if not lengths:
        config["chunks"]["length"] = "auto"
    for key in ("output_dir", "scratch_dir"):
        try:
            refuse_braces(key, config[key] or "")
        except UserError as error:
            problems += error.lines
    return problems + _check_cluster(config["cluster"]) + _check_steps(config)


def _check_cluster(cluster: dict[str, Any]) -> list[str]:
    problems = []
    places = [key for key in ("address", "scheduler_file") if cluster[key] is not None]
    if len(places) != (cluster["backend"] == "existing"):
        problems.append("cluster: backend existing goes with one of address and scheduler_file, no other backend does")
    if cluster["backend"] == "ssh" and not cluster["ssh"]["hosts"]:
        problems.append("cluster.ssh.hosts: empty, but backend ssh runs DP3 there and nowhere else; name the hosts")
    if cluster["threads_per_slot"] == "auto" and cluster["backend"] in ("existing", "ssh", "allocation"):
        problems.append(
            f"cluster.threads_per_slot: auto needs the cores and the memory of where DP3 runs, which backend"
            f" {cluster['backend']} does not tell beforehand; give a number"
        )
    job = cluster["job"]
    if job["n_processes"] != "auto" and job["n_cores"] % job["n_processes"]:
        problems.append(
            f"cluster.job: {job['n_cores']} cores do not give {job['n_processes']} processes equally many threads; "
            "n_cores must be a multiple of n_processes"
        )
    if job["max_jobs"] is not None and job["max_jobs"] < job["min_jobs"]:
        problems.append("cluster.job: max_jobs is less than min_jobs")
    return problems


def _check_steps(config: dict[str, Any]) -> list[str]:
    """Check the parameters of DP3 steps, after reading those that lie in a file of their own."""
    section = config["preprocess"]
    allow_unknown = section["allow_unknown_step_parameters"]
    problems: list[str] = []
    try:
        if section["file"] is not None:
            steps = read_steps(section["file"])
            if section["steps"] not in ([], steps):
                raise UserError("preprocess: file and steps are both given; give one of them")
            section["steps"] = steps
        parse_steps(section["steps"], allow_unknown)
    except UserError as error:
        problems += error.lines
    for solve in config["calibrate"]["solves"] if config["calibrate"] else ():
        where = f"calibrate.solves, solve {solve['name']}: extra"
        try:
            stepschemas.check_step("ddecal", parameters.flatten(where, solve["extra"]), where, allow_unknown)
        except UserError as error:
            problems += error.lines
    return problems


def read_steps(path: str) -> list[Any]:
    """Read the step list of a file as ska-sdp-batch-preprocess takes it: YAML with the one key `steps`.

    Raises
    ------
    UserError
        It cannot be read, or is something else.
    """
    where = f"preprocess.file: {path}"
    try:
        found = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{where} cannot be read ({error.strerror}); it should be a YAML file with the key steps"
        ) from None
    except (UnicodeDecodeError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict) or set(found) != {"steps"} or not isinstance(found["steps"], list):
        raise UserError(f"{where} should hold the key steps with a list of steps, and nothing else")
    return found["steps"]
