import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal.errors import UserError
from chunkcal.solutions import h5parm
from chunkcal.solutions.bands import merge_bands
from chunkcal.solutions.h5layout import tables_of
from tiny_h5parm import arrays, solve, write

BANDS = {"low": [140e6, 141e6], "mid": [142e6, 143e6], "high": [144e6, 145e6]}


def band(path, frequencies, **changes):
    """A band whose values tell their frequency."""
    write(path, freq=frequencies, **changes)
    with h5py.File(path, "r+") as file:
        for group in tables_of(file["sol000"]):
            axes = group["val"].attrs["AXES"].decode().split(",")
            shape = [-1 if axis == "freq" else 1 for axis in axes]
            group["val"][...] += np.asarray(frequencies).reshape(shape) / 1e5
    return path


@pytest.mark.parametrize("axes", [["time", "freq", "ant", "dir"], ["ant", "freq", "time", "dir"]])
def test_bands_in_any_order(tmp_path, axes):
    tables = ("amplitude000", "phase000")
    parts = [band(tmp_path / f"{name}.h5", values, n=3, axes=axes, tables=tables) for name, values in BANDS.items()]
    found = merge_bands(parts, tmp_path / "a.h5")
    merge_bands([parts[2], parts[0], parts[1]], tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert (found["n_solutions"], found["finite_fraction"], found["gaps_hz"]) == (3, 1.0, [])
    for table in ("sol000/amplitude000", "sol000/phase000"):
        merged, pieces = arrays(tmp_path / "a.h5", table), [arrays(part, table) for part in parts]
        for name in ("val", "weight"):
            np.testing.assert_array_equal(merged[name], np.concatenate([p[name] for p in pieces], axis=1))
        np.testing.assert_array_equal(merged["time"], pieces[0]["time"])
        with h5py.File(tmp_path / "a.h5") as file:
            assert file[table]["freq"][:].tolist() == sum(BANDS.values(), [])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ([140e6, 141e6], "both hold solutions at 140000000.000 Hz"),
        ([140e6 + 1e-3, 141e6 - 1e-3], "both hold solutions at 140000000.001 Hz"),
        ([141e6, 142e6], "both hold solutions at 141000000.000 Hz"),
        ([140.5e6, 141.5e6], "overlap: 141000000.000 Hz of the first and 140500000.000 Hz of the second"),
        ([141.3e6, 142.3e6], "overlap: 141000000.000 Hz of the first and 141300000.000 Hz"),
    ],
)
def test_overlapping_and_duplicated_bands_are_refused(tmp_path, other, message):
    parts = [band(tmp_path / "a.h5", [140e6, 141e6]), band(tmp_path / "b.h5", other)]
    for order in (parts, parts[::-1]):
        with pytest.raises(UserError, match=message) as error:
            merge_bands(order, tmp_path / "m.h5")
        assert all(str(part) in str(error.value) for part in parts)
    assert not list(tmp_path.glob("m.h5*"))


def test_missing_subbands_are_named_and_left_out(tmp_path):
    parts = [band(tmp_path / "a.h5", BANDS["low"], history="x"), band(tmp_path / "c.h5", BANDS["high"], history="x")]
    found = merge_bands(parts, tmp_path / "m.h5")
    assert found["gaps_hz"] == [(141e6, 144e6)]
    with h5py.File(tmp_path / "m.h5") as file:
        assert file["sol000/phase000/freq"][:].tolist() == [140e6, 141e6, 144e6, 145e6]
        history = file["sol000/phase000/val"].attrs["HISTORY000"].decode()
    assert "from 2 bands by chunkcal; nothing between 141000000 and 144000000 Hz" in history


def test_gaps_between_bands_of_one_solution(tmp_path):
    parts = [band(tmp_path / f"{f}.h5", [f * 1e6]) for f in (140, 142, 143)]
    assert merge_bands(parts, tmp_path / "m.h5")["gaps_hz"] == [(140e6, 142e6)]
    assert merge_bands(parts[:1], tmp_path / "m.h5")["gaps_hz"] == []


def test_antennas_and_directions_are_put_in_order_by_name(tmp_path):
    low = band(tmp_path / "a.h5", BANDS["low"], dir=["[a]", "[b]"])
    straight = band(tmp_path / "b.h5", BANDS["mid"], dir=["[a]", "[b]"])
    turned = band(tmp_path / "c.h5", BANDS["mid"], ant=["RS003", "CS001", "CS002"], dir=["[b]", "[a]"])
    with h5py.File(turned, "r+") as file:  # stations are where they were
        rows = file["sol000/antenna"][:]
        rows["position"][:, 0] = [2, 0, 1]
        file["sol000/antenna"][:] = rows
        file["sol000/phase000/val"][:] = file["sol000/phase000/val"][:][..., ::-1]
    merge_bands([low, straight], tmp_path / "m.h5")
    merge_bands([low, turned], tmp_path / "n.h5")
    np.testing.assert_array_equal(arrays(tmp_path / "m.h5")["val"], arrays(tmp_path / "n.h5")["val"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 3}, "phase000 has 3 times, not 2"),
        ({"first": 1}, r"other times \(1015.000 MJD s, not 1005.000\)"),
        ({"ant": ["CS001", "CS002", "RS004"]}, "sol000/antenna differs in RS003, RS004"),
        ({"dir": ["[q]"]}, r"another axis dir \(\[p0\], \[q\]\)"),
        ({"n_pol": 2}, "another kind or other axes"),
        ({"tables": ["amplitude000"]}, "sol000 has amplitude000, antenna, not antenna, phase000"),
    ],
)
def test_other_content_is_refused(tmp_path, changes, message):
    parts = [band(tmp_path / "a.h5", BANDS["low"]), band(tmp_path / "odd.h5", BANDS["mid"], **changes)]
    with pytest.raises(UserError, match=f"odd.h5 does not fit the other bands: .*{message}"):
        merge_bands(parts, tmp_path / "m.h5")
    assert not list(tmp_path.glob("m.h5*"))


