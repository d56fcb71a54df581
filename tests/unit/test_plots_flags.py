"""Pictures of flags show the fractions that were counted."""

import io

import numpy as np
from PIL import Image

from chunkcal import plots
from chunkcal.flagging.flags import Flags
from flag_counts import flag_counts

STATIONS = ["a", "b", "c"]


def flags_of(*fractions):
    flags = Flags()
    for i, fraction in enumerate(fractions):
        flags.add(flag_counts(fraction, dict.fromkeys(STATIONS, fraction), start=1000 + 40.0 * i)["counts"])
    return flags


def most_common(png, box):
    image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    height, width = image.shape[:2]
    part = image[int(box[1] * height) : int(box[3] * height), int(box[0] * width) : int(box[2] * width)].reshape(-1, 3)
    colours, counts = np.unique(part, axis=0, return_counts=True)
    return colours[np.argmax(counts)].astype(int)


def test_waterfall_goes_from_dark_blue_to_yellow():
    span = plots.Span(1000, 1080)
    picture = plots.draw_flag_waterfalls({"raw": flags_of(0.0, 1.0)}, span)
    none, all_ = most_common(picture.light, (0.1, 0.2, 0.45, 0.7)), most_common(picture.light, (0.55, 0.2, 0.8, 0.7))
    assert none[2] > none[0]  # blue
    assert all_[0] > 200
    assert all_[2] < 100  # yellow


def test_a_gap_is_grey():
    flags = flags_of(0.5)
    flags.add(flag_counts(0.5, {}, start=1080.0)["counts"])
    picture = plots.draw_flag_waterfalls({"raw": flags}, plots.Span(1000, 1120))
    grey = most_common(picture.light, (0.42, 0.2, 0.55, 0.7))
    assert "#{:02x}{:02x}{:02x}".format(*grey) == plots.LIGHT.gap


def test_bars_have_one_series_for_each_stage():
    span = plots.Span(1000, 1040)
    one = plots.draw_flag_bars({"raw": flags_of(0.25)}, STATIONS, span)
    three = plots.draw_flag_bars(dict.fromkeys(("raw", "preprocess", "apply"), flags_of(0.25)), STATIONS, span)
    colours = {tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in plots.LIGHT.series[:2]}

    def found(png):
        image = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
        return colours & {tuple(int(v) for v in colour) for colour in np.unique(image, axis=0)}

    assert found(one.light) == set()
    assert found(three.light) == colours
    long = plots.draw_flag_bars({"raw": flags_of(0.25)}, ["a long name 14"], span)
    assert long.height > one.height
