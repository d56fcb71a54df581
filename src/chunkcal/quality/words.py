"""What the quality gate found, in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from chunkcal.quality.limits import VERDICTS

_MJD_0 = datetime(1858, 11, 17)


def describe(report: Mapping[str, Any]) -> list[str]:
    """Put a report of `judge` into one line per figure that is not good, the most severe first.

    Parameters
    ----------
    report
        What `judge` returned, or the content of quality.json.
    """
    found = [
        (-VERDICTS.index(figure["verdict"]), solve, name, figure)
        for solve, one in report["solves"].items()
        for name, figure in one["figures"].items()
        if figure["verdict"] != "pass"
    ]
    return [
        f"{figure['verdict'].upper()} {report['obs']}, solve {solve}: {figure['what']} ({_numbers(name, figure)})"
        for _, solve, name, figure in sorted(found, key=lambda item: item[0])
    ]


def _numbers(name: str, figure: Mapping[str, Any]) -> str:
    limit = figure["fail"] if figure["verdict"] == "fail" else figure["warn"]
    unit = f" {figure['unit']}" if figure["unit"] else ""
    return f"{name} {figure['value']:.3g}{unit}, limit {limit:g}"


def utc(mjd_s: float) -> str:
    """Write a time given in MJD s as UTC with whole seconds."""
    return (_MJD_0 + timedelta(seconds=round(mjd_s))).isoformat()


def times(factor: float) -> str:
    """Write a factor with three digits: 5.03 times."""
    return f"{factor:.3g} times"


def percent(fraction: float) -> str:
    """Write a fraction as percent."""
    return f"{100 * fraction:.3g} %"
