import casacore.tables as ct
import h5py
import numpy as np
import pytest

from chunkcal.lineage import contents
from chunkcal.products import ProductError


@pytest.fixture
def make_ms(tmp_path):
    """Make a table with scalars, arrays, texts, and a column without values."""

    def make(name, data, text="x"):
        columns = [
            ct.makescacoldesc("TIME", 0.0),
            ct.makescacoldesc("NAME", ""),
            ct.makearrcoldesc("DATA", 0j, ndim=2),
            ct.makearrcoldesc("FLAG_CATEGORY", False, ndim=3),
        ]
        path = str(tmp_path / name)
        with ct.table(path, ct.maketabdesc(columns), nrow=len(data), ack=False) as table:
            table.putcol("TIME", np.arange(len(data), dtype=float))
            table.putcol("NAME", [text] * len(data))
            table.putcol("DATA", data)
        return path

    return make


DATA = (np.arange(24) + 1j).reshape(4, 3, 2)


def test_columns_depend_on_values_and_nothing_else(make_ms, monkeypatch):
    one = contents.of_ms(make_ms("one", DATA))
    assert one.keys() == {"TIME", "NAME", "DATA"}
    monkeypatch.setattr(contents, "_BLOCK_BYTES", 100)  # a row at a time
    assert contents.of_ms(make_ms("two", DATA)) == one
    changed = DATA.copy()
    changed[2, 1, 0] = np.nextafter(changed[2, 1, 0].real, 99) + 1j
    assert {key for key, value in contents.of_ms(make_ms("three", changed)).items() if value != one[key]} == {"DATA"}
    other = contents.of_ms(make_ms("four", DATA.reshape(4, 2, 3), "y"))
    assert {key for key, value in other.items() if value != one[key]} == {"DATA", "NAME"}


def test_digests_name_their_algorithm_and_older_ones_can_still_be_made(make_ms, tmp_path):
    path = make_ms("one", DATA)
    now, then = contents.of_ms(path), contents.of_ms(path, "blake2b")
    assert {contents.algorithm_of(one) for one in now.values()} == {"xxh3_128"}
    # From provenance written before digests had a name.
    assert then["DATA"] == "015b85270a9bc957c62f00f9b698ab7b"
    assert contents.algorithm_of(then["DATA"]) == "blake2b"
    parm = tmp_path / "one.h5"
    make_h5parm(parm)
    assert contents.of_h5parm(parm, "blake2b")["sol000/phase000/val"] == "20b0b0bb61d4c25080581ba8b9d66365"


def test_what_is_no_table(tmp_path):
    with pytest.raises(ProductError, match="not a table"):
        contents.of_ms(tmp_path)


def make_h5parm(path, value=1.0, axes=b"time,ant", history="h"):
    with h5py.File(path, "w") as file:
        val = file.create_dataset("sol000/phase000/val", data=[[value, np.nan]])
        val.attrs["AXES"], val.attrs["HISTORY000"] = axes, history
        file["sol000/antenna"] = np.array([(b"CS1", (1.0, 2.0, 3.0))], [("name", "S16"), ("position", "f4", 3)])
    return contents.of_h5parm(path)


def test_datasets_with_their_axes_but_without_history(tmp_path):
    one = make_h5parm(tmp_path / "one")
    assert one.keys() == {"sol000/phase000/val", "sol000/antenna"}
    assert make_h5parm(tmp_path / "two", history="other") == one
    for changes in ({"value": np.nextafter(1.0, 2)}, {"axes": b"ant,time"}):
        other = make_h5parm(tmp_path / "three", **changes)
        assert other["sol000/phase000/val"] != one["sol000/phase000/val"]
        assert other["sol000/antenna"] == one["sol000/antenna"]
