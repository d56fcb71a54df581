"""What a rule says to its Python script, without Snakemake.

Snakemake 9.27 hands it over as an object of its own, for which each Python script imports Snakemake: 30 to 55 ms, as
much as some of ours take besides, and all but two of them are waited for. How that is done is Snakemake's own: where
another version lacks one of the pieces, its way is left alone. Standard library only.
"""

from __future__ import annotations

import atexit
import gc
import inspect
import os
import pickle
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

_NAMED = ("input", "output", "params", "wildcards", "log")
# What Snakemake knows of a script, as far as it is needed here.
_KNOWN = {"path", "input_", "output", "params", "wildcards", "log", "threads", "container_img", "conda_env"}


class Named(list):
    """The files, params or wildcards of a rule: all in a list, those with a name as attributes, too."""

    def __init__(self, items: list[Any], names: Mapping[str, Any]) -> None:
        super().__init__(items)
        self.__dict__.update(names)

    def get(self, name: str, default: Any = None) -> Any:
        """Return what has this name, or else the default."""
        return self.__dict__.get(name, default)


def given(pickled: bytes) -> SimpleNamespace:
    """Return what a rule gives to its script: what Snakemake's own object has, as far as scripts here ask for it."""
    # Imports make no garbage, but a tenth of their time went into looking for it, and up to 0.07 s at the script's end.
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)
    found = pickle.loads(pickled)
    return SimpleNamespace(**found | {key: Named(*found[key]) for key in _NAMED})


def lighten(folder: str) -> bool:
    """Let the Python scripts of a folder begin without importing Snakemake.

    Parameters
    ----------
    folder
        With all links resolved. Other scripts, as those of a workflow that uses this one as a module, are left alone.

    Returns
    -------
    bool
        Whether this version of Snakemake is one that it is known of how.
    """
    from snakemake import script

    kind = getattr(script, "PythonScript", None)
    theirs = getattr(kind, "get_preamble", None)
    if theirs is None or not set(inspect.signature(kind.__init__).parameters) >= _KNOWN:
        return False
    kind.get_preamble = _with_light(folder, kind, theirs)
    return True


def _with_light(folder: str, kind: type, theirs: Callable[[Any], str]) -> Callable[[Any], str]:
    def get_preamble(self: Any) -> str:
        path = os.path.realpath(self.path.get_path_or_uri(secret_free=True))
        if type(self) is not kind or os.path.dirname(path) != folder or self.container_img or self.conda_env:
            return theirs(self)  # another Python may not know this module
        said = {key: (_plain(list(named)), _plain(dict(named.items()))) for key, named in _named(self)}
        said["threads"] = self.threads
        return (
            f"from chunkcal.rulescript import given; snakemake = given({pickle.dumps(said)!r});"
            f" __real_file__ = __file__; __file__ = {path!r}\n"
        )

    return get_preamble


def _named(script: Any) -> list[tuple[str, Any]]:
    return [(key, getattr(script, key)) for key in _NAMED]


def _plain(value: Any) -> Any:
    """Replace Snakemake's kinds of strings, lists and mappings by Python's own."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    return value
