"""What a rule's script prints goes to the rule's log; what the user must know goes to the terminal as well."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from chunkcal.cluster.state import ClusterError
from chunkcal.errors import UserError

TAIL_LINES = 12
TAIL_BYTES = 4000


def tell(line: str) -> None:
    """Say something to the user on the terminal, and in the rule's log if there is one."""
    for stream in {sys.stderr, sys.__stderr__}:
        print(f"chunkcal: {line}", file=stream, flush=True)


@contextmanager
def rule_log(path: str) -> Iterator[None]:
    """Send standard output and error to `path`; on failure leave one line on the terminal and exit with 1.

    Also what libraries write themselves, such as casacore's warnings. ``sys.__stderr__`` stays the terminal.

    A mistake of the user's gets no traceback. Any other error leaves its traceback in the log, and its last line and
    the log's path on the terminal.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    python = sys.stdout, sys.stderr, sys.__stderr__
    for stream in python:
        stream.flush()
    saved = {number: os.dup(number) for number in (1, 2)}
    with open(path, "w", buffering=1) as log, open(os.dup(2), "w", buffering=1) as terminal:
        for number in saved:
            os.dup2(log.fileno(), number)
        sys.stdout = sys.stderr = log
        sys.__stderr__ = terminal
        try:
            yield
        except (UserError, ClusterError) as error:
            message = str(error)
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}; log: {Path(path).absolute()}"
        except KeyboardInterrupt:  # who has pressed Ctrl-C knows
            print("interrupted")
            sys.exit(128 + signal.SIGINT)
        else:
            return
        finally:
            sys.stdout, sys.stderr, sys.__stderr__ = python
            for number, original in saved.items():
                os.dup2(original, number)
                os.close(original)
        log.write(message + "\n")
    print(f"chunkcal: {message}", file=sys.stderr)
    sys.exit(1)


def last_lines(
    path: str | os.PathLike, start: int = 0, keep: Callable[[Sequence[str]], Sequence[str]] = lambda lines: lines
) -> str:
    """Return the end of a log, to be put behind its path in an error.

    Parameters
    ----------
    path
        Of the log.
    start
        Byte from which on it is of interest.
    keep
        Chooses among the lines.

    Returns
    -------
    str
        At most `TAIL_LINES` lines, each indented after a newline; nothing if there is no such log.
    """
    try:
        with open(path, "rb") as stream:
            stream.seek(max(start, os.path.getsize(path) - TAIL_BYTES))
            lines = keep(stream.read().decode(errors="replace").splitlines())
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-TAIL_LINES:] if line.strip())
