"""Pictures of the report: solutions, flags, and who ran what when.

Images of the sky are in `chunkcal.plots.sky`, which needs astropy's coordinates: slow to import.
"""

from chunkcal.plots.flags import NAMES as STAGE_NAMES
from chunkcal.plots.flags import draw_flag_bars, draw_flag_waterfalls
from chunkcal.plots.panels import MAX_SEAMS
from chunkcal.plots.reading import Solutions, Span, Waterfalls, read_solutions, read_waterfalls
from chunkcal.plots.solutions import MAX_POINTS, draw_solutions, draw_waterfalls
from chunkcal.plots.style import DARK, LIGHT, Picture
from chunkcal.plots.timing import draw_gantt

__all__ = [
    "DARK",
    "LIGHT",
    "MAX_POINTS",
    "MAX_SEAMS",
    "STAGE_NAMES",
    "Picture",
    "Solutions",
    "Span",
    "Waterfalls",
    "draw_flag_bars",
    "draw_flag_waterfalls",
    "draw_gantt",
    "draw_solutions",
    "draw_waterfalls",
    "read_solutions",
    "read_waterfalls",
]
