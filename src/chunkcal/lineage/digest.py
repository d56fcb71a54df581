"""Digests of files and folders as they lie on disk: SHA-256, so that ``sha256sum`` gives the same.

Standard library only: each start of Snakemake looks at the user's files with it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

# casacore's lock file: whoever reads the table may write to it.
_LOCKS = ("table.lock",)


def of_file(path: str | os.PathLike) -> str:
    """Give the SHA-256 of a file, in hexadecimal; that of an unchanged file is remembered."""
    status = os.stat(path)
    return _of_file(os.fspath(path), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _of_file(path: str, *_: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_tree(folder: str | os.PathLike) -> str:
    """Give one SHA-256 of all files below a folder: of the lines that ``sha256sum`` prints for them, sorted by path."""
    lines = "".join(f"{of_file(path)}  {path.relative_to(folder).as_posix()}\n" for path in _files(folder))
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def of_input(path: str | os.PathLike, depth: str = "metadata") -> dict[str, str | int]:
    """Describe an input so that it can be recognised.

    Parameters
    ----------
    path
        A file, or the folder of a MeasurementSet or another table.
    depth
        ``metadata``: of a table, its ``table.dat``, which holds columns and number of rows. ``full``: all its bytes.

    Returns
    -------
    dict
        ``sha256`` of a file; for a table ``table_dat_sha256``, ``n_bytes`` of all files, with ``full`` ``tree_sha256``.
    """
    if not os.path.isdir(path):
        return {"sha256": of_file(path)}
    found: dict[str, str | int] = {"n_bytes": sum(file.stat().st_size for file in _files(path))}
    table = Path(path, "table.dat")
    if table.is_file():
        found["table_dat_sha256"] = of_file(table)
    if depth == "full":
        found["tree_sha256"] = of_tree(path)
    return found


def of_contents(paths: Iterable[str | os.PathLike | None]) -> dict[str, str | None]:
    """Digest files by path, and of tables their ``table.dat``; None for what does not exist yet."""
    found: dict[str, str | None] = {}
    for path in paths:
        if path is None:
            continue
        file = Path(path, "table.dat") if os.path.isdir(path) else Path(path)
        found[os.fspath(path)] = of_file(file) if file.is_file() else None
    return found


def named_in(section: Any, base: str | None = None) -> list[str]:
    """List the files that a section of the configuration names: all texts in it that are paths of files.

    Parameters
    ----------
    section
        Anything that YAML can hold.
    base
        Folder of relative paths; None is the current one.
    """
    if isinstance(section, str):
        path = os.path.join(base or "", os.path.expanduser(section))
        return [path] if os.path.isfile(path) else []
    if isinstance(section, Mapping):
        section = list(section.values())
    if isinstance(section, list):
        return sorted({path for item in section for path in named_in(item, base)})
    return []


def _files(folder: str | os.PathLike) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name not in _LOCKS)
