import hashlib
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import casacore.tables as ct
import numpy as np
import pytest

import tiny_ms
from chunkcal.join import dp3_times, join
from chunkcal.products import ProductError

INTERVAL = 10.0139008
CUTS = {4: [(0, 4), (4, 4), (8, 3)], 6: [(0, 6), (6, 5)], 11: [(0, 11)]}
DISH = Path(__file__).parents[2].parent / "shared" / "data" / "tDish.MS.tgz"


def dp3_time(first, slot, interval):
    """A quarter of a slot early: DP3 takes the next slot, however the digits round."""
    moment = datetime(1858, 11, 17) + timedelta(seconds=float(first + (slot - 0.25) * interval))
    return f"{moment:%Y/%m/%d/%H:%M:%S.%f}"


def cut(folder, ms, out, first=tiny_ms.START, interval=INTERVAL, chunk=None, **keys):
    keys = {"msin": ms, "msout": out, "steps": "[]"} | keys
    if chunk:
        keys |= {"msin.starttime": dp3_time(first, chunk[0], interval), "msin.ntimes": chunk[1]}
    tiny_ms.run_dp3(folder, keys)
    return folder / out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The copy that one DP3 run makes, and the chunks that runs over parts make."""
    folder = tmp_path_factory.mktemp("join")
    jones = tiny_ms.random_jones(11, 4, 4)
    tiny_ms.make_ms(folder / "in.ms", n_slots=11, interval_s=INTERVAL, jones=jones)
    whole = cut(folder, "in.ms", "whole.ms")
    chunks = {n: [cut(folder, "in.ms", f"c{n}-{c[0]}.ms", chunk=c) for c in cs] for n, cs in CUTS.items()}
    return {0: whole, **chunks}


def digest(path):
    found = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        found.update(str(file.relative_to(path)).encode())
        if file.is_file():
            found.update(file.read_bytes())
    return found.hexdigest()


def assert_same_columns(path, wanted):
    with ct.table(str(path), ack=False) as one, ct.table(str(wanted), ack=False) as other:
        assert sorted(one.colnames()) == sorted(other.colnames())
        for name in other.colnames():
            if not other.iscelldefined(name, 0):
                assert not one.iscelldefined(name, 0)
                continue
            has, wants = one.getcol(name), other.getcol(name)
            if isinstance(wants, np.ndarray):
                has, wants = (has.tobytes(), has.shape), (wants.tobytes(), wants.shape)
            assert has == wants, name


@pytest.mark.parametrize("length", CUTS)
def test_join_equals_one_run_bit_for_bit(data, tmp_path, length):
    before = [digest(chunk) for chunk in data[length]]
    copies = [shutil.copytree(chunk, tmp_path / chunk.name) for chunk in data[length]]
    found = join(copies[::-1], tmp_path / "out.ms")
    assert [digest(copy) for copy in copies] == before
    assert (found["n_chunks"], found["n_rows"], found["n_slots"], found["n_baselines"]) == (len(copies), 110, 11, 10)
    for copy in copies:
        shutil.rmtree(copy)
    assert_same_columns(tmp_path / "out.ms", data[0])
    assert [p.name for p in tmp_path.iterdir()] == ["out.ms"]


def test_subtables_tell_the_whole(data, tmp_path):
    join(data[4], tmp_path / "out.ms")
    with ct.table(f"{tmp_path}/out.ms", ack=False) as table:
        keywords = table.getkeywords()
        assert "Virtual" not in table.info()["readme"]
        assert all(str(tmp_path / "out.ms") in word for word in keywords.values() if isinstance(word, str))
    ranges = [tiny_ms.read(ms / "OBSERVATION", "TIME_RANGE") for ms in (tmp_path / "out.ms", data[0], data[4][0])]
    np.testing.assert_allclose(ranges[0], ranges[1], rtol=0, atol=2e-6)
    assert ranges[0][0, 1] - ranges[2][0, 1] > 6 * INTERVAL
    messages = tiny_ms.read(tmp_path / "out.ms" / "HISTORY", "MESSAGE")
    assert messages[:-1] == tiny_ms.read(data[4][0] / "HISTORY", "MESSAGE")
    assert messages[-1].startswith("joined 3 chunks along time")
    for name in ("ANTENNA", "SPECTRAL_WINDOW", "FIELD", "POLARIZATION", "DATA_DESCRIPTION", "FEED"):
        assert_same_columns(tmp_path / "out.ms" / name, data[0] / name)


def test_cells_that_only_some_rows_have(data, tmp_path):
    copies = [shutil.copytree(chunk, tmp_path / chunk.name) for chunk in data[4]]
    cell = np.arange(16).reshape(1, 4, 4) % 3 == 0
    with ct.table(str(copies[1]), readonly=False, ack=False) as table:
        assert not table.iscelldefined("FLAG_CATEGORY", 7)
        table.putcell("FLAG_CATEGORY", 7, cell)
    join(copies, tmp_path / "out.ms")
    with ct.table(f"{tmp_path}/out.ms", ack=False) as table:
        assert [row for row in range(table.nrows()) if table.iscelldefined("FLAG_CATEGORY", row)] == [47]
        np.testing.assert_array_equal(table.getcell("FLAG_CATEGORY", 47), cell)


def test_joined_set_is_good_input_for_dp3(data, tmp_path):
    join(data[4], tmp_path / "out.ms")
    cut(tmp_path, "out.ms", "again.ms")
    assert_same_columns(tmp_path / "again.ms", data[0])


def test_equal_chunks_give_equal_tables(data, tmp_path):
    for name in ("a.ms", "b.ms"):
        join(data[6], tmp_path / name)
    for file in (tmp_path / "a.ms").rglob("table.f*"):
        assert file.read_bytes() == (tmp_path / "b.ms" / file.relative_to(tmp_path / "a.ms")).read_bytes(), file


def test_times_of_averaged_chunks(tmp_path):
    """Rounding: an averaged chunk's times need the grid of what it was averaged from."""
    tiny_ms.make_ms(tmp_path / "in.ms", n_stations=3, n_channels=1, n_slots=62, interval_s=INTERVAL)
    average = {"steps": "[avg]", "avg.type": "averager", "avg.timestep": 2}
    whole = cut(tmp_path, "in.ms", "whole.ms", **average)
    chunks = [cut(tmp_path, "in.ms", f"{s}.ms", chunk=(s, n), **average) for s, n in ((0, 30), (30, 32))]
    wanted = tiny_ms.read(whole, "TIME")
    assert dp3_times(tiny_ms.START, INTERVAL, 31, 2).tobytes() == wanted[::6].tobytes()
    plain = np.concatenate([tiny_ms.read(chunk, "TIME") for chunk in chunks])
    assert 0 < np.abs(plain - wanted).max() < 2e-6
    join(chunks, tmp_path / "out.ms", times=dp3_times(tiny_ms.START, INTERVAL, 31, 2))
    assert_same_columns(tmp_path / "out.ms", whole)
    with pytest.raises(ProductError, match="31 times are not the 30 that were expected"):
        join(chunks, tmp_path / "no.ms", times=dp3_times(tiny_ms.START, INTERVAL, 30, 2))


