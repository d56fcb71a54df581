import re
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal.errors import UserError
from chunkcal.solutions import h5parm
from chunkcal.solutions.merge import Grid, Tile, merge
from tiny_h5parm import INTERVAL, SOLINT, arrays, solve, tiles, write

N_SLOTS = 11  # the last solution interval is short
START = tiny_ms.START - INTERVAL / 2
MODES = ["scalarphase", "diagonal", "fulljones", "tec", "tecandphase", "rotation+diagonal"]
LOFAR = Path(__file__).parents[2].parent / "shared" / "data"


# ---- files made by hand ---------------------------------------------------------------------------------


def test_merge_in_any_order(tmp_path):
    whole = write(tmp_path / "whole.h5", n=7)
    parts = tiles(tmp_path, (0, 3), (3, 3), (6, 1))
    found = merge(parts[::-1], tmp_path / "a.h5")
    for name, values in arrays(whole).items():
        np.testing.assert_array_equal(arrays(tmp_path / "a.h5")[name], values)
    assert (found["n_solutions"], found["finite_fraction"]) == (7, 1.0)
    merge(parts, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert not list(tmp_path.glob("*.tmp-*"))


def test_merge_where_time_is_not_the_first_axis(tmp_path):
    axes = ["ant", "time", "dir", "freq"]
    whole = write(tmp_path / "whole.h5", n=5, axes=axes)
    merge(tiles(tmp_path, (0, 2), (2, 3), axes=axes), tmp_path / "a.h5")
    np.testing.assert_array_equal(arrays(tmp_path / "a.h5")["val"], arrays(whole)["val"])


def test_single_solutions_per_chunk(tmp_path):
    found = merge(tiles(tmp_path, (0, 1), (1, 1), (2, 1)), tmp_path / "a.h5")
    assert (found["n_solutions"], found["interval_s"]) == (3, 10.0)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(0, 2), (0, 2)], "t0000.h5 and .*t0001.h5 both hold solution 0 at 1005.000"),
        ([(0, 3), (2, 2)], "t0000.h5 and .*t0001.h5 both hold solution 2"),
        ([(0, 2), (4, 2), (2, 1)], "no h5parm holds solution 3 at 1035.000 .* between .*t0002.h5 and .*t0001.h5"),
    ],
)
def test_overlaps_and_holes_are_refused(tmp_path, places, message):
    with pytest.raises(UserError, match=message):
        merge(tiles(tmp_path, *places), tmp_path / "a.h5")
    assert not list(tmp_path.glob("a.h5*"))


def test_nowhere_to_write(tmp_path):
    with pytest.raises(UserError, match="a.h5 cannot be written"):
        merge(tiles(tmp_path, (0, 2)), tmp_path / "no" / "a.h5")


def test_shifted_tile_is_refused(tmp_path):
    parts = tiles(tmp_path, (0, 3))
    for shift in (0.3, 5.0, -2.0):
        other = write(tmp_path / "b.h5", time=1035.0 + shift + 10 * np.arange(3))
        with pytest.raises(UserError, match="solution 0 of it, at .* is not on the grid of 10 s"):
            merge([*parts, other], tmp_path / "a.h5")


def test_hole_within_a_tile_is_refused(tmp_path):
    part = write(tmp_path / "b.h5", n=4, time=1005.0 + np.array([0.0, 10, 30, 40]))
    with pytest.raises(UserError, match="solution 2 of it, at 1035.000"):
        merge([part], tmp_path / "a.h5")


def test_grid_notices_what_the_files_cannot_tell(tmp_path):
    parts = tiles(tmp_path, (0, 2), (2, 2), (4, 1))
    grid = Grid.of(["t0", "t1", "t2"], [2, 2, 1], start_s=1000.0, interval_s=10.0)
    assert merge(parts, tmp_path / "a.h5", grid)["n_solutions"] == 5
    with pytest.raises(UserError, match="t0001.h5 holds solutions 2 to 3, but chunk t1 has 2 to 4"):
        merge(parts, tmp_path / "a.h5", Grid.of(["t0", "t1", "t2"], [2, 3, 1], interval_s=10.0))
    with pytest.raises(UserError, match="t0001.h5 holds solutions 2 to 3, but chunk t0 has 0 to 1"):
        merge([parts[1], parts[0], parts[2]], tmp_path / "a.h5", grid)
    with pytest.raises(UserError, match="2 h5parms cannot be 3 chunks"):
        merge(parts[:2], tmp_path / "a.h5", grid)
    with pytest.raises(UserError, match="solution 0 of it"):
        merge(parts, tmp_path / "a.h5", Grid.of("abc", [2, 2, 1], start_s=1003.0, interval_s=10.0))


