"""Say where the results of a finished run are and what calibration gained."""

from __future__ import annotations

import argparse
from pathlib import Path

from chunkcal.errors import UserError
from chunkcal.reporting.results import Result, collect_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``chunkcal summary``."""
    parser.add_argument("output_dir", nargs="?", default="results", help="output folder of the run")


def run(args: argparse.Namespace) -> int:
    """Print the summary.

    Raises
    ------
    UserError
        The folder holds no finished run.
    """
    print(summarise(args.output_dir))
    return 0


def summarise(output_dir: str) -> str:
    """Put the outcome of a run into a few lines per observation.

    Raises
    ------
    UserError
        The folder holds no run, or one whose report is not written yet.
    """
    folder = Path(output_dir).resolve()
    found = collect_folder(folder)
    report = folder / "report.html"
    if not report.is_file():
        raise UserError(f"the run in {folder} is not finished (there is no {report}); run snakemake again")
    lines = [line for result in found.observations.values() for line in (*_lines(result), "")]
    if any(result.ms is None for result in found.observations.values()):
        lines.append("The results are incomplete; run snakemake again.")
    return "\n".join([*lines, f"report: {report.as_uri()}"])


def gain_text(result: Result) -> str:
    """Say in one sentence what calibration gained."""
    fit = result.fit
    if not result.is_calibrated:
        return "pre-processed only, nothing was calibrated"
    if fit is None:
        return "gain not measured: the fits to the model are missing"
    if not fit.n_visibilities:
        return f"gain not measurable: all flagged in the {fit.n_chunks} chunk(s) looked at"
    if fit.factor is None:
        return "gain not measurable: the corrected data equal the model"
    worse = fit.factor < 1
    times = 1 / fit.factor if worse else fit.factor
    number = f"{times:.2f}" if times < 2 else f"{times:.1f}"
    return f"corrected data fit the model {number} times {'WORSE' if worse else 'better'} than the raw data"


def percent(fraction: float | None) -> str:
    """Write a fraction as percent; small ones keep their digits."""
    if fraction is None:
        return "–"
    value = 100 * fraction
    return f"{value:.2g} %" if 0 < value < 1 else f"{value:.1f} %"


def _lines(result: Result) -> list[str]:
    rows = [("calibrated data" if result.is_calibrated else "data", str(result.ms or "missing"))]
    if result.is_calibrated:
        for name in result.plan["solves"]:
            rows.append(("solutions", str(result.solutions.get(name, f"{name} is missing"))))
    if result.quality:
        rows.append(("quality", result.quality["verdict"]))
        rows += [("", line) for line in result.quality["summary"]]
    gain, fit = gain_text(result), result.fit
    if fit is not None and fit.raw is not None and fit.corrected is not None:
        gain += f" (rms {fit.raw:.3g} Jy before, {fit.corrected:.3g} Jy after)"
    rows.append(("gain", gain))
    before, after = (flags.fraction if flags else None for flags in (result.flags.get("raw"), result.final))
    rows.append(("flagged", f"{percent(before)} before, {percent(after)} after"))
    if not result.plan.get("exact", True):
        rows.append(("note", f"APPROXIMATE: {'; '.join(result.plan['unit']['inexact'])}"))
    return [result.name, *(f"  {name + ':' if name else '':<17}{text}" for name, text in rows)]