def test_gaps_between_chunks_stay(data, tmp_path):
    join([data[4][0], data[4][2]], tmp_path / "out.ms")
    slots = tiny_ms.read(tmp_path / "out.ms", "TIME")[::10]
    np.testing.assert_allclose((slots - tiny_ms.START) / INTERVAL, [0, 1, 2, 3, 8, 9, 10], atol=1e-6)


def test_overlap_and_duplicate_are_refused(data, tmp_path):
    for chunks in ([data[4][0], data[4][0]], [data[4][1], data[6][0]]):
        with pytest.raises(ProductError, match=r"c4-\d.ms overlaps .*c[46]-0.ms"):
            join(chunks, tmp_path / "out.ms")
    assert not list(tmp_path.iterdir())


def test_expectations_notice_missing_and_short_chunks(data, tmp_path):
    expects = [
        {"first_time": tiny_ms.START + INTERVAL * s, "interval_s": INTERVAL, "n_slots": n} for s, n in ((0, 4), (4, 4))
    ]
    join(data[4][:2], tmp_path / "out.ms", expects)
    with pytest.raises(ProductError, match="c4-8.ms has 3 time slots instead of 4"):
        join([data[4][0], data[4][2]], tmp_path / "no.ms", expects)
    with pytest.raises(ProductError, match="c6-0.ms has 6 time slots instead of 4"):
        join([data[6][0], data[4][1]], tmp_path / "no.ms", expects)
    with pytest.raises(ValueError, match="zip"):
        join(data[4], tmp_path / "no.ms", expects)


