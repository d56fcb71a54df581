from pathlib import Path

import pytest

import tiny_ms
from chunkcal.errors import UserError
from chunkcal.planning.skymodel import read_patches

LOFAR = Path(__file__).parents[2].parent / "shared" / "data" / "tNDPPP-generic-skymodel.txt"
HEAD = "FORMAT = Name, Type, Patch, Ra, Dec, I, SpectralIndex='[]', LogarithmicSI, ReferenceFrequency='1.5e8'\n"
PATCH = ", , p1, 12:34:56.7, +52.00.00\n"
SOURCE = "s1, POINT, p1, 12:34:56.7, +52.00.00, 3.5, [-0.7, 0.1], true, 1.5e8\n"


def write(folder, text):
    path = folder / "a.skymodel"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "patches", "n_sources"),
    [
        (HEAD + PATCH + SOURCE, ("p1",), 1),
        (HEAD.lower() + "\n# a comment\n" + PATCH + "  # another, one\n" + SOURCE, ("p1",), 1),
        # An own patch for each source that names none.
        (
            "FORMAT = Name, Type, Ra, Dec, I\nb, POINT, 1:2:3, -0.30.00, 1\na, GAUSSIAN, 1h2m3s, -4d5m6.7s, 1\n",
            ("b", "a"),
            2,
        ),
        # The default format, and angles with a unit.
        ("x, POINT, 188.5deg, 0.9rad, 1.0\n", ("x",), 1),
        ("# (Name, Type, Ra, Dec, I) = format\ns, POINT, 1:2:3, +1.2.3, 2\n", ("s",), 1),
        ("format=Name Ra Dec I\ns 1:2:3 +1.2.3 2\n", ("s",), 1),
        ("FORMAT = Name, Patch=fixed'p', Ra, Dec\n,1:2:3,+1.2.3\ns,1:2:3,+1.2.3\n", ("p",), 1),
        (HEAD + ", , 'p 1', 1:2:3, +1.2.3\ns, , 'p 1', 1:2:3, +1.2.3,\r\n", ("p 1",), 1),
        # As WSClean writes it.
        (
            "Format = Name, Type, Ra, Dec, I, SpectralIndex, LogarithmicSI, ReferenceFrequency='1.2e8', MajorAxis\n"
            "s0c0,POINT,08:19:37.88,-48.13.42.5,1e-3,[-0.1,0.2],false,1.2e8,\n",
            ("s0c0",),
            1,
        ),
    ],
)
def test_reads(tmp_path, text, patches, n_sources):
    model = read_patches(write(tmp_path, text))
    assert (model.patches, model.n_sources) == (patches, n_sources)


def test_reads_what_the_tests_write(tmp_path):
    assert read_patches(tiny_ms.write_sky_model(tmp_path / "sky.txt", n_patches=3)).patches == ("p0", "p1", "p2")


@pytest.mark.skipif(not LOFAR.exists(), reason="no shared data")
def test_reads_the_real_one():
    model = read_patches(LOFAR)
    assert (len(model.patches), model.n_sources, model.patches[0]) == (13, 13, "0002.2+3139")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("garbage\n", "Ra ''"),
        ("one two three four\n", "Ra ''"),
        ("s2, POINT, p1, 12:34, +52.00.00, 3.5\n", "Ra '12:34'"),
        ("s2, POINT, p1, 12:34:56, 52:00:00, 3.5\n", "Dec '52:00:00'"),
        ("s2, STAR, p1, 12:34:56, +52.00.00, 3.5\n", "'STAR' is no source type"),
        ("s2, POINT, p1, 12:34:56, +52.00.00, bright\n", "i 'bright' is not a number"),
        ("s2, POINT, p1, 12:34:56, +52.00.00, nan\n", "i 'nan' is not a number"),
        ("s2, POINT, p1, 12:34:56, +52.00.00, 1, [-0.7, x]\n", "SpectralIndex"),
        ("s2, POINT, p1, 12:34:56, +52.00.00, 1, [-0.7\n", "not closed"),
        ("s2, POINT, p1, 12:34:56, +52.00.00, 1, [], maybe\n", "neither true nor false"),
        ("s2, POINT, p1, 12:34:56, +52.00.00, 1, [], true, 1e8, 7\n", "1e8, 7"),
        ("s2, POINT, p2, 12:34:56, +52.00.00, 1\n", "p2 is used before it is defined"),
        ("s1, POINT, p1, 12:34:56, +52.00.00, 1\n", "line 3 already"),
        (", , p1, 1:2:3, +1.2.3\n", "defined twice"),
        (", , , 1:2:3, +1.2.3\n", "neither a source name nor a patch name"),
        (", , p*, 1:2:3, +1.2.3\n", "cannot be the name of a patch"),
    ],
)
def test_a_line_that_cannot_be_meant(tmp_path, line, words):
    with pytest.raises(UserError) as caught:
        read_patches(write(tmp_path, HEAD + PATCH + SOURCE + line))
    assert "line 4" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no source"),
        (HEAD + PATCH, "no source"),
        (HEAD + PATCH + ", , p2, 1:2:3, +1.2.3\n" + SOURCE, "patch p2 has no source"),
        ("FORMAT = Name, Type, I\ns, POINT, 1\n", "lacks Name, Ra or Dec"),
        ("FORMAT = Name, Ra, Dec, I='1\ns,1:2:3,+1.2.3\n", "the format cannot be read"),
        ("FORMAT = Name, Ra, Dec, SpectralIndex\ns, 1:2:3, +1.2.3, [-0.7]\n", "no ReferenceFrequency"),
    ],
)
def test_a_model_that_cannot_be_meant(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        read_patches(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path):
    binary = tmp_path / "b.skymodel"
    binary.write_bytes(b"\x89HDF\r\n\xff\xfe")
    for path in (tmp_path / "none.txt", binary, tmp_path, tmp_path / "\0", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match="cannot be read"):
            read_patches(path)
