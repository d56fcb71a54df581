"""The figures of the quality gate and the values at which each becomes a warning or a failure."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chunkcal.errors import UserError

VERDICTS = ("pass", "warn", "fail")  # from good to bad


@dataclass(frozen=True)
class Limit:
    """Where a figure stops being good.

    Attributes
    ----------
    warn, fail : float or None
        The figure may be as large as this; None: it never warns or never fails.
    unit : str
        "" for a plain number or fraction.
    is_minimum : bool
        The figure must be at least as large, instead of at most.
    """

    warn: float | None
    fail: float | None
    unit: str = ""
    is_minimum: bool = False

    def verdict(self, value: float) -> str:
        """Judge a value; one that is not finite passes no limit."""
        for verdict, limit in (("fail", self.fail), ("warn", self.warn)):
            if limit is not None and not (value >= limit if self.is_minimum else value <= limit):
                return verdict
        return "pass"


# A failure stops an observation, so by default only what makes solutions worthless fails; what one should look at
# warns. The phase of a LOFAR station may turn by radians from one solution to the next and be right.
DEFAULTS: dict[str, Limit] = {
    # A solve that stops at `maxiter` is often still good: of simulated gains solved per channel with 100 iterations, a
    # third of the intervals converged in the worst case, and the noise was that of the data.
    "converged_fraction": Limit(0.25, None, is_minimum=True),
    # Any chunk that failed is worth a look; with a third of the time lost, better run again.
    "failed_fraction": Limit(0.0, 0.3),
    # One dead station is common at LOFAR and harmless if one knows of it; an array that is half dead is not.
    "dead_station_fraction": Limit(0.0, 0.5),
    # The worst station that is alive. LOFAR and MeerKAT lose 5 to 15 % of the data to interference, solutions less.
    "flagged_fraction": Limit(0.3, None),
    "array_flagged_fraction": Limit(0.3, 0.7),
    # A phase that has nothing to do with its neighbours scatters by 1.4826 (pi / 2) / sqrt(2) = 1.65 rad in this
    # measure; if that is true of all stations, so does the median station, by 1.4 (simulated). The worst station may
    # do so where the interval is too long for its ionosphere; the median one may not.
    "phase_noise_rad": Limit(1.35, None, "rad"),
    "array_phase_noise_rad": Limit(1.1, 1.3, "rad"),
    # Amplitudes of pure noise are Rayleigh distributed; their logarithms scatter by 1.4826 (ln 3 / 2) / sqrt(2) = 0.58.
    "amplitude_noise": Limit(0.4, None),
    "array_amplitude_noise": Limit(0.3, 0.5),
    # Rotations repeat after pi, so that they scatter by half of what phases do.
    "rotation_noise_rad": Limit(0.68, None, "rad"),
    "array_rotation_noise_rad": Limit(0.55, 0.65, "rad"),
    # How well these can be told depends on frequency, bandwidth and array too much for a limit that fits all: given,
    # not judged. The phase that a TEC amounts to is.
    "tec_noise_tecu": Limit(None, None, "TECU"),
    "array_tec_noise_tecu": Limit(None, None, "TECU"),
    "rotationmeasure_noise_rad_m2": Limit(None, None, "rad/m2"),
    "array_rotationmeasure_noise_rad_m2": Limit(None, None, "rad/m2"),
    "delay_noise_s": Limit(None, None, "s"),
    "array_delay_noise_s": Limit(None, None, "s"),
    # Largest jump at a seam in units of the station's ordinary steps. Ten thousand Gaussian ones reach 4, and the
    # ionosphere has longer tails. A solve that is chunked exactly has no seams, so 20 is a fault of ours.
    "seam_jump": Limit(8.0, 20.0, "ordinary steps"),
    # Median jump over all seams and stations against the median ordinary step, 1 without seams.
    "seam_ratio": Limit(3.0, 6.0),
    # Noise of a chunk against the others, as a robust z: 5.5 is a noise 4 times as large where chunks are alike, 12
    # is 20 times. Clean synthetic gains reach 2, DP3's solves of simulated data 3, and 5 if
    # the mode does not fit the gains.
    "chunk_noise": Limit(5.5, 12.0, "sigma"),
    # Flagged fraction of a chunk minus that of the median of the others.
    "chunk_flagged": Limit(0.5, None),
    # Over an observation MeerKAT's amplitudes are stable to some per cent, LOFAR's to 10 or 20 % once the beam is
    # taken out; the part that stations have in common does not count.
    "amplitude_drift": Limit(0.25, 0.75),
}


def limits_from(given: Mapping[str, Any]) -> dict[str, Limit]:
    """Put the limits of the configuration in place of the defaults.

    Parameters
    ----------
    given
        ``{figure: {"warn": x, "fail": y}}``, each a number or None; what is left out keeps its default.

    Raises
    ------
    UserError
        There is no such figure or key, a limit is no number, or `fail` is stricter than `warn`.
    """
    limits = dict(DEFAULTS)
    for name, values in given.items():
        if name not in DEFAULTS:
            near = difflib.get_close_matches(name, DEFAULTS, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(DEFAULTS)}"
            raise UserError(f"quality.limits: there is no figure {name!r}; {hint}")
        default = DEFAULTS[name]
        if not isinstance(values, Mapping) or not set(values) <= {"warn", "fail"}:
            raise UserError(f"quality.limits.{name} is {values!r}; write {{warn: number, fail: number}}")
        warn, fail = (
            _number(values[key], f"{name}.{key}") if key in values else getattr(default, key)
            for key in ("warn", "fail")
        )
        if warn is not None and fail is not None and (fail > warn if default.is_minimum else fail < warn):
            raise UserError(
                f"quality.limits.{name}: fail ({fail:g}) is stricter than warn ({warn:g}); give both, in order"
            )
        limits[name] = Limit(warn, fail, default.unit, default.is_minimum)
    return limits


def _number(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"quality.limits.{where} is {value!r}; give a number, or null for no limit")
    return float(value)
