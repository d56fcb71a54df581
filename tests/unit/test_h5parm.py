import re
import time
import tracemalloc
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal import h5parm
from chunkcal.errors import UserError
from chunkcal.merge import Grid, Tile, merge

INTERVAL, SOLINT, N_SLOTS = 10.0139008, 2, 11  # the last solution interval is short
START = tiny_ms.START - INTERVAL / 2
MODES = ["scalarphase", "diagonal", "fulljones", "tec", "tecandphase", "rotation+diagonal"]
LOFAR = Path(__file__).parents[2].parent / "shared" / "data"


# ---- h5parms made by hand -------------------------------------------------------------------------------


def write(path, tables=("phase000",), first=0, n=2, *, n_pol=0, axes=None, kinds=None, **changes):
    """A little h5parm as DP3 lays it out; values tell their own place. `changes` replace axis values."""
    ants = changes.get("ant", ["CS001", "CS002", "RS003"])
    values = {
        "time": changes.get("time", 1000.0 + 10.0 * (np.arange(first, first + n) + 0.5)),
        "freq": np.array(changes.get("freq", [140e6, 141e6])),
        "ant": np.array(ants, "S6"),
        "dir": np.array(changes.get("dir", ["[p0]"]), "S128"),
        "pol": np.array(changes.get("pol", ["XX", "YY"] if n_pol == 2 else ["XX", "XY", "YX", "YY"][:n_pol]), "S2"),
    }
    axes = axes or ["time", "freq", "ant", "dir"] + ["pol"] * bool(n_pol)
    shape = [len(values[a]) for a in axes]
    with h5py.File(path, "w") as file:
        for solset in changes.get("solsets", ["sol000"]):
            root = file.create_group(solset)
            root["antenna"] = np.array([(a, (i, 0, 0)) for i, a in enumerate(ants)], "S16,3f4").astype(
                [("name", "S16"), ("position", "f4", 3)]
            )
            for k, name in enumerate(tables):
                group = root.create_group(name)
                group.attrs["TITLE"] = np.bytes_((kinds or {}).get(name, re.sub(r"\d+$", "", name)))
                for a in axes:
                    group[a] = values[a]
                # e.g. 3 012: antenna by its own number, so that re-ordering shows
                place = np.zeros(shape)
                for i, a in enumerate(axes):
                    number = {"time": values["time"], "ant": [int(x[-1:]) for x in ants]}.get(a, range(shape[i]))
                    place += (
                        np.expand_dims(np.asarray(number, float), [j for j in range(len(axes)) if j != i]) * 10.0**-i
                    )
                group["val"], group["weight"] = place + k, np.ones(shape, "f4")
                for d in ("val", "weight"):
                    group[d].attrs["AXES"] = np.bytes_(",".join(axes))
                if "history" in changes:
                    group["val"].attrs["HISTORY000"] = np.bytes_(changes["history"])
    return path


def tiles(folder, *places, **changes):
    return [write(folder / f"t{i:04d}.h5", first=first, n=n, **changes) for i, (first, n) in enumerate(places)]


def arrays(path, table="sol000/phase000"):
    with h5py.File(path) as file:
        return {name: file[table][name][()] for name in ("val", "weight", "time")}


# ---- describe and check ---------------------------------------------------------------------------------


def test_describe(tmp_path):
    path = write(tmp_path / "a.h5", ("amplitude000", "phase000"), n=3, n_pol=2)
    (tables,) = h5parm.describe(path).solsets.values()
    assert [(t.name, t.kind) for t in tables] == [("amplitude000", "amplitude"), ("phase000", "phase")]
    table = tables[0]
    assert (table.axes, table.shape) == (("time", "freq", "ant", "dir", "pol"), (3, 2, 3, 1, 2))
    assert table.antennas == ("CS001", "CS002", "RS003")
    assert (table.directions, table.polarizations) == (("[p0]",), ("XX", "YY"))
    assert (table.frequency_range, table.time_range) == ((140e6, 141e6), (1005.0, 1025.0))
    assert (table.length("pol"), table.length("elsewhere")) == (2, 1)


