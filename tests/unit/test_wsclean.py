"""WSClean's command line."""

import pytest

from chunkcal import wsclean

SETTINGS = {"size_pixels": 256, "n_iterations": 50, "weighting": "briggs -0.5", "extra_arguments": ["-maxw", "90"]}


def test_arguments():
    assert wsclean.arguments(["run", "wsclean"], SETTINGS, ["/a/t0000.ms", "/a/t0001.ms"], "after", 2.5, 3) == [
        *("run", "wsclean", "-name", "after", "-size", "256", "256", "-scale", "2.5asec"),
        *("-niter", "50", "-mgain", "0.8", "-auto-threshold", "4", "-weight", "briggs", "-0.5"),
        *("-pol", "I", "-data-column", "DATA", "-maxuv-l", "41253.0"),  # 1 / (2 * 2.5 arcsec)
        *("-no-update-model-required", "-reorder", "-temp-dir", ".", "-j", "3", "-mem", "40", "-maxw", "90"),
        *("/a/t0000.ms", "/a/t0001.ms"),
    ]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sh -c 'a b'", ["sh", "-c", "a b"]),
        (["sh", "x y"], ["sh", "x y"]),
        ("no-such-program-1", None),
        ("sh 'x", None),
        ([], None),
    ],
)
def test_find(command, words):
    assert wsclean.find(command) == words