def test_known_gaps_become_flagged_solutions(tmp_path):
    parts = tiles(tmp_path, (1, 2), (5, 1), axes=["ant", "time"])
    grid = Grid((Tile("t0", 1, 2), Tile("t1", 5, 1)), 1000.0, 10.0, gaps=((0, 1), (3, 2)))
    found = merge(parts, tmp_path / "a.h5", grid)
    merged, whole = arrays(tmp_path / "a.h5"), arrays(write(tmp_path / "w.h5", n=6, axes=["ant", "time"]))
    np.testing.assert_array_equal(merged["time"], whole["time"])
    gap = [True, False, False, True, True, False]
    assert np.isnan(merged["val"][:, gap]).all()
    assert not merged["weight"][:, gap].any()
    np.testing.assert_array_equal(merged["val"][:, [1, 2, 5]], whole["val"][:, [1, 2, 5]])
    assert (found["n_empty"], found["finite_fraction"]) == (3, 0.5)


@pytest.mark.parametrize("lost", [[0], [1], [2], [0, 2]])
def test_failed_chunks_become_flagged_solutions(tmp_path, lost):
    history = "CREATE by DP3"
    parts = tiles(tmp_path, (0, 2), (2, 3), (5, 1), history=history)
    whole = arrays(write(tmp_path / "w.h5", n=6))
    grid = Grid.of(["t0", "t1", "t2"], [2, 3, 1], start_s=1000.0, interval_s=10.0)
    chunks = [None if i in lost else part for i, part in enumerate(parts)]
    found = merge(chunks, tmp_path / "a.h5", grid)
    names = [f"t{i}" for i in lost]
    assert found["failed_chunks"] == names
    merged = arrays(tmp_path / "a.h5")
    flagged = np.isin([0, 0, 1, 1, 1, 2], lost)
    np.testing.assert_array_equal(merged["time"], whole["time"])
    np.testing.assert_array_equal(merged["val"][~flagged], whole["val"][~flagged])
    assert np.isnan(merged["val"][flagged]).all()
    np.testing.assert_array_equal(merged["weight"] == 0, np.broadcast_to(flagged[:, None, None, None], (6, 2, 3, 1)))
    with h5py.File(tmp_path / "a.h5") as file:
        history = file["sol000/phase000/val"].attrs["HISTORY000"].decode()
    assert history.startswith("CREATE by DP3\nmerged along time")
    assert history.rstrip().endswith(f"because it failed: {', '.join(names)}")


def test_failed_chunks_need_a_good_one_and_a_grid(tmp_path):
    parts = tiles(tmp_path, (0, 2), (2, 2))
    grid = Grid.of(["t0", "t1"], [2, 2], start_s=1000.0, interval_s=10.0)
    with pytest.raises(UserError, match="all 2 chunks of .*a.h5 failed"):
        merge([None, None], tmp_path / "a.h5", grid)
    with pytest.raises(ValueError, match="start_s and interval_s"):
        merge([parts[0], None], tmp_path / "a.h5", Grid.of(["t0", "t1"], [2, 2]))
    with pytest.raises(ValueError, match="only a grid"):
        merge([parts[0], None], tmp_path / "a.h5")
    with pytest.raises(UserError, match="t0000.h5 holds solutions 0 to 1, but chunk t1 has 2 to 3"):
        merge([None, parts[0]], tmp_path / "a.h5", grid)
    assert not list(tmp_path.glob("a.h5*"))


@pytest.mark.parametrize("gaps", [((2, 1),), ((5, 1),)])
def test_grids_that_do_not_close_are_refused(gaps):
    with pytest.raises(ValueError, match="do not follow each other"):
        Grid((Tile("a", 0, 2), Tile("b", 4, 1)), 0.0, 1.0, gaps)


def test_frequency_jitter_is_harmless(tmp_path):
    parts = tiles(tmp_path, (0, 2)) + [write(tmp_path / "b.h5", first=2, freq=[140e6 + 1e-3, 141e6 - 1e-3])]
    merge(parts, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["sol000/phase000/freq"][:].tolist() == [140e6, 141e6]
        assert file["sol000/phase000/val"].shape == (4, 2, 3, 1)
    other = write(tmp_path / "c.h5", first=2, freq=[140e6, 141.2e6])
    with pytest.raises(UserError, match="c.h5 does not fit .* other frequencies .141200000.000 Hz, not 141000000.000"):
        merge([parts[0], other], tmp_path / "a.h5")
    other = write(tmp_path / "d.h5", first=2, freq=[140e6, 141e6, 142e6])
    with pytest.raises(UserError, match="d.h5 does not fit .* has 3 frequencies, not 2"):
        merge([parts[0], other], tmp_path / "a.h5")


def test_merge_needs_room(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=20_000))
    with pytest.raises(UserError, match="a.h5 cannot be written: it may take .* 0.0 MB are free"):
        merge(tiles(tmp_path, (0, 2)), tmp_path / "a.h5")
    assert not list(tmp_path.glob("a.h5*"))