def test_check_counts_what_applycal_would_use(tmp_path):
    path = write(tmp_path / "a.h5", ("error000", "tec000"), n=4, axes=["ant", "time", "dir", "freq"])
    with h5py.File(path, "r+") as file:
        file["sol000/tec000/val"][:, 1] = np.nan
        file["sol000/tec000/weight"][0, 2, 0, 0] = 0
        file["sol000/error000/val"][:] = np.nan  # no correction, does not count
    found = h5parm.check(path, 4)
    assert found["finite_fraction"] == pytest.approx((24 - 6 - 1) / 24)
    assert (found["n_solutions"], found["n_empty"], found["first_time"], found["interval_s"]) == (4, 1, 1005.0, 10.0)
    assert found["tables"]["sol000/tec000"]["shape"] == [3, 4, 1, 2]
    with pytest.raises(UserError, match="has 4 solution intervals instead of 5"):
        h5parm.check(path, 5)


def test_blocks_do_not_change_the_count(tmp_path, monkeypatch):
    path = write(tmp_path / "a.h5", n=7)
    with h5py.File(path, "r+") as file:
        file["sol000/phase000/val"][3:5] = np.nan
    whole = h5parm.check(path)
    monkeypatch.setattr(h5parm, "_BLOCK_BYTES", 1)
    assert h5parm.check(path) == whole
    assert whole["n_empty"] == 2


def damage_axes(file):
    file["sol000/phase000/val"].attrs["AXES"] = np.bytes_("time,ant,freq,dir")


def damage_length(file):
    del file["sol000/phase000/time"]
    file["sol000/phase000/time"] = [1.0]


def damage_order(file):
    file["sol000/phase000/time"][:] = [2.0, 1.0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_axes, "AXES time,ant,freq,dir of val"),
        (damage_length, "axis time has"),
        (damage_order, "time does not increase at solution 1"),
        (lambda f: f["sol000/phase000"].attrs.pop("TITLE"), "no attribute TITLE"),
        (lambda f: f["sol000/phase000"].pop("weight"), "no dataset 'weight'"),
        (lambda f: f["sol000/phase000"].pop("freq"), "axis freq has no dataset"),
        (lambda f: f["sol000"].pop("phase000"), "no solution tables"),
    ],
)
def test_malformed_files_are_refused(tmp_path, damage, message):
    path = write(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(UserError, match=message) as error:
        h5parm.check(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        h5parm.describe(tmp_path / "no.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(UserError, match="cannot be opened"):
        h5parm.describe(tmp_path / "text.h5")


# ---- what applycal is told ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        ({"tables": ["phase000"]}, {"correction": "phase000"}),
        ({"tables": ["amplitude001"], "n_pol": 2}, {"correction": "amplitude001"}),
        ({"tables": ["phase000", "error000"]}, {"correction": "phase000"}),
        (
            {"tables": ["amplitude000", "phase000"], "n_pol": 2},
            {"steps": "[amp,phase]", "amp.correction": "amplitude000", "phase.correction": "phase000"},
        ),
        (
            {"tables": ["phase000", "amplitude000"], "n_pol": 4},
            {"correction": "fulljones", "soltab": "[amplitude000,phase000]"},
        ),
        (
            {"tables": ["phase000", "tec000"], "freq": [140e6]},
            {"steps": "[phase,tec]", "phase.correction": "phase000", "tec.correction": "tec000"},
        ),
        ({"tables": ["clock000"]}, {"correction": "clock000"}),
        ({"tables": ["rotationmeasure000"]}, {"correction": "rotationmeasure000"}),
        (
            {"tables": ["amplitude000", "rotation000", "phase000"], "history": "x: CREATE by DP3 6.6.0"},
            {
                "steps": "[amp,phase,rotation]",
                "amp.correction": "amplitude000",
                "phase.correction": "phase000",
                "rotation.correction": "rotation000",
            },
        ),
    ],
)
def test_applycal_keys(tmp_path, file, keys):
    path = write(tmp_path / "a.h5", **file)
    assert h5parm.applycal_keys(path, "ac") == {f"ac.{key}": value for key, value in keys.items()}


def test_applycal_options_go_where_dp3_reads_them(tmp_path):
    path = write(tmp_path / "a.h5", ("amplitude000", "phase000"), dir=["[p0]", "[p1]"], solsets=["sol000", "sol001"])
    assert h5parm.applycal_keys(path, "ac.", "sol001", direction="p1", interpolation="linear", invert=False) == {
        "ac.solset": "sol001",
        "ac.direction": "[p1]",
        "ac.steps": "[phase,amp]",
        "ac.phase.correction": "phase000",
        "ac.amp.correction": "amplitude000",
        "ac.phase.interpolation": "linear",
        "ac.amp.interpolation": "linear",
    }


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ({"solsets": ["sol000", "sol001"]}, "several solution sets .sol000, sol001.*`solset`"),
        ({"tables": ["phase000", "phase001"]}, "phase000 and phase001 are both of kind phase.*`correction`"),
        ({"tables": ["phase000"], "n_pol": 4}, "phase000 look like full-Jones"),
        ({"tables": ["amplitude000", "phase000", "tec000"], "n_pol": 4}, "tec000 .* has 4 polarizations"),
        ({"tables": ["phase000", "tec000"]}, "tec000 may be a fit to phase000"),
        ({"tables": ["gain000"]}, "cannot apply table gain000"),
        ({"tables": ["phase000"], "n_pol": 2, "pol": ["YY", "XX"]}, "YY, XX, which DP3 would mix up"),
        ({"tables": ["phase000"], "n_pol": 3}, "has 3 polarizations"),
        ({"tables": ["phase000"], "axes": ["freq", "time", "ant", "dir"]}, "DP3 needs time before freq"),
        ({"tables": ["phase000"], "dir": ["[p0]", "[p1]"]}, r"2 directions \(\[p0\], \[p1\]\).*`direction`"),
        (
            {"tables": ["rotation000", "phase000"], "n_pol": 2, "kinds": {"rotation000": "rotation"}},
            "rotation000 .* has 2 polarizations",
        ),
    ],
)
def test_files_with_several_readings_are_refused(tmp_path, file, reason):
    path = write(tmp_path / "a.h5", **file)
    with pytest.raises(UserError, match=reason) as error:
        h5parm.applycal_keys(path, "ac")
    assert str(path) in str(error.value)


