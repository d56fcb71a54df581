import json
import shutil
from pathlib import Path

import casacore.tables as ct
import numpy as np
import pytest

import tiny_ms
from chunkcal import ms
from chunkcal.errors import UserError
from chunkcal.ms import Observation, read_observation

INTERVAL = 10.0139008
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ms")
    return tiny_ms.make_ms(folder / "my obs.ms", n_slots=12, n_stations=3, missing=(2, 3, 7))


def changed(plain, folder, subtable="", **columns):
    """A copy of the MeasurementSet with other columns."""
    path = folder / "changed.ms"
    shutil.copytree(plain, path)
    with ct.table(str(path / subtable), readonly=False, ack=False) as table:
        for name, change in columns.items():
            table.putcol(name, change(table.getcol(name)))
    return path


def test_reads_the_grid(plain):
    observation = read_observation(plain, "a")
    assert observation.name == "a"
    assert observation.ms == str(plain)
    assert observation.telescope == "LOFAR"
    assert (observation.first_time, observation.interval_s) == (tiny_ms.START, INTERVAL)
    assert (observation.n_slots, observation.missing) == (12, ((2, 4), (7, 8)))
    assert (observation.n_rows, observation.n_baselines, observation.n_stations) == (54, 6, 3)
    assert observation.stations == ("ST000", "ST001", "ST002")
    assert (observation.n_channels, observation.n_correlations, observation.n_spectral_windows) == (4, 4, 1)
    assert (observation.first_frequency_hz, observation.channel_width_hz) == (140e6, 195312.5)
    assert observation.fields == ("centre",)
    np.testing.assert_allclose(observation.phase_centre_deg, np.degrees(tiny_ms.CENTRE))
    assert "DATA" in observation.columns
    assert observation.size_bytes > 10_000
    assert [observation.present(*slots) for slots in ((0, 12), (2, 4), (1, 8), (3, 5))] == [9, 0, 4, 1]


def test_survives_json(plain):
    observation = read_observation(plain, "a")
    assert Observation.from_dict(json.loads(json.dumps(observation.to_dict()))) == observation


def test_blocks_do_not_matter(plain, monkeypatch):
    whole = read_observation(plain, "a")
    monkeypatch.setattr(ms, "_BLOCK_ROWS", 7)  # shorter than two slots, and no multiple of one
    assert read_observation(plain, "a") == whole


def test_leaves_no_trace(plain):
    def state():
        return sorted((p, p.stat().st_mtime_ns, p.stat().st_size) for p in plain.rglob("*"))

    before = state()
    # Not even a reader's lock: the data may lie on a read-only disk, or be read by others.
    read_observation(plain, "a")
    assert state() == before


@pytest.mark.skipif(not SHARED.exists(), reason="no shared data")
@pytest.mark.parametrize(("name", "slots", "rows"), [("tNDPPP-generic", 6, 168), ("tDish", 5, 450)])
def test_reads_real_ones(tmp_path, name, slots, rows):
    shutil.unpack_archive(SHARED / f"{name}.MS.tgz", tmp_path, filter="data")
    observation = read_observation(tmp_path / f"{name}.MS", name)
    assert (observation.n_slots, observation.n_rows, observation.missing) == (slots, rows, ())


