import json
import shutil
from pathlib import Path

import casacore.tables as ct
import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal import products
from chunkcal.products import ProductError, flag_fractions, verify_h5parm, verify_ms

INTERVAL, N_SLOTS = 8.0, 6
EXPECT = {"first_time": tiny_ms.START, "interval_s": INTERVAL, "n_slots": N_SLOTS}
SOLVE = {"steps": "[s,null]", "s.type": "ddecal", "s.h5parm": "out.h5", "s.sourcedb": "sky.txt", "s.mode": "diagonal"}
SOLVE |= {"s.solint": 2}
RAW = Path(__file__).parents[2].parent / "shared" / "data"


def new_ms(folder, **changes):
    return tiny_ms.make_ms(folder / "in.ms", n_slots=N_SLOTS, interval_s=INTERVAL, **changes)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A MeasurementSet that DP3 wrote, in files of many tiles, and an h5parm."""
    folder = tmp_path_factory.mktemp("made")
    new_ms(folder)
    tiny_ms.write_sky_model(folder / "sky.txt")
    tiny_ms.run_dp3(folder, {"msin": "in.ms", "msout": "out.ms", "msout.tilesize": 1, "steps": "[]"})
    tiny_ms.run_dp3(folder, {"msin": "in.ms", **SOLVE})
    return folder


@pytest.fixture
def ms(made, tmp_path):
    return shutil.copytree(made / "out.ms", tmp_path / "out.ms")


def change(path, column, function):
    with ct.table(str(path), readonly=False, ack=False) as table:
        table.putcol(column, function(table.getcol(column)))


# ---- MeasurementSets ------------------------------------------------------------------------------------


def test_the_stations_of_rows_are_read_once(tmp_path, monkeypatch):
    """DP3 writes them in buckets of 32 rows, of which casacore would keep two: each column would read all again."""

    def n_reads():
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["syscr"])

    tiny_ms.make_ms(tmp_path / "in.ms", n_stations=20, n_slots=20, interval_s=INTERVAL)
    tiny_ms.run_dp3(tmp_path, {"msin": "in.ms", "msout": "out.ms", "steps": "[]"})
    with products.opened(tmp_path / "out.ms") as table:
        before = n_reads()
        stations = [table.getcol(name) for name in ("ANTENNA1", "ANTENNA2")]
        first = n_reads() - before
        assert table.nrows() / 32 <= first < 1.5 * table.nrows() / 32
        again = [table.getcol(name) for name in ("ANTENNA1", "ANTENNA2")]
        assert n_reads() - before - first < 10
    np.testing.assert_array_equal(stations, again)
    monkeypatch.setattr(products, "_BUCKETS_BYTES", 20 * 256)  # a full cache would be searched through each time
    with products.opened(tmp_path / "out.ms") as table:
        assert table.getdmprop("ANTENNA1")["MaxCacheSize"] == 2


def test_a_good_product(made):
    found = verify_ms(made / "out.ms", EXPECT)
    assert json.loads(json.dumps(found)) == found
    assert found["flagged"].pop("counts")["n_total"] == 36 * 4 * 4  # 6 baselines of 6 slots
    assert found == {
        "n_rows": 60,
        "n_slots": 6,
        "n_baselines": 10,
        "n_channels": 4,
        "flagged": {"total": 0.0, "stations": dict.fromkeys(["ST000", "ST001", "ST002", "ST003"], 0.0)},
    }
    assert verify_ms(made / "out.ms", {})["n_rows"] == 60


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"n_slots": 7}, "has 6 time slots instead of 7"),
        ({"first_time": tiny_ms.START + INTERVAL}, "time slot 0 is at .* 8.000 s off the grid of 8 s"),
        ({"interval_s": 8.02}, "time slot 1 is at .* 0.020 s off the grid of 8.02 s"),
    ],
)
def test_other_times_than_expected(made, expect, message):
    with pytest.raises(ProductError, match=f"out.ms.*{message}"):
        verify_ms(made / "out.ms", EXPECT | expect)


def test_chunk_past_the_end(made, tmp_path):
    """DP3 returns 0 and writes a MeasurementSet without rows, or invents flagged slots."""
    shutil.copytree(made / "in.ms", tmp_path / "in.ms")
    tiny_ms.run_dp3(tmp_path, {"msin": "in.ms", "msout": "long.ms", "steps": "[]", "msin.ntimes": 8})
    with pytest.raises(ProductError, match="has 8 time slots instead of 6"):
        verify_ms(tmp_path / "long.ms", EXPECT)
    with ct.table(str(tmp_path / "in.ms"), ack=False) as table:
        table.query("TIME < 0").copy(str(tmp_path / "empty.ms"), deep=True).close()
    with pytest.raises(ProductError, match="has no rows"):
        verify_ms(tmp_path / "empty.ms", EXPECT)


def test_missing_rows_and_slots(ms):
    for n_rows, message in (
        (50, "has 5 time slots instead of 6"),
        (47, "has 47 rows in 5 time slots, which is not 10"),
    ):
        short = ms.with_name(f"{n_rows}.ms")
        with ct.table(str(ms), ack=False) as table:
            table.selectrows(range(n_rows)).copy(str(short), deep=True).close()
        with pytest.raises(ProductError, match=message):
            verify_ms(short, EXPECT)


def test_uneven_slots(ms):
    change(ms, "TIME", lambda t: np.where(np.arange(60) == 19, t[20], t))  # 19 + 21 rows instead of 20 + 20
    with pytest.raises(ProductError, match="not 10 baselines in each slot"):
        verify_ms(ms, EXPECT)


def test_other_baselines_in_a_slot(ms):
    change(ms, "ANTENNA2", lambda a: np.where(np.arange(60) == 31, a + 1, a))
    with pytest.raises(ProductError, match="time slot 3 has other baselines .ANTENNA2."):
        verify_ms(ms, EXPECT)


def test_nan_time(ms):
    change(ms, "TIME", lambda t: np.where(np.arange(60) // 10 == 5, np.nan, t))
    with pytest.raises(ProductError, match=r"out.ms.*(slot|slots)"):
        verify_ms(ms, EXPECT)


def test_not_a_table(tmp_path):
    with pytest.raises(ProductError, match="no table.dat"):
        verify_ms(tmp_path / "no.ms", EXPECT)


def product_files(path):
    return sorted(f.name for f in path.iterdir() if f.name.startswith("table.") and f.suffix not in (".info", ".lock"))


def test_the_product_has_many_tiles(made):
    with ct.table(str(made / "out.ms"), ack=False) as table:
        shape = table.getdminfo("DATA")["SPEC"]["HYPERCUBES"]["*1"]["TileShape"]
    assert shape[-1] < 20


@pytest.mark.parametrize("seed", range(10))
def test_a_torn_file_is_noticed(made, tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = product_files(made / "out.ms")
    assert len(names) >= 11
    for name in names:
        ms = shutil.copytree(made / "out.ms", tmp_path / name / "out.ms")
        size = (ms / name).stat().st_size
        keep = [0, size - 1, *rng.integers(1, size, 8)][seed] if seed < 2 else int(rng.integers(1, size))
        with (ms / name).open("r+b") as stream:
            stream.truncate(keep)
        with pytest.raises(ProductError, match=r"out\.ms") as error:
            verify_ms(ms, EXPECT)
        assert "\n" not in str(error.value), (name, keep)
    verify_ms(made / "out.ms", EXPECT)  # casacore is still in order


@pytest.mark.parametrize("seed", range(10))
def test_a_torn_subtable_is_noticed(made, tmp_path, seed):
    rng = np.random.default_rng(seed)
    for subtable in products._SUBTABLES:
        for name in ("table.dat", "table.f0"):
            ms = shutil.copytree(made / "out.ms", tmp_path / subtable / name / "out.ms")
            file = ms / subtable / name
            with file.open("r+b") as stream:
                stream.truncate(int(rng.integers(0, file.stat().st_size)))
            with pytest.raises(ProductError, match=subtable):
                verify_ms(ms, EXPECT)


def test_a_missing_file_is_noticed(made, tmp_path):
    for name in product_files(made / "out.ms"):
        ms = shutil.copytree(made / "out.ms", tmp_path / name / "out.ms")
        (ms / name).unlink()
        if name.endswith("i"):
            continue  # FLAG_CATEGORY's, which nobody reads
        with pytest.raises(ProductError):
            verify_ms(ms, EXPECT)


def test_verification_changes_nothing(ms):
    before = {f: f.read_bytes() for f in ms.rglob("*") if f.is_file()}
    verify_ms(ms, EXPECT)
    assert {f: f.read_bytes() for f in ms.rglob("*") if f.is_file()} == before


# ---- flags ----------------------------------------------------------------------------------------------


def test_flag_fractions(ms, monkeypatch):
    first, second = tiny_ms.read(ms, "ANTENNA1"), tiny_ms.read(ms, "ANTENNA2")
    flags = np.zeros((60, 4, 4), bool)
    flags[first == second] = True  # autocorrelations
    flags[(first == 0) & (second == 2), :2] = True  # half of the channels of one baseline
    change(ms, "FLAG", lambda _: flags)
    wanted = {"ST000": 0.5 / 3, "ST001": 0.0, "ST002": 0.5 / 3, "ST003": 0.0}
    for block in (1 << 20, 7 * 16, 1):
        monkeypatch.setattr(products, "_BLOCK_BYTES", block)
        found = flag_fractions(ms)
        assert found["total"] == pytest.approx(0.5 / 6)  # one of six cross-correlations, half of it
        assert found["stations"] == pytest.approx(wanted)
    assert verify_ms(ms, EXPECT)["flagged"] == found


def test_flag_fractions_of_some_rows(ms):
    change(ms, "FLAG", lambda f: f | (np.arange(60) >= 40)[:, None, None])
    assert flag_fractions(ms, 0, 40)["total"] == 0.0
    some = flag_fractions(ms, 40, 20)
    assert (some["total"], some["stations"]) == (1.0, dict.fromkeys(wanted_names(), 1.0))
    assert flag_fractions(ms, 30)["total"] == pytest.approx(2 / 3)
    with pytest.raises(ProductError, match="has 60 rows, not rows 50 to 60"):
        flag_fractions(ms, 50, 11)


def wanted_names():
    return [f"ST{i:03d}" for i in range(4)]


def test_a_station_without_cross_correlations_is_left_out(ms):
    change(ms, "ANTENNA1", lambda a: np.where(a == 1, 1, 0))
    change(ms, "ANTENNA2", lambda a: np.full_like(a, 1))
    assert list(flag_fractions(ms)["stations"]) == ["ST000", "ST001"]


@pytest.mark.skipif(not RAW.is_dir(), reason="the real data are not here")
@pytest.mark.parametrize(("name", "shape"), [("tNDPPP-generic.MS", (168, 6, 28, 8)), ("tDish.MS", (450, 5, 90, 5))])
def test_real_data(tmp_path, name, shape):
    import tarfile

    with tarfile.open(RAW / f"{name}.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    tiny_ms.run_dp3(tmp_path, {"msin": name, "msout": "out.ms", "steps": "[]"})
    for ms in (name, "out.ms"):
        found = verify_ms(tmp_path / ms, {})
        assert (found["n_rows"], found["n_slots"], found["n_baselines"], found["n_channels"]) == shape
    assert found["flagged"]["total"] == pytest.approx(tiny_ms.read(tmp_path / "out.ms", "FLAG").mean())


# ---- h5parms --------------------------------------------------------------------------------------------


def test_a_good_h5parm(made):
    expect = {"n_solutions": 3, "first_time": tiny_ms.START + INTERVAL / 2, "interval_s": 2 * INTERVAL}
    found = verify_h5parm(made / "out.h5", expect)
    assert (found["n_solutions"], found["finite_fraction"]) == (3, 1.0)
    assert json.loads(json.dumps(found)) == found
    for key, wrong in (("n_solutions", 4), ("first_time", tiny_ms.START), ("interval_s", 8.0)):
        with pytest.raises(ProductError, match="out.h5"):
            verify_h5parm(made / "out.h5", expect | {key: wrong})


@pytest.mark.parametrize("seed", range(10))
def test_a_torn_h5parm_is_noticed(made, tmp_path, seed):
    content = (made / "out.h5").read_bytes()
    keep = [0, len(content) - 1][seed] if seed < 2 else int(np.random.default_rng(seed).integers(1, len(content)))
    (tmp_path / "out.h5").write_bytes(content[:keep])
    with pytest.raises(ProductError, match="out.h5.*cannot be (opened|read)") as error:
        verify_h5parm(tmp_path / "out.h5", {})
    assert "\n" not in str(error.value)


def test_nan_weights_are_told_from_flagged_data(tmp_path):
    """In both cases DP3 returns 0 and all solutions are NaN with weight 0."""
    new_ms(tmp_path)
    tiny_ms.write_sky_model(tmp_path / "sky.txt")
    change(tmp_path / "in.ms", "WEIGHT_SPECTRUM", lambda w: w * np.nan)
    tiny_ms.run_dp3(tmp_path, {"msin": "in.ms", **SOLVE})
    with pytest.raises(ProductError, match="out.h5: all 3 solution intervals are NaN.*WEIGHT_SPECTRUM"):
        verify_h5parm(tmp_path / "out.h5", {"n_solutions": 3}, has_data=True)
    change(tmp_path / "in.ms", "FLAG", np.ones_like)
    tiny_ms.run_dp3(tmp_path, {"msin": "in.ms", **SOLVE})
    found = verify_h5parm(tmp_path / "out.h5", {"n_solutions": 3}, has_data=False)
    assert (found["finite_fraction"], found["n_empty"]) == (0.0, 3)
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.isnan(file["sol000/phase000/val"][:]).all()


def test_dead_station_is_no_error(tmp_path):
    new_ms(tmp_path)
    tiny_ms.write_sky_model(tmp_path / "sky.txt")
    dead = (tiny_ms.read(tmp_path / "in.ms", "ANTENNA1") == 2) | (tiny_ms.read(tmp_path / "in.ms", "ANTENNA2") == 2)
    change(tmp_path / "in.ms", "FLAG", lambda f: f | dead[:, None, None])
    tiny_ms.run_dp3(tmp_path, {"msin": "in.ms", **SOLVE})
    found = verify_h5parm(tmp_path / "out.h5", {})
    assert (found["finite_fraction"], found["n_empty"]) == (0.75, 0)
    assert found["stations"] == {"ST000": 1.0, "ST001": 1.0, "ST002": 0.0, "ST003": 1.0}


def test_a_nan_weight_costs_the_stations_of_its_baseline(tmp_path):
    new_ms(tmp_path)
    tiny_ms.write_sky_model(tmp_path / "sky.txt")
    weight = tiny_ms.read(tmp_path / "in.ms", "WEIGHT_SPECTRUM")
    weight[13, 2] = np.nan  # slot 1, stations 0 and 3, one of the four channels
    change(tmp_path / "in.ms", "WEIGHT_SPECTRUM", lambda _: weight)
    tiny_ms.run_dp3(tmp_path, {"msin": "in.ms", **SOLVE, "s.nchan": 1})
    lost = 1 / (3 * 4)
    stations = verify_h5parm(tmp_path / "out.h5", {})["stations"]
    assert stations == pytest.approx({"ST000": 1 - lost, "ST001": 1.0, "ST002": 1.0, "ST003": 1 - lost})
