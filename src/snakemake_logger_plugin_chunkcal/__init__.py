"""Snakemake's log handler of a chunkcal run: a live view on a terminal, Snakemake's own lines everywhere else.

Snakemake finds it by the name of this package; profiles/default asks for it. With ``--quiet``, ``--verbose`` or
``--dry-run``, and where the output is no terminal, it does what Snakemake's own handler does.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from snakemake.logging import ColorizingTextHandler, get_event
from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from chunkcal.reporting import terminal

_ERRORS = (LogEvent.ERROR, LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR)


class LogHandler(LogHandlerBase):
    """What Snakemake logs, on the terminal."""

    writes_to_stream = True
    writes_to_file = False
    has_filter = False  # Snakemake's own one, which knows --quiet, is added
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        settings = self.common_settings
        stream = sys.stdout if settings.stdout else sys.stderr
        self._plain = ColorizingTextHandler(nocolor=settings.nocolor, stream=stream)
        wants_lines = settings.dryrun or settings.quiet or settings.verbose or settings.debug_dag
        if not wants_lines and self._plain.can_color_tty():
            terminal.offer()

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802  (a name of logging's)
        """Set the formatter of both ways to show a record."""
        super().setFormatter(fmt)
        self._plain.setFormatter(fmt)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record: as Snakemake does, or, during the live view, as far as a person must see it."""
        screen = terminal.screen()
        if screen is None:
            self._plain.emit(record)
            return
        event = get_event(record)
        if event in _ERRORS or record.levelno >= logging.WARNING:
            self._show_problem(screen, record, event)
        if event == LogEvent.JOB_INFO and not record.rule_name.endswith("_chunk"):
            screen.job_began(record.jobid, _name(record))
        elif event == LogEvent.JOB_FINISHED:
            screen.job_ended(record.job_id)
        elif event == LogEvent.JOB_ERROR:
            screen.job_ended(record.jobid)
        elif event == LogEvent.PROGRESS:
            screen.steps_done(record.done, record.total)

    def _show_problem(self, screen: terminal.Screen, record: Any, event: LogEvent | None) -> None:
        """Show an error or a warning; of a script of ours, which has told what is wrong itself, only that it failed."""
        text = self.format(record)
        if event == LogEvent.ERROR and "CalledProcessError" in text and "/.snakemake/scripts/" in text:
            return
        if event == LogEvent.JOB_ERROR and record.log and not (record.shellcmd or record.rule_msg or record.aux):
            text = f"Error in rule {record.rule_name}: job {record.jobid} failed; log: {', '.join(record.log)}"
        screen.show(self._plain.decorate(record, text))

    def close(self) -> None:
        """End the view with the log."""
        terminal.end()
        super().close()


def _name(record: Any) -> str:
    return " ".join((record.rule_name, *(str(value) for value in (record.wildcards or {}).values())))