def test_antennas_and_directions_are_put_in_order_by_name(tmp_path):
    first = write(tmp_path / "t0.h5", dir=["[a]", "[b]"])
    other = write(tmp_path / "t1.h5", first=2, ant=["RS003", "CS001", "CS002"], dir=["[b]", "[a]"])
    with h5py.File(other, "r+") as file:  # stations are where they were
        rows = file["sol000/antenna"][:]
        rows["position"][:, 0] = [2, 0, 1]
        file["sol000/antenna"][:] = rows
        file["sol000/phase000/val"][:] = file["sol000/phase000/val"][:][..., ::-1]
    whole = write(tmp_path / "whole.h5", n=4, dir=["[a]", "[b]"])
    merge([first, other], tmp_path / "a.h5")
    np.testing.assert_array_equal(arrays(tmp_path / "a.h5")["val"], arrays(whole)["val"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ant": ["CS001", "CS002", "RS004"]}, "sol000/antenna differs in RS003, RS004"),
        ({"ant": ["CS001", "CS002"]}, "sol000/antenna differs in RS003"),
        ({"dir": ["[q]"]}, r"another axis dir \(\[p0\], \[q\]\)"),
        ({"tables": ["phase000", "tec000"]}, "sol000 has antenna, phase000, tec000"),
        ({"n_pol": 2}, "another kind or other axes"),
        ({"kinds": {"phase000": "scalarphase"}}, "another kind"),
        ({"solsets": ["sol001"]}, "has sol001, not sol000"),
    ],
)
def test_other_content_is_refused(tmp_path, changes, message):
    parts = tiles(tmp_path, (0, 2)) + [write(tmp_path / "odd.h5", first=2, **changes)]
    with pytest.raises(UserError, match=f"odd.h5 does not fit the other chunks: .*{message}"):
        merge(parts, tmp_path / "a.h5")
    assert not list(tmp_path.glob("a.h5*"))


def test_merge_holds_one_chunk_in_memory(tmp_path):
    frequencies = np.linspace(1e8, 2e8, 2000)
    parts = tiles(tmp_path, *((20 * i, 20) for i in range(30)), freq=frequencies)  # 1 MB each
    tracemalloc.start()
    merge(parts, tmp_path / "a.h5")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a.h5").stat().st_size > 40e6
    assert peak < 30e6  # `check` reads blocks of 16 MB


# ---- DP3 itself -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """Solutions of one run over everything (0) and of chunks of 4 and of 6 slots, in every mode."""
    folder = tmp_path_factory.mktemp("solved")
    tiny_ms.make_ms(folder / "in.ms", n_slots=N_SLOTS, interval_s=INTERVAL)
    tiny_ms.write_sky_model(folder / "sky.txt")
    cut = {4: [(0, 4), (4, 4), (8, 3)], 6: [(0, 6), (6, 5)]}
    chunks = {n: [solve(folder / f"c{n}-{c[0]}", MODES, chunk=c) for c in cs] for n, cs in cut.items()}
    return {0: [solve(folder / "whole", MODES)], **chunks}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("length", [4, 6])
