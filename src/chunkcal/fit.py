"""How well the data of a chunk fit the sky model, before and after calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from casacore.tables import table


def measure_fit(raw: Path, corrected: Path, model: Path, residual: Path | None = None) -> dict[str, Any]:
    """Compare two MeasurementSets with the model visibilities of their first time slots.

    Parameters
    ----------
    raw, corrected
        A chunk before and after the solutions were applied; both have the same rows.
    model
        The model visibilities in DATA, for the first rows of the chunk, in the same order.
    residual
        With direction-dependent solutions: what remains of these rows when the model, as the solutions corrupt it, is
        subtracted; it then takes the place of `corrected` minus `model`.

    Returns
    -------
    dict
        ``rms_raw_jy`` and ``rms_corrected_jy``: root mean square of abs(data - model) over the parallel-hand
        cross-correlations that neither MS flags; ``rms_model_jy``; ``factor``, the ratio of the first two (None when
        everything is flagged); ``n_visibilities`` that went into them; ``n_rows``.
    """
    sums = np.zeros(3)
    count = 0
    with _open(raw) as raw_ms, _open(residual or corrected) as corrected_ms, _open(model) as model_ms:
        n_rows = model_ms.nrows()
        block = max(1, (1 << 22) // max(1, model_ms.getcell("DATA", 0).size)) if n_rows else 1
        for start in range(0, n_rows, block):
            rows = (start, min(block, n_rows - start))
            cross = model_ms.getcol("ANTENNA1", *rows) != model_ms.getcol("ANTENNA2", *rows)
            good = ~(raw_ms.getcol("FLAG", *rows) | corrected_ms.getcol("FLAG", *rows))[cross][..., _PARALLEL]
            before, after, model_data = (
                ms.getcol("DATA", *rows)[cross][..., _PARALLEL] for ms in (raw_ms, corrected_ms, model_ms)
            )
            left = after if residual else after - model_data
            sums += [
                np.sum(np.abs(data[good].astype(complex)) ** 2) for data in (before - model_data, left, model_data)
            ]
            count += int(good.sum())
    rms = np.sqrt(sums / count) if count else np.full(3, np.nan)
    values = [float(value) if np.isfinite(value) else None for value in rms]
    return {
        "rms_raw_jy": values[0],
        "rms_corrected_jy": values[1],
        "rms_model_jy": values[2],
        "factor": values[0] / values[1] if values[0] is not None and values[1] else None,
        "n_visibilities": count,
        "n_rows": n_rows,
    }


# First and last correlation: XX and YY, RR and LL, or the only one there is.
_PARALLEL = [0, -1]


def _open(path: Path) -> table:
    return table(str(path), ack=False, lockoptions="usernoread")