def test_time_jitter_is_harmless(tmp_path):
    parts = [band(tmp_path / "a.h5", BANDS["low"]), band(tmp_path / "b.h5", BANDS["mid"], time=[1005.001, 1014.999])]
    merge_bands(parts, tmp_path / "m.h5")
    assert arrays(tmp_path / "m.h5")["time"].tolist() == [1005.0, 1015.0]


@pytest.mark.parametrize("changes", [{"tables": ["tec000"]}, {"axes": ["time", "ant", "dir"]}])
def test_tables_without_solutions_along_frequency_are_refused(tmp_path, changes):
    path = write(tmp_path / "a.h5", freq=[140e6], **changes)
    with pytest.raises(UserError, match=r"a.h5, table sol000/\w+ \(\w+\) has no solutions along frequency"):
        merge_bands([path], tmp_path / "m.h5")


@pytest.mark.parametrize("frequencies", [[141e6, 140e6], [140e6, 140e6], [140e6, np.nan]])
def test_frequencies_that_do_not_increase_are_refused(tmp_path, frequencies):
    path = write(tmp_path / "a.h5", freq=frequencies)
    with pytest.raises(UserError, match="a.h5, table sol000/phase000: frequency does not increase at"):
        merge_bands([path], tmp_path / "m.h5")


def test_other_frequencies_in_the_second_table_are_refused(tmp_path):
    path = write(tmp_path / "a.h5", tables=("amplitude000", "phase000"))
    with h5py.File(path, "r+") as file:
        file["sol000/phase000/freq"][:] = [1.0, 2.0]
    with pytest.raises(UserError, match="phase000 has other frequencies than the tables before it"):
        merge_bands([path], tmp_path / "m.h5")


# ---- DP3 itself -----------------------------------------------------------------------------------------


def test_bands_solved_apart_equal_one_solve(tmp_path):
    """Also applies the merged file with DP3, which fills a missing band from its neighbours."""
    tiny_ms.make_ms(tmp_path / "in.ms", n_slots=4, n_channels=6, autocorrelations=False)
    tiny_ms.write_sky_model(tmp_path / "sky.txt")
    for start in (0, 2, 4):
        cut = {"steps": "[f]", "f.type": "filter", "f.startchan": start, "f.nchan": 2}
        tiny_ms.run_dp3(tmp_path, cut | {"msin": "in.ms", "msout": f"b{start}.ms"})
    whole = solve(tmp_path / "whole", ["diagonal"], solint=1)["diagonal"]
    parts = [solve(tmp_path / f"s{k}", ["diagonal"], ms=f"../b{k}.ms", solint=1)["diagonal"] for k in (4, 0, 2)]
    merge_bands(parts, tmp_path / "m.h5")
    for table in ("sol000/phase000", "sol000/amplitude000"):
        assert arrays(tmp_path / "m.h5", table)["val"].tobytes() == arrays(whole, table)["val"].tobytes()
    assert merge_bands(parts[:2], tmp_path / "gap.h5")["gaps_hz"] == [(140e6 + 195312.5, 140e6 + 4 * 195312.5)]
    apply = {"msin": "in.ms", "steps": "[ac]", "ac.type": "applycal"}
    for name, file in (("m", "m.h5"), ("gap", "gap.h5")):
        keys = h5parm.applycal_keys(tmp_path / file, "ac", interpolation="nearest")
        tiny_ms.run_dp3(tmp_path, apply | keys | {"msout": f"{name}.ms", "ac.parmdb": file})
    full, gap = (tiny_ms.read(tmp_path / f"{name}.ms", "DATA") for name in ("m", "gap"))
    assert not tiny_ms.read(tmp_path / "gap.ms", "FLAG").any()
    np.testing.assert_array_equal(gap[:, [0, 1, 4, 5]], full[:, [0, 1, 4, 5]])
    model = np.array([tiny_ms.FLUX, 0, 0, tiny_ms.FLUX])
    np.testing.assert_allclose(gap[:, [2, 3]], np.broadcast_to(model, gap[:, [2, 3]].shape), atol=0.3)