def test_small_jitter_is_on_the_grid(plain, tmp_path):
    path = changed(plain, tmp_path, TIME=lambda t: t + 4e-3 * np.sign(np.sin(t)))
    assert read_observation(path, "a").n_slots == 12


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        # 9 ms either way: each is within DP3's tolerance of the first slot, but not of each other.
        ({"TIME": lambda t: t + np.repeat([0, 9e-3, -9e-3, *[0] * 6], 6)}, "regular grid"),
        ({"TIME": lambda t: t + np.where(np.arange(len(t)) >= 30, 2.0, 0)}, "regular grid"),
        ({"TIME": lambda t: t[::-1]}, "not sorted by TIME: row 6"),
        ({"TIME": lambda t: np.where(np.arange(len(t)) == 5, t[6], t)}, "slot 1 has 7 rows, the first one has 5"),
        ({"TIME": lambda t: np.where(np.arange(len(t)) == 20, np.nan, t)}, "not a number in row 20"),
        ({"INTERVAL": lambda t: t * 0}, "INTERVAL is 0"),
        ({"INTERVAL": lambda t: t * 2}, "regular grid"),
    ],
)
def test_times_that_cannot_be_chunked(plain, tmp_path, columns, words):
    with pytest.raises(UserError, match=words):
        read_observation(changed(plain, tmp_path, **columns), "a")


def add_row(path, subtable):
    with ct.table(str(path / subtable), readonly=False, ack=False) as table:
        table.addrows(1)
        for name in table.colnames():
            if table.iscelldefined(name, 0):
                table.putcell(name, 1, table.getcell(name, 0))


def test_several_fields(plain, tmp_path):
    path = changed(plain, tmp_path)
    add_row(path, "FIELD")
    with pytest.raises(UserError, match="2 fields"):
        read_observation(path, "a")


def test_several_spectral_windows(plain, tmp_path):
    path = changed(plain, tmp_path)
    add_row(path, "SPECTRAL_WINDOW")
    assert read_observation(path, "a").n_spectral_windows == 2  # all rows belong to the first
    with ct.table(str(path), readonly=False, ack=False) as table:
        window = np.tile([0, 1], table.nrows() // 2)
        table.putcol("DATA_DESC_ID", window.astype(np.int32))
    with pytest.raises(UserError, match="2 spectral windows; choose one"):
        read_observation(path, "a")
    observation = read_observation(path, "a", band=1)
    assert (observation.n_slots, observation.n_baselines, observation.n_rows) == (12, 3, 27)
    with pytest.raises(UserError, match="none with number 2"):
        read_observation(path, "a", band=2)


def test_columns(plain, tmp_path):
    with pytest.raises(UserError, match="no column CORRECTED_DATA.*it has DATA.*datacolumn"):
        read_observation(plain, "a", data_column="CORRECTED_DATA")
    path = changed(plain, tmp_path)
    with ct.table(str(path), readonly=False, ack=False) as table:
        table.removecols("DATA")
    with pytest.raises(UserError, match="no column DATA"):
        read_observation(path, "a")


def test_not_a_measurement_set(plain, tmp_path):
    (tmp_path / "folder").mkdir()
    broken = tmp_path / "broken.ms"
    broken.mkdir()
    (broken / "table.dat").write_bytes(b"nothing")
    for path, words in (
        (tmp_path / "none.ms", "does not exist"),
        (tmp_path / "folder", "no table.dat"),
        (plain / "ANTENNA", "not a MeasurementSet"),
        (broken, "cannot be opened"),
    ):
        with pytest.raises(UserError, match=words):
            read_observation(path, "a")


def test_a_selection_of_rows(plain, tmp_path):
    refers, copied = tmp_path / "selection.ms", tmp_path / "copy.ms"
    with ct.table(str(plain), ack=False) as table, table.query("ANTENNA1 != ANTENNA2") as rows:
        rows.copy(str(refers)).close()
    with pytest.raises(UserError, match=f"refers to rows of {plain}; copy it as a whole.*deep=True"):
        read_observation(refers, "a")
    with ct.table(str(refers), ack=False) as table:
        table.copy(str(copied), deep=True).close()
    assert read_observation(copied, "a").n_rows < read_observation(plain, "a").n_rows


def test_no_rows(plain, tmp_path):
    tiny_ms.run_dp3(tmp_path, {"msin": plain, "msout": "empty.ms", "steps": "[]", "msin.starttimeslot": 99})
    with pytest.raises(UserError, match="no rows"):
        read_observation(tmp_path / "empty.ms", "a")
