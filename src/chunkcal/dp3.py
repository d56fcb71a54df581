"""The DP3 command: where it is, its environment, its parset text, and what its exit status means.

Standard library only: workers and chunk jobs import this module thousands of times, and neither ``dp3``
nor ``casacore`` may be imported (the two wheels carry different casacores, which crash in one process).
"""

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from chunkcal.errors import UserError

# Strategies of the wheel that are made for one instrument; every other telescope gets GENERIC_STRATEGY,
# because DP3's own default is LOFAR's for all of them.
STRATEGIES = {
    "AARTFAAC": "aartfaac-default.lua",
    "ARECIBO": "arecibo-default.lua",
    "ATCA": "atca-default.lua",
    "BIGHORNS": "bighorns-default.lua",
    "EVLA": "jvla-default.lua",
    "JVLA": "jvla-default.lua",
    "LOFAR": "lofar-default.lua",
    "MWA": "mwa-default.lua",
    "NENUFAR": "nenufar-default.lua",
    "PARKES": "parkes-default.lua",
    "VLA": "jvla-default.lua",
    "WSRT": "wsrt-default.lua",
}
GENERIC_STRATEGY = "generic-default.lua"

_OF_WHEEL = (sys.executable, str(Path(sys.executable).parent / "DP3.py"))
# With -P, or `ms` and all else that lies beside the script could be imported under these names.
_STARTED = (sys.executable, "-P", str(Path(__file__).with_name("startdp3.py")))

_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def find_command(setting: str | Sequence[str] | None = "auto") -> list[str]:
    """
    Find the command that starts DP3.

    Parameters
    ----------
    setting
        ``"auto"`` or None: ``DP3`` on PATH, else that of the wheel beside this Python. Anything else
        is an argv prefix, as a list or as a string that is split like a shell would.

    Returns
    -------
    list of str
        The argv prefix to which the parset's name is added.

    Raises
    ------
    UserError
        If there is no DP3, or the first word of the prefix cannot be executed.
    """
    if setting in (None, "auto"):
        on_path = shutil.which("DP3")
        if on_path:
            return [on_path]
        if Path(_OF_WHEEL[-1]).is_file():
            return list(_STARTED)
        raise UserError(
            "DP3 was not found, neither DP3 on PATH nor DP3.py beside "
            f"{sys.executable}: install it (pip install dp3) or set dp3: {{command: ...}}"
        )
    try:
        command = shlex.split(setting) if isinstance(setting, str) else [str(word) for word in setting]
    except ValueError as error:
        raise UserError(f"dp3.command {setting!r} cannot be split into words: {error}") from None
    if not command:
        raise UserError("dp3.command is empty: use 'auto' or a command such as 'DP3'")
    if shutil.which(command[0]) is None:
        raise UserError(f"dp3.command: {command[0]!r} is not an executable file, nor one on PATH")
    return command


def is_wheel(command: Sequence[str]) -> bool:
    """Tell whether a command is the DP3 of the wheel beside this Python, started by us or by its own ``DP3.py``."""
    return tuple(command) in (_STARTED, _OF_WHEEL)


def environment(
    n_threads: int,
    command_is_users: bool,
    measures_dir: str | os.PathLike[str] | None = None,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """
    Give the environment variables that DP3 needs on top of (or instead of) those in ``base``.

    OpenBLAS must be single-threaded or DP3 refuses to start. The wheel finds no measures data by itself;
    the python-casacore wheel carries current ones. A user's own DP3 and a user's own AIPSPATH keep theirs.

    Parameters
    ----------
    n_threads
        Threads of this DP3.
    command_is_users
        True for any DP3 but the wheel's: it has its own measures data.
    measures_dir
        A folder with casacore measures data (``geodetic``, ``ephemerides``) that overrides all others.
    base
        The environment that DP3 would inherit; ``os.environ`` if not given.

    Returns
    -------
    dict
        Variables to set; merge them over the inherited environment.

    Raises
    ------
    UserError
        If ``measures_dir`` is not a folder with measures data.
    """
    inherited = os.environ if base is None else base
    result = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(n_threads)}
    if not command_is_users and "AIPSPATH" not in inherited:
        package = _casacore_package()
        if package is not None:
            result["AIPSPATH"] = str(package)
            result["CASACORE_DATADIR"] = str(package / "data")
    if measures_dir is not None:
        result["CASARCFILES"] = str(_casarc(Path(measures_dir)))
    return result


