"""What a worker does between DP3's exit status 0 and the rename: look at what there really is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chunkcal import products
from chunkcal.fit import measure_fit
from chunkcal.lineage import contents
from chunkcal.products import ProductError

__all__ = ["ProductError", "verify_product"]


def verify_product(
    work: Path,
    run: Mapping[str, Any],
    expect: Mapping[str, Any],
    digests: bool | str = True,
    has_data: bool | None = None,
) -> dict[str, Any]:
    """Verify the product of one DP3 run in its work folder.

    Parameters
    ----------
    work
        Folder that DP3 ran in; ``in.ms`` in it is the input.
    run
        DP3 run as data; ``product`` names what it made.
    expect
        As `chunkcal.planning.requests.chunk_request` gives it. A product of the kind ``fit`` is made here, from the
        model visibilities that DP3 has written.
    digests
        Whether to digest what the product holds; the name of an algorithm of `contents` chooses that one.
    has_data
        Of h5parms, whether unflagged visibilities went in; if it is not known, the input is looked at.

    Returns
    -------
    dict
        What was found, for the record. For an ms, ``flagged_before`` and ``flagged_after`` as
        `products.flag_fractions`, ``digest`` as `contents.of_ms`. For h5parms, ``digest`` is `contents.of_h5parm` by
        solve.

    Raises
    ------
    ProductError
        What DP3 made is not what was expected.
    """
    product, before = work / run["product"], work / "in.ms"
    if expect["kind"] == "h5parms":
        if has_data is None:
            has_data = products.flag_fractions(before)["total"] < 1
        paths = {name: product / f"{name}.h5" for name in expect["solves"]}
        solves = {
            name: products.verify_h5parm(paths[name], solve, has_data) for name, solve in expect["solves"].items()
        }
        return {"solves": solves} | _digest(
            digests, lambda how: {name: contents.of_h5parm(path, how) for name, path in paths.items()}
        )
    if expect["kind"] == "fit":
        residual = work / "residual.ms"
        found = measure_fit(before, work / "corrected.ms", work / "model.ms", residual if residual.exists() else None)
        product.write_text(json.dumps(found, indent=1) + "\n")
        return found
    n_nan_weights = products.settle_nan_weights(product, expect["nan_weights"]) if expect.get("nan_weights") else 0
    with products.opened(product):  # from here on, because casacore opens again what is open in a third of the time
        found = products.verify_ms(product, expect)
        if n_nan_weights:
            found["n_nan_weights"] = n_nan_weights
        for name in ("n_baselines", "n_channels"):
            if expect.get(name) not in (None, found[name]):
                raise ProductError(f"{product}: {name} is {found[name]} instead of {expect[name]}")
        found["flagged_after"] = found.pop("flagged")
        if "row_start" in expect:
            found["flagged_before"] = products.flag_fractions(before, expect["row_start"], expect["n_rows"])
        return found | _digest(digests, lambda how: contents.of_ms(product, how))


def _digest(wanted: bool | str, make: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    return {"digest": make(contents.ALGORITHM if wanted is True else wanted)} if wanted else {}