def without_station(path):
    with ct.table(f"{path}/ANTENNA", readonly=False, ack=False) as table:
        table.putcell("NAME", 2, "OTHER")


def without_column(path):
    with ct.table(str(path), readonly=False, ack=False) as table:
        table.removecols("WEIGHT_SPECTRUM")


def other_frequencies(path):
    with ct.table(f"{path}/SPECTRAL_WINDOW", readonly=False, ack=False) as table:
        table.putcell("CHAN_FREQ", 0, table.getcell("CHAN_FREQ", 0) + 1e5)


def other_baselines(path):
    with ct.table(str(path), readonly=False, ack=False) as table:
        table.putcol("ANTENNA2", (table.getcol("ANTENNA2") + 1) % 4)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (without_station, "ANTENNA::NAME"),
        (without_column, "columns"),
        (other_frequencies, "SPECTRAL_WINDOW::CHAN_FREQ"),
        (other_baselines, "ANTENNA2"),
    ],
)
def test_unlike_chunks_are_refused(data, tmp_path, change, what):
    odd = shutil.copytree(data[6][1], tmp_path / "odd.ms")
    change(odd)
    with pytest.raises(ProductError, match=f"odd.ms cannot be joined to .*c6-0.ms: {what} differ"):
        join([data[6][0], odd], tmp_path / "out.ms")


def test_damaged_chunk_is_named_and_nothing_is_left(data, tmp_path):
    odd = shutil.copytree(data[6][1], tmp_path / "odd.ms")
    (file,) = [f for f in odd.glob("table.f*_TSM0") if f.stat().st_size == max(g.stat().st_size for g in odd.glob("*"))]
    with file.open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(ProductError, match="odd.ms"):
        join([data[6][0], odd], tmp_path / "out.ms")
    assert [p.name for p in tmp_path.iterdir()] == ["odd.ms"]


def test_refuses_to_replace_and_to_join_nothing(data, tmp_path):
    (tmp_path / "out.ms").mkdir()
    with pytest.raises(ProductError, match="exists already"):
        join(data[4], tmp_path / "out.ms")
    with pytest.raises(ProductError, match="no/out.ms.tmp"):
        join(data[4], tmp_path / "no" / "out.ms")
    with pytest.raises(ProductError, match="no chunks"):
        join([], tmp_path / "new.ms")


def test_join_keeps_few_files_open(data, tmp_path, monkeypatch):
    """A concatenation of a thousand tables would need thousands of open files."""
    most = 0
    original = ct.table.putcol

    def counting(self, *args, **keys):
        nonlocal most
        most = max(most, len(list(Path("/proc/self/fd").iterdir())))
        return original(self, *args, **keys)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    start = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(ct.table, "putcol", counting)
    join(data[4], tmp_path / "out.ms")
    assert 0 < most - start < 40
    assert len(list(Path("/proc/self/fd").iterdir())) <= start


@pytest.mark.skipif(not DISH.is_file(), reason="the real data are not here")
def test_real_meerkat_data(tmp_path):
    import tarfile

    with tarfile.open(DISH) as archive:
        archive.extractall(tmp_path, filter="data")
    first, interval = (tiny_ms.read(tmp_path / "tDish.MS", name)[0] for name in ("TIME", "INTERVAL"))
    whole = cut(tmp_path, "tDish.MS", "whole.ms")
    chunks = [cut(tmp_path, "tDish.MS", f"{s}.ms", first, interval, (s, n)) for s, n in ((0, 2), (2, 2), (4, 1))]
    join(chunks, tmp_path / "out.ms")
    assert_same_columns(tmp_path / "out.ms", whole)
