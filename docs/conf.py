"""How the documentation is built: ``make docs``."""

from __future__ import annotations

project = "chunkcal"
copyright = "the chunkcal developers"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "chunkcal"
myst_heading_anchors = 3
nitpicky = True
exclude_patterns = ["_build"]

# Pages are read on the code host as well, where they link to files that are no pages here.
_REPOSITORY_LINKS = {
    "](../config/README.md": "](configure.md",
    "](../profiles/slurm/cluster.yaml)": "](clusters.md#slurm)",
}


def _to_pages(app: object, name: str, source: list[str]) -> None:
    for link, page in _REPOSITORY_LINKS.items():
        source[0] = source[0].replace(link, page)


def setup(app: object) -> None:
    """Turn links to files of the repository into links to pages."""
    app.connect("source-read", _to_pages)