def test_merged_chunks_equal_one_solve_bit_for_bit(solved, tmp_path, mode, length):
    parts = [chunk[mode] for chunk in solved[length]]
    counts = [-(-n // SOLINT) for n in ({4: (4, 4, 3), 6: (6, 5)}[length])]
    names = [f"t{i:04d}" for i in range(len(parts))]
    grid = Grid.of(names, counts, start_s=START, interval_s=INTERVAL * SOLINT)
    merge(parts, tmp_path / "merged.h5", grid)
    with h5py.File(tmp_path / "merged.h5") as merged, h5py.File(solved[0][0][mode]) as whole:
        assert merged["sol000"].attrs["h5parm_version"] == b"1.0"
        names = []
        whole.visit(names.append)
        assert sorted(names) == sorted(merged_names(merged))
        for name in names:
            attributes = {k: v for k, v in whole[name].attrs.items() if k != "HISTORY000"}
            assert attributes == {k: v for k, v in merged[name].attrs.items() if k != "HISTORY000"}
            if isinstance(whole[name], h5py.Dataset):
                assert whole[name].id.get_type() == merged[name].id.get_type()
                assert whole[name][()].tobytes() == merged[name][()].tobytes(), name


def merged_names(file):
    names = []
    file.visit(names.append)
    return names


def test_bytes_do_not_depend_on_cutting_or_clock(solved, tmp_path):
    for length, counts in ((4, [2, 2, 2]), (6, [3, 3])):
        parts = [chunk["diagonal"] for chunk in solved[length]]
        grid = Grid.of([str(p) for p in parts], counts, start_s=START, interval_s=INTERVAL * SOLINT)
        merge(parts, tmp_path / f"{length}.h5", grid)
        time.sleep(1.1)  # HDF5's own time stamps count seconds
    assert (tmp_path / "4.h5").read_bytes() == (tmp_path / "6.h5").read_bytes()
    with h5py.File(tmp_path / "4.h5") as file:
        history = file["sol000/phase000/val"].attrs["HISTORY000"].decode()
    assert history.startswith("CREATE by DP3")
    assert "s1.mode=diagonal" in history
    assert not re.search(r"starttime|ntimes|numthreads", history)


def test_time_axis_needs_the_grid_to_be_exact(tmp_path):
    """With LOFAR's interval, plain concatenation differs from one solve in the last place of some times."""
    tiny_ms.make_ms(tmp_path / "in.ms", n_stations=3, n_channels=1, n_slots=40, interval_s=INTERVAL)
    tiny_ms.write_sky_model(tmp_path / "sky.txt")
    whole = solve(tmp_path / "w", ["scalarphase"])["scalarphase"]
    parts = [solve(tmp_path / f"c{i}", ["scalarphase"], chunk=(i, 20))["scalarphase"] for i in (0, 20)]
    merge(parts, tmp_path / "plain.h5")
    grid = Grid.of("ab", [10, 10], start_s=START, interval_s=SOLINT * INTERVAL)
    merge(parts, tmp_path / "exact.h5", grid)
    wanted = arrays(whole)["time"]
    assert 0 < np.abs(arrays(tmp_path / "plain.h5")["time"] - wanted).max() < 2e-6
    assert arrays(tmp_path / "exact.h5")["time"].tobytes() == wanted.tobytes()


def test_dp3_applies_one_direction_of_a_merged_file(tmp_path):
    """Also: the names of stations and directions survive the merge in the form in which DP3 looks for them."""
    tiny_ms.make_ms(tmp_path / "in.ms", n_slots=4, autocorrelations=False)
    tiny_ms.write_sky_model(tmp_path / "sky.txt", n_patches=2)
    parts = [solve(tmp_path / f"c{i}", ["diagonal"], chunk=(i, 2))["diagonal"] for i in (0, 2)]
    merge(parts, tmp_path / "m.h5")
    keys = h5parm.applycal_keys(tmp_path / "m.h5", "ac", direction="p1")
    parset = {"msin": "in.ms", "msout": "out.ms", "steps": "[ac]", "ac.type": "applycal", "ac.parmdb": "m.h5"}
    tiny_ms.run_dp3(tmp_path, parset | keys)
    with h5py.File(tmp_path / "m.h5") as file:
        gains = file["sol000/amplitude000/val"][..., 1, :] * np.exp(1j * file["sol000/phase000/val"][..., 1, :])
    first, second = np.triu_indices(4, 1)
    xx = tiny_ms.read(tmp_path / "in.ms", "DATA").reshape(4, 6, 4, 4)[::2, :, :, 0].swapaxes(1, 2)
    wanted = xx / (gains[:, :, first, 0] * gains[:, :, second, 0].conj())
    got = tiny_ms.read(tmp_path / "out.ms", "DATA").reshape(4, 6, 4, 4)[::2, :, :, 0].swapaxes(1, 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)


@pytest.mark.skipif(not (LOFAR / "tNDPPP-generic.MS.tgz").is_file(), reason="the real data are not here")
def test_real_lofar_data(tmp_path):
    import tarfile

    with tarfile.open(LOFAR / "tNDPPP-generic.MS.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    ms, sky = "../tNDPPP-generic.MS", str(LOFAR / "tNDPPP-generic-skymodel.txt")
    extra = {"solint": 2, "ms": ms, "sky": sky}
    whole = solve(tmp_path / "w", ["diagonal"], **extra)["diagonal"]
    parts = [solve(tmp_path / f"c{s}", ["diagonal"], chunk=(s, n), **extra)["diagonal"] for s, n in ((0, 4), (4, 2))]
    time_column, interval = tiny_ms.read(tmp_path / ms[3:], "TIME"), tiny_ms.read(tmp_path / ms[3:], "INTERVAL")
    start = float(time_column[0] - 0.5 * interval[0])
    grid = Grid.of("ab", [2, 1], start_s=start, interval_s=float(interval[0] * 2))
    merge(parts, tmp_path / "m.h5", grid)
    for table in ("sol000/phase000", "sol000/amplitude000"):
        for name, values in arrays(whole, table).items():
            assert arrays(tmp_path / "m.h5", table)[name].tobytes() == values.tobytes()
