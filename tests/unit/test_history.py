import casacore.tables as ct
import h5py
import numpy as np
import pytest

from chunkcal.lineage import history
from tiny_ms import make_ms

RUNS = {"preprocess": [{"msin": "in.ms", "steps": "[]"}]}


def test_lines_are_the_same_each_time_and_name_versions_and_parsets():
    text = history.lines(RUNS, "6.6.0")
    assert text == history.lines(RUNS, "6.6.0")
    assert text[0].startswith("made by chunkcal ")
    assert text[1].startswith("with DP3 6.6.0; packages: dp3 6.6")
    assert text[2] == 'preprocess: [{"msin": "in.ms", "steps": "[]"}]'
    assert "provenance.json" in text[-1]
    assert "of unknown version" in history.lines({}, None)[1]


@pytest.mark.parametrize("text", [["one", "two"], ["x" * 100_000]])
def test_h5parm_gets_one_more_entry_per_table(tmp_path, text):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        for name in ("phase000", "tec000"):
            file[f"sol000/{name}/val"] = [1.0]
        file["sol000/phase000/val"].attrs["HISTORY000"] = np.bytes_(b"by DP3")
        file["sol000/antenna"] = [1]
    history.add_to_h5parm(path, text)
    with h5py.File(path) as file:
        phase, tec = (dict(file[f"sol000/{name}/val"].attrs) for name in ("phase000", "tec000"))
    assert phase["HISTORY000"] == b"by DP3"
    assert phase["HISTORY001"] == tec["HISTORY000"] == "\n".join(text).encode()[:60_000]


def test_ms_gets_one_more_row(tmp_path):
    path = make_ms(tmp_path / "a.ms")
    with ct.table(f"{path}/HISTORY", ack=False) as table:
        before = table.nrows()
    history.add_to_ms(path, ["made", "one", "two"])
    history.add_to_ms(path, ["made again"])
    with ct.table(f"{path}/HISTORY", ack=False) as table:
        assert table.nrows() == before + 2
        assert table[before]["MESSAGE"] == "made"
        assert table[before]["APP_PARAMS"] == ["one", "two"]
        assert table[before + 1]["TIME"] == table[before]["TIME"]