def _casacore_package() -> Path | None:
    """Find the python-casacore package without importing it; None if it is not installed."""
    spec = importlib.util.find_spec("casacore")
    if spec is None or spec.origin is None:
        return None
    package = Path(spec.origin).parent
    return package if (package / "data").is_dir() else None


def _casarc(measures_dir: Path) -> Path:
    """Write the casacore settings file that points at a measures folder; the same folder gives the same file."""
    folder = measures_dir.expanduser().resolve()
    if not (folder / "geodetic").is_dir():
        raise UserError(f"dp3.measures_dir: {folder} has no 'geodetic' folder, so it holds no measures data")
    text = f"measures.directory: {folder}\n"
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"chunkcal-{os.getuid()}-{name}.casarc"
    try:
        status = path.lstat()
        if status.st_uid == os.getuid() and path.is_file() and path.read_text() == text:
            return path
    except OSError:
        pass
    handle, temporary = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    with os.fdopen(handle, "w") as out:
        out.write(text)
    os.replace(temporary, path)
    return path


def parset_text(parset: Mapping[str, str]) -> str:
    """
    Write a parset as the text that DP3 reads back unchanged.

    DP3's reader (common/ParameterSetImpl.cc of 6.6) ends a value at an unquoted ``#``, takes an unquoted
    ``=`` for the next key, joins lines after a trailing backslash, and drops quotes when it asks for a
    string. So those characters alone are put in quotes where they stand outside quotes; numbers, lists and
    records stay bare, because DP3 recognises them by their first character.

    Parameters
    ----------
    parset
        Keys and values, in order.

    Raises
    ------
    UserError
        For a key or value that cannot be written: control characters, unbalanced quotes, a strange key.
    """
    return "".join(f"{_checked_key(key)}={_escaped(key, value)}\n" for key, value in parset.items())


def _checked_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise UserError(f"{key!r} is not a DP3 parameter name: use letters, digits, '.', '_', ':', '+' and '-'")
    return key


def _escaped(key: str, value: str) -> str:
    """Quote the characters of one value that DP3's reader would misread."""
    text = value.strip(" \t")
    if _CONTROL.search(text):
        raise UserError(f"{key}: the value {value!r} contains a line break or another control character")
    result = []
    quote = ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
            result.append(char)
        elif char in "'\"":
            if char not in text[place + 1 :]:
                raise UserError(f"{key}: the value {value!r} has a quote ({char}) without its partner")
            quote = char
            result.append(char)
        elif char in "#=\\":
            result.append(f'"{char}"')
        else:
            result.append(char)
    return "".join(result)


def argv(command: Sequence[str], parset_file: str | os.PathLike[str], n_threads: int) -> list[str]:
    """
    Give the whole command line of one DP3 run.

    The parset's name must be the first argument, else DP3 ignores it silently; ``checkparset=1`` makes
    DP3 refuse keys that no step reads.
    """
    return [*command, os.fspath(parset_file), f"numthreads={n_threads}", "checkparset=1"]


def version(command: Sequence[str], timeout_s: float = 60.0) -> str:
    """
    Ask a DP3 for its version, e.g. ``"6.6.0"``.

    Raises
    ------
    UserError
        If the command cannot be started or does not answer like DP3.
    """
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    try:
        process = subprocess.Popen(
            [*command, "-v"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # what a wrapper script has started must go with it
        )
        try:
            answer, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"DP3 does not start: {shlex.join(command)} -v: {error}") from None
    match = re.search(r"DP3 +(\d[\w.+-]*)", answer)
    if match is None:
        last = answer.strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"{shlex.join(command)} -v does not answer like DP3: {last[0]}")
    return match.group(1)