def test_order_of_rotation_and_diagonal_is_only_known_of_dp3(tmp_path):
    path = write(tmp_path / "a.h5", ["phase000"], n_pol=2)
    with h5py.File(write(tmp_path / "b.h5", ["rotation000"])) as b, h5py.File(path, "r+") as a:
        b.copy("sol000/rotation000", a["sol000"])
    with pytest.raises(UserError, match="the order of phase000, rotation000 matters"):
        h5parm.applycal_keys(path, "ac")


def test_directions_of_other_programs_have_no_brackets(tmp_path):
    path = write(tmp_path / "a.h5", dir=["pointing", "target"])
    assert h5parm.applycal_keys(path, "ac", direction="target")["ac.direction"] == "target"


def test_wrong_direction_and_solset(tmp_path):
    path = write(tmp_path / "a.h5")
    with pytest.raises(UserError, match=r"no direction \[p7\] but \[p0\]"):
        h5parm.applycal_keys(path, "ac", direction="p7")
    with pytest.raises(UserError, match="no solution set 'sol7' but sol000"):
        h5parm.applycal_keys(path, "ac", "sol7")


# ---- merging files made by hand -------------------------------------------------------------------------


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
    with pytest.raises(UserError, match="c.h5 does not fit .* other frequencies"):
        merge([parts[0], other], tmp_path / "a.h5")


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


def dp3_time(slot):
    """A quarter of a slot early: DP3 takes the next slot, however the digits round."""
    moment = datetime(1858, 11, 17) + timedelta(seconds=tiny_ms.START + (slot - 0.25) * INTERVAL)
    return f"{moment:%Y/%m/%d/%H:%M:%S.%f}"


def solve(folder, modes, ms="../in.ms", sky="../sky.txt", chunk=None, **extra):
    """Solve in several modes in one run; returns the h5parm of each mode."""
    folder.mkdir(exist_ok=True)
    keys = {"msin": ms, "steps": f"[{','.join(f's{i}' for i in range(len(modes)))},null]"}
    for i, mode in enumerate(modes):
        step = {"type": "ddecal", "mode": mode, "h5parm": f"s{i}.h5", "sourcedb": sky, "solint": SOLINT, "nchan": 1}
        keys |= {f"s{i}.{key}": value for key, value in (step | extra).items()}
    if chunk:
        keys |= {"msin.starttime": dp3_time(chunk[0]), "msin.ntimes": chunk[1]}
    tiny_ms.run_dp3(folder, keys)
    return {mode: folder / f"s{i}.h5" for i, mode in enumerate(modes)}


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


def rotations(angles):
    c, s = np.cos(angles), np.sin(angles)
    return np.stack([np.stack([c, -s], -1), np.stack([s, c], -1)], -2).astype(complex)


