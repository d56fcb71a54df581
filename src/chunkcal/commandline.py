"""The configuration as snakemake would see it, for commands that run without it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

import chunkcal
from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError

SCHEMA = "workflow/schemas/config.schema.yaml"
CONFIG = "config/config.yaml"


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options that snakemake has for its configuration."""
    parser.add_argument("--profile", type=Path, help="folder of the profile that snakemake will be given")
    parser.add_argument(
        "--configfile",
        type=Path,
        nargs="+",
        help=f"configuration files, later ones on top of earlier ones and of {CONFIG}; instead of the profile's own",
    )
    parser.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="single keys, on top of all files")


def read_config(options: argparse.Namespace) -> tuple[dict[str, Any], str | None]:
    """Read and validate the configuration.

    Returns
    -------
    dict, str or None
        The configuration with all defaults, and the executor that the profile names.

    Raises
    ------
    UserError
        A file cannot be read, or the configuration is wrong.
    """
    executor, files = _profile(options.profile)
    config: dict[str, Any] = {}
    for path in [Path(CONFIG), *(options.configfile or files)]:
        if path.exists() or path != Path(CONFIG):
            _update(config, _read(path))
    for entry in options.config:
        key, equals, value = entry.partition("=")
        if not equals:
            raise UserError(f"--config {entry}: write KEY=VALUE")
        try:
            _update(config, {key: yaml.safe_load(value)})
        except yaml.YAMLError as error:
            raise UserError(f"--config {entry}: not valid YAML: {' '.join(str(error).split())}") from None
    return validate(config, load_schema(_schema())), executor


def _profile(folder: Path | None) -> tuple[str | None, list[Path]]:
    """Read from a profile the executor and the configuration files."""
    if folder is None:
        return None, []
    profile = _read(folder / "config.yaml")
    names = profile.get("configfile") or []
    names = names if isinstance(names, list) else [names]
    return profile.get("executor"), [folder / name if (folder / name).exists() else Path(name) for name in names]


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: should hold keys with values, as config/README.md shows")
    return content or {}


def _update(config: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put changes into a nested configuration, like snakemake does."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _update(config[key], value)
        else:
            config[key] = value


def _schema() -> Path:
    """Find the schema: in the folder that is worked in, else beside the package."""
    here = Path(SCHEMA)
    return here if here.exists() else Path(chunkcal.__file__).parents[2] / SCHEMA