def strategies_dir() -> Path | None:
    """Find the folder of aoflagger strategies that the DP3 wheel installs, without importing ``dp3``."""
    spec = importlib.util.find_spec("dp3")
    if spec is None or spec.origin is None:
        return None
    site = Path(spec.origin).parent.parent
    # 6.6.0 installs them in DP3.libs but looks in dp3.libs.
    for name in ("DP3.libs", "dp3.libs"):
        folder = site / name / "aoflagger" / "strategies"
        if folder.is_dir():
            return folder
    return None


def strategy_file(telescope: str, command_is_users: bool = False) -> Path | None:
    """
    Give the aoflagger strategy of the wheel that suits a telescope.

    Parameters
    ----------
    telescope
        ``TELESCOPE_NAME`` of the MeasurementSet's OBSERVATION table.
    command_is_users
        True for the user's own DP3, which brings strategies for itself.

    Returns
    -------
    Path or None
        An existing file; None when the user's own DP3 shall choose.

    Raises
    ------
    UserError
        If the wheel's strategies are missing.
    """
    if command_is_users:
        return None
    folder = strategies_dir()
    name = STRATEGIES.get(telescope.strip().upper(), GENERIC_STRATEGY)
    if folder is None or not (folder / name).is_file():
        raise UserError(
            f"the aoflagger strategy {name} is missing from the DP3 wheel: reinstall dp3, or give "
            "AOFlagger a 'strategy' of your own"
        )
    return folder / name


_MEMORY_WORDS = ("bad_alloc", "cannot allocate memory", "out of memory", "oom-kill")
# casacore's words for a disk that takes only a part of what it is given, of a lock file and of others: no error of the
# system, so what it says behind the second is one from long before, often "No such file or directory".
_SHORT_WRITES = (r"tracepwrite\(", r"write error in (?!.*: (input/output error|stale file handle|file too large))")
# Regular expressions for DP3's output in lower case -> what they mean.
_HINTS = (
    (("bucketcache::",), "the MeasurementSet is damaged or incomplete; copy it again"),
    (("no space left on device", "disk quota exceeded", "error 28", *_SHORT_WRITES), "the disk is full"),
    (_MEMORY_WORDS, "out of memory"),
    (("unused parset keywords found",), "a parameter is unknown to DP3, see 'not used' in the log"),
    (("cannot read table of observatories",), "DP3 finds no measures data; set dp3.measures_dir"),
)


def describe_failure(returncode: int, log_tail: str) -> str:
    """
    Say in one line why a DP3 ended badly.

    Parameters
    ----------
    returncode
        As ``subprocess`` gives it: negative for a signal; 128 + signal when a shell or container reports it.
    log_tail
        The last lines of DP3's output.
    """
    number = -returncode if returncode < 0 else returncode - 128
    hints = [hint for words, hint in _HINTS if re.search("|".join(words), log_tail.lower())]
    if (returncode < 0 or returncode > 128) and number in {s.value for s in signal.Signals}:
        text = f"DP3 was killed by {signal.Signals(number).name}"
        if not hints and number == signal.SIGKILL:
            hints = ["out of memory, or the batch system's limit"]
        elif not hints and number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS):
            hints = ["often a full disk"]
    else:
        text = f"DP3 ended with exit status {returncode}"
    reason = _last_message(log_tail)
    return text + (f" ({'; '.join(hints)})" if hints else "") + (f": {reason}" if reason else "")


def ran_out_of_memory(log_tail: str) -> bool:
    """Tell whether a DP3 that has failed says that it had too little memory."""
    return any(word in log_tail.lower() for word in _MEMORY_WORDS)


def without_tracebacks(lines: Sequence[str]) -> list[str]:
    """Leave out the Python tracebacks that the wheel puts around DP3's own message."""
    kept: list[str] = []
    inside = False
    for line in lines:
        inside = line.startswith("Traceback (most recent call last)") or (inside and line[:1] in ("", " "))
        if not inside:
            kept.append(line)
    return kept


def _last_message(log_tail: str) -> str:
    """Find the line that carries DP3's own message; the wheel wraps it in a Python traceback."""
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    for line in reversed(lines):
        for mark in ("std exception detected: ", "RuntimeError: ", "ValueError: "):
            if mark in line:
                return line.split(mark, 1)[1].strip()
    return lines[-1] if lines else ""
