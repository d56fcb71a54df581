"""Quick-look images: what is measured, and that a missing or failing WSClean is no more than a line."""

import hashlib
import json
import shutil

import numpy as np
import pytest

import tiny_ms
from chunkcal.image import auto_scale_arcsec, make_images, measure
from sky_image import write_image

SETTINGS = {"command": "wsclean", "size_pixels": 64, "scale_arcsec": "auto", "n_iterations": 200}
SETTINGS |= {"weighting": "natural", "extra_arguments": []}


def test_measures_of_a_known_image(tmp_path):
    found = measure(write_image(tmp_path / "a.fits"))
    assert found["peak_jy"] == 5.0
    assert found["noise_jy"] == pytest.approx(0.1, rel=0.05)
    assert found["dynamic_range"] == pytest.approx(50, rel=0.05)
    assert found["beam_arcsec"] == pytest.approx([20, 10])
    assert found["beam_angle_deg"] == 30.0


def test_scale_is_a_quarter_of_the_resolution():
    # Ten stations close to each other and one far away: baselines to it are fewer than a quarter.
    positions = np.array([[0.0, 1000.0 * i, 0.0] for i in range(10)] + [[1e6, 0.0, 0.0]])
    lengths = [1000.0 * (j - i) for i in range(10) for j in range(i + 1, 10)] + [1e6] * 10
    expected = np.degrees(2.0 / np.percentile(lengths, 75)) * 3600 / 4
    assert auto_scale_arcsec(positions, 299_792_458.0 / 2.0) == pytest.approx(expected, rel=5e-3)


def test_without_wsclean_there_is_one_line(tmp_path):
    problem = make_images(["x.ms"], [], tmp_path / "image", SETTINGS | {"command": "no-such-wsclean"})
    assert problem.startswith("no quick-look image: 'no-such-wsclean' is not found; install WSClean")
    assert "\n" not in problem
    assert json.loads((tmp_path / "image/image.json").read_text()) == {"images": {}, "problem": problem}
    assert [path.name for path in tmp_path.iterdir()] == ["image"]


def test_a_failing_wsclean_is_one_line_with_its_words(tmp_path):
    tiny_ms.make_ms(tmp_path / "a.ms")
    command = ["sh", "-c", "echo Working; echo 'std::runtime_error: disk full'; echo bye; exit 7"]
    problem = make_images([tmp_path / "a.ms"], [], tmp_path / "image", SETTINGS | {"command": command})
    assert problem == "no quick-look image: WSClean ended with exit status 7: std::runtime_error: disk full"
    assert sorted(path.name for path in (tmp_path / "image").iterdir()) == ["image.json"]


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_wsclean_images_chunks_and_leaves_them_as_they_are(tmp_path):
    assert shutil.which("wsclean"), "the tests need WSClean: apt-get install wsclean"
    chunks = [tiny_ms.make_ms(tmp_path / f"t{i}.ms", n_stations=8, n_slots=6, noise=1.0, seed=i + 1) for i in (0, 1)]
    good = np.broadcast_to(np.eye(2), (6, 8, 4, 2, 2))
    clean = [tiny_ms.make_ms(tmp_path / f"c{i}.ms", n_stations=8, n_slots=6, jones=good, seed=i + 1) for i in (0, 1)]
    before = [digest(path) for path in (*chunks, *clean)]
    assert make_images(chunks, clean, tmp_path / "image", SETTINGS, 1) is None
    assert [digest(path) for path in (*chunks, *clean)] == before
    found = json.loads((tmp_path / "image/image.json").read_text())
    assert found["n_chunks"] == 2
    assert "WSClean version" in found["wsclean"]
    assert found["images"]["after-clean.fits"]["peak_jy"] == pytest.approx(tiny_ms.FLUX, rel=0.05)
    assert found["images"]["after-clean.fits"]["dynamic_range"] > found["images"]["before-clean.fits"]["dynamic_range"]
    names = {f"{when}-{kind}.fits" for when in ("before", "after") for kind in ("dirty", "clean")}
    assert {p.name for p in (tmp_path / "image").iterdir()} == names | {"image.json", "images.png", "images-dark.png"}
