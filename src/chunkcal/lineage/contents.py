"""Digests of what a product holds, not of its files: they stay the same when the same run of DP3 is done again.

The files themselves never do: casacore and HDF5 leave padding and times of the clock in them.

XXH3, 128 bits: it tells whether bits are the same, at sixteen times the speed of BLAKE2b. It is no proof against
somebody who wants two products to look the same; the SHA-256 of inputs and products in the provenance is.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import h5py
import numpy as np
import xxhash

ALGORITHM = "xxh3_128"
_UNNAMED = "blake2b"  # of digests without a name: those of the first provenance files
_ALGORITHMS: dict[str, Callable[[], Any]] = {
    ALGORITHM: xxhash.xxh3_128,
    _UNNAMED: partial(hashlib.blake2b, digest_size=16),
}
_BLOCK_BYTES = 512 << 10  # of a column in memory at a time: hashed while still in the cache, half the CPU time of 32 MB


def algorithm_of(digest: str) -> str:
    """Name the algorithm that a digest was made with, for `of_ms` and `of_h5parm` to make one to compare with."""
    return digest.partition(":")[0] if ":" in digest else _UNNAMED


def of_ms(path: str | os.PathLike, algorithm: str = ALGORITHM) -> dict[str, str]:
    """Digest each column of a MeasurementSet's main table.

    Parameters
    ----------
    path
        The MeasurementSet. Columns without values, such as FLAG_CATEGORY, are left out.
    algorithm
        Only for a comparison with older digests, see `algorithm_of`.

    Returns
    -------
    dict
        Digest, ``xxh3_128:`` and hexadecimal digits, by name of the column: of its type, the shape of its first cell,
        and its values in the order of rows, (row, channel, correlation) for visibilities.

    Raises
    ------
    ProductError
        The MeasurementSet cannot be read.
    """
    from chunkcal.products import opened  # casacore is slow to import, and h5parms have no use for it

    with opened(path) as table:
        names = [name for name in sorted(table.colnames()) if _has_values(table, name)]
        return {name: _of_column(table, name, algorithm) for name in names}


def _has_values(table: Any, name: str) -> bool:
    return table.isscalarcol(name) or (table.nrows() > 0 and table.iscelldefined(name, 0))


def _of_column(table: Any, name: str, algorithm: str) -> str:
    whole = _ALGORITHMS[algorithm]()
    n_rows = int(table.nrows())
    first = np.asarray(table.getcell(name, 0)) if n_rows else np.empty(0)
    whole.update(f"{first.dtype.str if first.dtype.kind not in 'OU' else 'text'} {first.shape}\n".encode())
    step = max(1, _BLOCK_BYTES // max(1, first.nbytes))
    for start in range(0, n_rows, step):
        _update(whole, table.getcol(name, start, min(step, n_rows - start)))
    return _text(whole, algorithm)


def of_h5parm(path: str | os.PathLike, algorithm: str = ALGORITHM) -> dict[str, str]:
    """Digest each dataset of an h5parm, and the AXES of those that have them.

    Returns
    -------
    dict
        Digest, as of `of_ms`, by path of the dataset, ``sol000/phase000/val``. HISTORY is not part of it.
    """
    found: dict[str, str] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            whole = _ALGORITHMS[algorithm]()
            whole.update(f"{item.dtype.str} {item.shape} {item.attrs.get('AXES', b'')!r}\n".encode())
            _update(whole, item[()])
            found[name] = _text(whole, algorithm)

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def _text(whole: Any, algorithm: str) -> str:
    return whole.hexdigest() if algorithm == _UNNAMED else f"{algorithm}:{whole.hexdigest()}"


def _update(whole: Any, values: Any) -> None:
    """Add values, bit for bit; texts, of which numpy holds only pointers, as text."""
    array = np.ascontiguousarray(values)
    if array.dtype.kind in "OU":
        whole.update(repr(array.tolist()).encode("utf-8", "surrogateescape"))
    else:
        whole.update(array.view(np.uint8) if array.dtype.kind != "V" else array.tobytes())