def station_jones(mode, frequencies):
    """Jones matrices of a kind that the mode can solve for, (slot, station, channel, 2, 2)."""
    rng = np.random.default_rng(5)
    one = np.broadcast_to(np.eye(2), (4, len(frequencies), 2, 2)).astype(complex)
    phase = np.exp(1j * rng.normal(size=(4, 1, 1, 1)))
    amplitude = 1 + 0.3 * rng.uniform(-1, 1, size=(4, 1, 1, 1))
    gains = np.eye(2) * (rng.uniform(0.6, 1.6, (4, 1, 1, 2)) * np.exp(1j * rng.normal(size=(4, 1, 1, 2))))
    tec = np.exp(-8.44797245e9j * 0.005 * rng.normal(size=(4, 1, 1, 1)) / frequencies[:, None, None])
    turn = rotations(np.broadcast_to(rng.uniform(-0.6, 0.6, (4, 1)), (4, len(frequencies))))
    faraday = rotations(0.1 * rng.normal(size=(4, 1)) * (299792458.0 / frequencies) ** 2)
    jones = {
        "scalarphase": phase * one,
        "scalaramplitude": amplitude * one,
        "scalar": phase * amplitude * one,
        "diagonalphase": gains / np.where(gains == 0, 1, np.abs(gains)) * one,
        "diagonalamplitude": np.abs(gains) * one,
        "diagonal": gains * one,
        "fulljones": one + 0.2 * rng.normal(size=(4, 1, 2, 2, 2)).view(complex)[..., 0],
        "tec": tec * one,
        "tecandphase": tec * phase * one,
        "rotation": turn,
        "rotation+diagonal": (gains * one) @ turn,
        "faradayrotation": faraday,
    }[mode]
    return np.broadcast_to(jones, (2, *jones.shape))


@pytest.mark.parametrize(
    "mode",
    [
        "scalarphase",
        "scalaramplitude",
        "scalar",
        "diagonalphase",
        "diagonalamplitude",
        "diagonal",
        "fulljones",
        "tec",
        "tecandphase",
        "rotation",
        "rotation+diagonal",
        "faradayrotation",
    ],
)
def test_dp3_undoes_what_it_solved_for(tmp_path, mode):
    jones = station_jones(mode, 140e6 + 195312.5 * np.arange(4))
    tiny_ms.make_ms(tmp_path / "in.ms", n_slots=2, jones=jones, noise=0, autocorrelations=False)
    tiny_ms.write_sky_model(tmp_path / "sky.txt")
    extra = {"maxiter": 300, "tolerance": 1e-8}
    if mode == "faradayrotation":
        extra["faradaylimit"] = 0.5  # rad/m2; over so little bandwidth the angle would be wrapped many times
    path = solve(tmp_path / "s", [mode], **extra)[mode]
    keys = h5parm.applycal_keys(path, "ac", interpolation="linear")
    model = np.broadcast_to(tiny_ms.FLUX * np.array([1, 0, 0, 1]), (12, 4, 4))
    before = tiny_ms.read(tmp_path / "in.ms", "DATA")
    assert np.abs(before - model).max() > 1
    parset = {"msin": "in.ms", "msout": "out.ms", "steps": "[ac]", "ac.type": "applycal", "ac.parmdb": "s/s0.h5"}
    tiny_ms.run_dp3(tmp_path, parset | keys)
    np.testing.assert_allclose(tiny_ms.read(tmp_path / "out.ms", "DATA"), model, atol=1e-3)


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


@pytest.mark.parametrize(("kind", "factor"), [("clock", 2 * np.pi * 140e6), ("delay", 2 * np.pi * 140e6)])
def test_dp3_applies_clock_and_delay(tmp_path, kind, factor):
    tiny_ms.make_ms(tmp_path / "in.ms", n_stations=3, n_slots=2, n_channels=1, autocorrelations=False)
    path = write(tmp_path / "c.h5", [f"{kind}000"], ant=["ST000", "ST001", "ST002"], time=[tiny_ms.START], freq=[140e6])
    delays = np.array([0.0, 1e-9, 3e-9])
    with h5py.File(path, "r+") as file:
        file[f"sol000/{kind}000/val"][:] = delays[None, None, :, None]
    parset = {"msin": "in.ms", "msout": "out.ms", "steps": "[ac]", "ac.type": "applycal", "ac.parmdb": "c.h5"}
    tiny_ms.run_dp3(tmp_path, parset | h5parm.applycal_keys(path, "ac"))
    ratio = tiny_ms.read(tmp_path / "out.ms", "DATA") / tiny_ms.read(tmp_path / "in.ms", "DATA")
    first, second = np.triu_indices(3, 1)
    wanted = np.tile(np.exp(-1j * factor * (delays[first] - delays[second])), 2)
    np.testing.assert_allclose(ratio[:, 0, 0], wanted, atol=1e-4)


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
