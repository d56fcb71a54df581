"""A drawn page as PNG with a palette, and the same page in the colours of another theme.

Drawing takes most of a report's time, so a page is drawn once, for light pages; for dark ones its palette is changed.
"""

from __future__ import annotations

import io
import zlib

import numpy as np
from PIL import Image

_GROUNDS = 4  # of the named colours, the first: page, panel, gap and line meet values, text is not written on them
_COMMON = 96  # colours besides those that are kept; a palette makes the page a third of the size
_NEAR = 6  # of 255
_SAME = 3  # of 255, Euclidean: what is farther from all levels of a colour map is no value but an edge


def to_palette(rgba: np.ndarray, named: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a page to few colours, among them those that mean something, however little they are used.

    Parameters
    ----------
    rgba : (height, width, 4) uint8
        Contiguous; the last is not used.
    named : (n_named, 3) int
        Colours of the theme, kept.
    levels : (n_levels, 3) int
        Colours of the colour map, kept as well.

    Returns
    -------
    indices : (height, width) uint8
    palette : (n, 3) int
        First `named`, then `levels`, then others.
    """
    codes = rgba.view("<u4")[..., 0] & 0xFFFFFF
    # A table of all colours that there are is faster than sorting the pixels.
    table = np.zeros(1 << 24, np.uint8)
    table[codes] = 1
    found = np.flatnonzero(table.view(bool))
    colours = np.stack([found & 255, found >> 8 & 255, found >> 16], axis=1)
    is_value = np.zeros(len(colours), bool)
    value = np.zeros(len(colours), int)
    if len(levels):
        value, distance = _nearest(colours, levels)
        is_value = distance <= _SAME
    others = colours[~is_value].astype(np.uint8)[None]
    common = np.empty((0, 3), int)
    if others.size:
        n = min(_COMMON, 256 - len(named) - len(levels))
        common = np.array(Image.fromarray(others).quantize(n, dither=Image.Dither.NONE).getpalette()).reshape(-1, 3)[:n]
        # A mean of many near-whites must not win over the page's white.
        common = common[np.abs(common[:, None] - named).max(axis=2).min(axis=1) > _NEAR]
    other, _ = _nearest(colours, np.concatenate([named, common]))
    other[other >= len(named)] += len(levels)
    table[found] = np.where(is_value, len(named) + value, other)
    return table[codes], np.concatenate([named, levels, common])


def _nearest(colours: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest of a palette for each colour: its index, and its Euclidean distance."""
    a, b = colours.astype(np.float32), palette.astype(np.float32)
    squares = (a**2).sum(axis=1)[:, None] - 2 * (a @ b.T) + (b**2).sum(axis=1)
    index = squares.argmin(axis=1)
    return index, np.sqrt(np.maximum(0, squares[np.arange(len(a)), index]))


def in_other_colours(palette: np.ndarray, named: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Translate a palette of `to_palette` for another theme.

    Values keep their colour. All that has no name is the edge of something, smoothed or half transparent: a mixture of
    two colours that have one, and becomes the same mixture of what these are in the other theme.

    Parameters
    ----------
    palette : (n, 3) int
    named : (n_named, 3) int
        Colours of the other theme, in the order of those that begin the palette.
    levels : (n_levels, 3) int
        Colours of the colour map, which follow them.

    Returns
    -------
    (n, 3) int
    """
    n_named, n_kept = len(named), len(named) + len(levels)
    before, after = palette[:n_kept], np.concatenate([named, levels])
    i, j = np.triu_indices(n_named, 1, n_kept)  # two of the theme, or one of its grounds and lines and a value
    possible = (j < n_named) | (i < _GROUNDS)
    i, j = i[possible], j[possible]
    start, along = before[i].astype(float), (before[j] - before[i]).astype(float)
    offset = palette[n_kept:, None] - start
    part = np.clip((offset * along).sum(axis=2) / np.maximum(1, (along**2).sum(axis=1)), 0, 1)
    best = ((offset - part[..., None] * along) ** 2).sum(axis=2).argmin(axis=1)
    share = part[np.arange(len(best)), best][:, None]
    mixed = (1 - share) * after[i[best]] + share * after[j[best]]
    return np.concatenate([after, np.rint(mixed).astype(int)])


def with_palette(png: bytes, palette: np.ndarray) -> bytes:
    """Put another palette, of the same length, into a PNG of `encode`: the pixels need not be compressed again."""
    start = png.index(b"PLTE")
    chunk = b"PLTE" + palette.astype(np.uint8).tobytes()
    end = start + len(chunk)
    return png[:start] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + png[end + 4 :]


def encode(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Write a PNG of a (height, width) page and its palette, (n, 3).

    Compressed less than Pillow does by itself: half the time for 7 % more bytes.
    """
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.astype(np.uint8).tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=4)
    return stream.getvalue()
