"""``chunkcal cluster``: what would be asked of the batch system."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml

import chunkcal
from chunkcal.cluster.state import SHARED, ClusterError
from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError

SCHEMA = "workflow/schemas/config.schema.yaml"
CONFIG = "config/config.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of ``chunkcal cluster``."""
    actions = parser.add_subparsers(dest="action", required=True)
    script = actions.add_parser("job-script", help="print the script that would be submitted for each worker job")
    script.add_argument("--profile", type=Path, help="folder of the profile that snakemake will be given")
    script.add_argument(
        "--configfile",
        type=Path,
        nargs="+",
        help=f"configuration files, later ones on top of earlier ones and of {CONFIG}; instead of the profile's own",
    )
    script.add_argument("--config", nargs="+", default=[], metavar="KEY=VALUE", help="single keys, on top of all files")


def run(options: argparse.Namespace) -> int:
    """Print the job script."""
    # Here, not above: dask takes a second to import, which every other command of chunkcal would wait for.
    from chunkcal.cluster.backends.jobqueue import CLUSTERS, Place, job_script

    executor, files = _profile(options.profile)
    config: dict[str, Any] = {}
    for path in [Path(CONFIG), *(options.configfile or files)]:
        if path.exists() or path != Path(CONFIG):
            _update(config, _read(path))
    for entry in options.config:
        key, equals, value = entry.partition("=")
        if not equals:
            raise UserError(f"--config {entry}: write KEY=VALUE")
        _update(config, {key: yaml.safe_load(value)})
    config = validate(config, load_schema(_schema()))
    settings = config["cluster"]
    if settings["backend"] == "auto" and executor == "slurm":
        settings["backend"] = "slurm"
    if settings["backend"] not in CLUSTERS:
        raise UserError(
            f"cluster.backend {settings['backend']} submits no jobs; add --profile slurm, or "
            "--config cluster='{backend: slurm}'"
        )
    shared = Path.cwd() / config["output_dir"] / SHARED / "RUN"
    try:
        print(job_script(settings, Place("ccal-RUN", shared, Path.cwd() / "logs/workers")))
    except ClusterError as error:
        raise UserError(str(error)) from error
    return 0


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
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
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
