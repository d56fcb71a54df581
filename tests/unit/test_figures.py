"""Titles and captions say what a picture shows and what it leaves out."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from chunkcal import plots
from chunkcal.reporting.figures import Budget, gantt_figure, image_figure, solution_figures
from chunkcal.reporting.results import Clock, Task
from h5parms import write_h5

SPAN = plots.Span(1000, 1120, (1040, 1080), ((1060, 1080),))


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Do not render: the words count here."""
    monkeypatch.setattr("chunkcal.plots.style.pngs", lambda *_: (b"x" * 100, b"x" * 100))


def draw(tmp_path, budget=None, **changes):
    write_h5(tmp_path / "s.h5", **changes)
    solves = {"slow": tmp_path / "s.h5", "fast": tmp_path / "s.h5"}
    return draw_all(solves, budget or Budget())


def draw_all(solves, budget):
    with ThreadPoolExecutor(1) as pool:
        return solution_figures("a", solves, SPAN, budget, pool)


def test_each_solve_table_and_direction_has_its_pictures(tmp_path):
    slow, fast = draw(tmp_path, directions=("[p]", "[q]"))
    assert (slow.name, fast.name) == ("slow", "fast")
    assert [figure.title for figure in slow.figures] == [
        f"{kind} {what}, direction [{direction}]"
        for kind in ("Phase", "Amplitude")
        for direction in "pq"
        for what in ("of each station", "against time and frequency")
    ]
    caption = slow.figures[0].caption
    assert "Solution table phase000, 12 solutions in time, at 121.000 MHz, one of 3 frequencies" in caption
    assert "Vertical lines: where chunks meet. Grey bands: no data" in caption
    assert caption.endswith("No solutions at all (1 of 4): RS305.")
    assert "4 stations of a" in slow.figures[0].alt
    assert "1 of them have no solutions" in slow.figures[1].alt


def test_too_many_directions_are_counted(tmp_path):
    slow, _ = draw(tmp_path, directions=tuple(f"[p{i}]" for i in range(9)), kinds=("phase",))
    assert slow.notes == ["phase000: 8 of 9 directions are shown."]
    assert len(slow.figures) == 16


def test_the_page_stays_small(tmp_path):
    slow, fast = draw(tmp_path, Budget(300))
    assert len(slow.figures) == 2  # the first table went beyond what there was
    assert slow.notes == fast.notes == ["Further solutions are not drawn, to keep the page small."]


def test_one_damaged_solve_does_not_hide_the_others(tmp_path):
    write_h5(tmp_path / "good.h5")
    (tmp_path / "bad.h5").write_bytes(b"no HDF5")
    bad, good = draw_all({"x": tmp_path / "bad.h5", "y": tmp_path / "good.h5"}, Budget())
    assert bad.figures == []
    assert "cannot be drawn: h5parm" in bad.notes[0]
    assert len(good.figures) == 4


def test_images_are_taken_from_their_folder(tmp_path):
    measures = {"peak_jy": 3.0, "noise_jy": 0.1, "dynamic_range": 30.0}
    found = {"problem": None, "images": {"before-clean.fits": measures}, "scale_arcsec": 2.5, "size_pixels": 64}
    found |= {"n_chunks": 3, "pictures": [880, 400]}
    (tmp_path / "image.json").write_text(json.dumps(found))
    figure, facts = image_figure(tmp_path, "a")
    assert figure is None
    assert "cannot be read" in facts["problem"]
    for name in ("images.png", "images-dark.png"):
        (tmp_path / name).write_bytes(name.encode())
    figure, facts = image_figure(tmp_path, "a")
    assert (figure.picture.light, figure.picture.dark) == (b"images.png", b"images-dark.png")
    assert facts == found
    assert "before-clean 30" in figure.alt
    assert "64 pixels of 2.5 arcsec, from 3 chunk(s)" in figure.caption


def test_why_there_are_no_images(tmp_path):
    (tmp_path / "image.json").write_text(json.dumps({"problem": "no wsclean", "images": {}}))
    assert image_figure(tmp_path, "a") == (None, {"problem": "no wsclean", "images": {}})


def test_slots_of_several_hosts_are_told_apart():
    tasks = [Task("a", "apply", host, "0", 10.0, 20.0, 1, 1) for host in ("h1", "h2")]
    assert "2 DP3 runs on 2 slots" in gantt_figure(tasks, Clock.of(tasks)).alt
