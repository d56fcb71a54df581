"""Merges the h5parms of frequency bands into one along frequency, and proves that no frequency occurs twice.

For observations that are split in bands: each is calibrated by itself and has its chunks merged along time first.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np

from chunkcal.errors import UserError
from chunkcal.solutions.h5layout import Layout, Member, copy_solutions, create_like, tables_of, written
from chunkcal.solutions.h5parm import FREQUENCY_TOLERANCE_HZ, check, describe, opened

# One value of these stands for all frequencies, so values of several bands contradict each other.
_FITTED_OVER_FREQUENCY = ("tec", "clock", "delay", "rotationmeasure", "error")
_GAP = 1.5  # solution spacings: neighbours farther apart than this have something missing between them


@dataclass(frozen=True)
class _Band:
    path: str | os.PathLike
    frequencies: np.ndarray  # (n_freq,) Hz

    @property
    def spacing(self) -> float:
        """Least distance of its solutions, Hz; infinite if there is one only."""
        return float(np.diff(self.frequencies).min()) if len(self.frequencies) > 1 else np.inf


def merge_bands(bands: Sequence[str | os.PathLike], out: str | os.PathLike) -> dict:
    """Merge the h5parms of bands with the same times along frequency into one.

    All but `val`, `weight` and `freq` is that of the lowest band; antennas, directions and polarizations of the others
    are put into its order by name. One table of one band is in memory at a time, and the same bands give the same
    bytes in whatever order they are given.

    Bands need not be adjacent, because an observation may well lack some of its subbands. Nothing is invented there:
    the frequency axis jumps, as in an h5parm of one solve over data with these subbands missing. Applycal gives a
    channel in such a gap the solutions of the nearest frequency, or interpolates between the two at the gap's edges,
    according to its `interpolation`; so data of a missing subband, should there be any, are corrected, not flagged.
    The history and the result name the gaps.

    Parameters
    ----------
    bands : sequence of path
        In any order.
    out : path
        Written under a temporary name beside it and renamed when complete.

    Returns
    -------
    dict
        As `check` of the merged file, and `gaps_hz`: the frequencies on both sides of each gap between bands that is
        wider than 1.5 solution spacings. Bands with one solution each have no spacing but the one between them, so the
        narrowest of these counts.

    Raises
    ------
    UserError
        Naming file and frequency: bands overlap or are given twice, or frequencies do not increase within one. Naming
        the file: its times, antennas, directions, polarizations or tables are not those of the lowest band, or a
        table (TEC, delay, rotation measure) has no solutions along frequency.
    """
    if not bands:
        raise UserError(f"no bands to merge into {out}; give at least one h5parm")
    parts = sorted((_band(path) for path in bands), key=lambda band: band.frequencies[0])
    for below, above in zip(parts, parts[1:], strict=False):
        _refuse_overlap(below, above)
    frequencies = np.concatenate([band.frequencies for band in parts])
    gaps = _gaps(parts)
    note = f"merged along frequency from {len(parts)} bands by chunkcal"
    if gaps:
        note += "; nothing between " + ", ".join(f"{low:.0f} and {high:.0f} Hz" for low, high in gaps)
    with written(out, sum(os.path.getsize(path) for path in bands)) as temporary:
        with h5py.File(temporary, "w", locking=False) as merged, opened(parts[0].path) as reference:
            create_like(reference, merged, "freq", len(frequencies), note)
            layout = Layout.of(reference)
            first = 0
            for band in parts:
                member = Member(band.path, "bands", "give bands of one observation and one solve")
                with opened(band.path) as file:
                    copy_solutions(file, member, layout, merged, "freq", first)
                first += len(band.frequencies)
            for solset in merged.values():
                for group in tables_of(solset):
                    group["freq"][:] = frequencies
        summary = check(temporary)
    return summary | {"gaps_hz": gaps}


def _band(path: str | os.PathLike) -> _Band:
    """Read the frequencies that all tables of a band share."""
    frequencies: np.ndarray | None = None
    for solset, tables in describe(path).solsets.items():
        for table in tables:
            where = f"h5parm {path}, table {solset}/{table.name}"
            if "freq" not in table.axes or table.kind in _FITTED_OVER_FREQUENCY:
                raise UserError(
                    f"{where} ({table.kind}) has no solutions along frequency, so bands of it cannot be merged;"
                    " solve over all bands at once"
                )
            with opened(path) as file:
                own = file[solset][table.name]["freq"][:].astype(float)
            if frequencies is not None and not np.array_equal(own, frequencies):
                raise UserError(f"{where} has other frequencies than the tables before it; give one solve's solutions")
            bad = ~(np.diff(own, prepend=-np.inf) > FREQUENCY_TOLERANCE_HZ) | ~np.isfinite(own)
            if len(own) == 0 or bad.any():
                at = f"at {own[np.argmax(bad)]:.3f} Hz" if len(own) else "anywhere"
                raise UserError(f"{where}: frequency does not increase {at}; make the file again")
            frequencies = own
    return _Band(path, frequencies)


def _refuse_overlap(below: _Band, above: _Band) -> None:
    """Refuse bands that share a frequency, interleave, or whose solutions lie closer than half their spacing."""
    distance = above.frequencies[0] - below.frequencies[-1]
    spacing = min(below.spacing, above.spacing)
    if distance > max(FREQUENCY_TOLERANCE_HZ, 0.5 * spacing if np.isfinite(spacing) else 0):
        return
    nearest = np.abs(above.frequencies[:, None] - below.frequencies).min(axis=1)
    both = above.frequencies[nearest <= FREQUENCY_TOLERANCE_HZ]
    if len(both):
        reason = f"both hold solutions at {both[0]:.3f} Hz"
    else:
        reason = f"overlap: {below.frequencies[-1]:.3f} Hz of the first and {above.frequencies[0]:.3f} Hz of the second"
    raise UserError(f"h5parms {below.path} and {above.path} {reason}; leave out one of them or solve that band again")


def _gaps(parts: Sequence[_Band]) -> list[tuple[float, float]]:
    """Frequencies on both sides of each gap between bands, Hz."""
    edges = [(float(a.frequencies[-1]), float(b.frequencies[0])) for a, b in zip(parts, parts[1:], strict=False)]
    distances = [high - low for low, high in edges]
    within = [band.spacing for band in parts if np.isfinite(band.spacing)]
    spacing = max(within) if within else min(distances, default=0.0)
    return [edge for edge, distance in zip(edges, distances, strict=True) if distance > _GAP * spacing]
