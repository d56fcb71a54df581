"""The picture of a benchmark: wall time of each case, and the CPU time in and outside DP3."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from chunkcal.plots.style import LIGHT


def draw(table: pd.DataFrame, names: Mapping[str, str], title: str, path: Path) -> None:
    """Draw a table of `bench.medians` as PNG."""
    figure = Figure((9, 1.6 + 0.6 * len(table)), dpi=110, facecolor=LIGHT.page)
    left, right = figure.subplots(1, 2, sharey=True)
    rows = range(len(table))
    wall = table.wall_s
    errors = [wall - table.wall_min_s, table.wall_max_s - wall]
    left.barh(rows, wall, xerr=errors, color=LIGHT.series[0], ecolor=LIGHT.muted, height=0.6)
    for row, value, highest in zip(rows, wall, table.wall_max_s, strict=True):
        left.annotate(f"{value:.1f} s", (highest, row), (4, 0), textcoords="offset points", va="center", fontsize=9)
    left.set(yticks=rows, yticklabels=[textwrap.fill(names[case], 22) for case in table.case])
    left.set_title("wall time", fontsize=10)
    inside = table.dp3_cpu_s
    right.barh(rows, inside, color=LIGHT.series[2], height=0.6, label="DP3")
    right.barh(rows, table.cpu_s - inside, left=inside, color=LIGHT.series[1], height=0.6, label="the rest")
    right.set_title("CPU time, s", fontsize=10)
    right.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    left.invert_yaxis()
    left.set_xlim(0, 1.2 * table.wall_max_s.max())
    for axes in (left, right):
        axes.tick_params(colors=LIGHT.text, labelsize=9, length=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(textwrap.fill(title, 130), fontsize=9, color=LIGHT.muted)
    figure.tight_layout()
    FigureCanvasAgg(figure).print_png(path)
