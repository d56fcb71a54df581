import tracemalloc

import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal.errors import UserError
from chunkcal.solutions import h5parm
from chunkcal.solutions.merge import Grid, merge
from chunkcal.solutions.process import process
from tiny_h5parm import ALL_STEPS, INTERVAL, arrays, solve, write


def filled(path, tables, seed=1, n=40, **changes):
    """An h5parm of noisy solutions, some of them flagged and one an outlier."""
    write(path, tables, n=n, **changes)
    rng = np.random.default_rng(seed)
    with h5py.File(path, "r+") as file:
        for name in tables:
            group = file["sol000"][name]
            axes = group["val"].attrs["AXES"].decode().split(",")
            shape = dict(zip(axes, group["val"].shape, strict=True))
            # drawn in one order of axes, so that the same seed gives the same solutions in any order
            order = sorted(axes)
            values = rng.normal(size=[shape[axis] for axis in order])
            flagged = rng.uniform(size=values.shape) < 0.1
            flagged.flat[0] = True  # at the first time, so that nothing fills it
            values = {"phase": 2.9 + 0.2 * values, "amplitude": np.exp(0.5 + 0.1 * values)}.get(
                name[:-3], 0.01 * values
            )
            values[flagged] = np.nan
            turn = [order.index(axis) for axis in axes]
            group["val"][...], group["weight"][...] = values.transpose(turn), ~flagged.transpose(turn)
    return path


def content(path):
    """All but val, weight and their HISTORY: attributes, types and bytes."""
    found = {}
    with h5py.File(path) as file:

        def add(name, item):
            values = item[()].tobytes() if isinstance(item, h5py.Dataset) else None
            kind = item.id.get_type().encode() if isinstance(item, h5py.Dataset) else None
            attributes = {k: bytes(v) for k, v in item.attrs.items() if not k.startswith("HISTORY")}
            own = name.rsplit("/", 1)[-1] in ("val", "weight")
            found[name] = kind, None if own else values, attributes, getattr(item, "shape", None)

        file.visititems(add)
    return found


def test_only_solutions_and_history_change(tmp_path):
    tables = ("amplitude000", "error000", "phase000")
    source = filled(tmp_path / "a.h5", tables, n_pol=2, dir=["[a]", "[b]"], history="CREATE by DP3")
    before = source.read_bytes()
    found = process(source, tmp_path / "b.h5", ALL_STEPS)
    assert source.read_bytes() == before
    assert content(tmp_path / "b.h5") == content(source)
    for name in ("val", "weight"):
        np.testing.assert_array_equal(
            arrays(tmp_path / "b.h5", "sol000/error000")[name], arrays(source, "sol000/error000")[name]
        )
    process(source, tmp_path / "c.h5", ALL_STEPS)
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()
    with h5py.File(tmp_path / "b.h5") as file:
        history = {k: v.decode() for k, v in file["sol000/amplitude000/val"].attrs.items() if k.startswith("HISTORY")}
    assert list(history) == [f"HISTORY{k:03d}" for k in range(5)]
    assert history["HISTORY000"] == "CREATE by DP3"
    assert history["HISTORY002"].startswith("processed by chunkcal: smooth kind=gaussian, window_s=40.0: done")
    names = [step["name"] for step in found["steps"]]
    assert names == ["reference", "flag", "smooth", "interpolate", "normalise"]
    assert list(found["steps"][0]["tables"]) == ["sol000/phase000"]
    assert len(found["steps"][4]["tables"]["sol000/amplitude000"]["divided_by"]) == 2
    assert not list(tmp_path.glob("*.tmp-*"))


@pytest.mark.parametrize("axes", [["time", "ant", "dir", "freq"], ["freq", "dir", "ant", "time"], ["ant", "time"]])
@pytest.mark.parametrize("table", ["tec000", "phase000", "amplitude000"])
def test_order_of_axes_does_not_matter(tmp_path, axes, table):
    steps = [step for step in ALL_STEPS if table == "amplitude000" or "normalise" not in step]
    steps = [step for step in steps if table != "amplitude000" or "reference" not in step]
    changes = {} if len(axes) > 2 else {"freq": [140e6]}
    normal = [axis for axis in ("time", "freq", "ant", "dir") if axis in axes]
    for name, order in (("a", normal), ("b", axes)):
        process(filled(tmp_path / f"{name}.h5", [table], axes=order, **changes), tmp_path / f"{name}.out.h5", steps)
    first, second = (arrays(tmp_path / f"{name}.out.h5", f"sol000/{table}") for name in "ab")
    turn = [normal.index(axis) for axis in axes]
    for name in ("val", "weight"):
        np.testing.assert_array_equal(first[name].transpose(turn), second[name])
    assert np.isnan(first["val"]).any()
    np.testing.assert_array_equal(np.isnan(first["val"]), first["weight"] == 0)


def test_all_ways_of_flagging_become_one(tmp_path):
    source = write(tmp_path / "a.h5", ["amplitude000"], n=4)
    with h5py.File(source, "r+") as file:
        group = file["sol000/amplitude000"]
        group["weight"][0] = 0
        group["val"][1], group["val"][2] = np.inf, -1.0
    process(source, tmp_path / "b.h5", [{"normalise": None}])
    found = arrays(tmp_path / "b.h5", "sol000/amplitude000")
    assert np.isnan(found["val"]).all(axis=(1, 2, 3)).tolist() == [True, True, True, False]
    np.testing.assert_array_equal(np.isnan(found["val"]), found["weight"] == 0)


def test_auto_takes_the_station_with_the_fewest_flagged_solutions(tmp_path):
    source = write(tmp_path / "a.h5", n=4)
    with h5py.File(source, "r+") as file:
        file["sol000/phase000/val"][0, :, 0] = np.nan
        file["sol000/phase000/weight"][1:3, :, 2] = 0
    found = process(source, tmp_path / "b.h5", [{"reference": None}])
    assert found["steps"][0]["station"] == "CS002"
    assert found["steps"][0]["tables"] == {"sol000/phase000": {"n_flagged": 0}}
    assert (arrays(tmp_path / "b.h5")["val"][:, :, 1] == 0).all()


@pytest.mark.parametrize(
    ("file", "step", "message"),
    [
        (
            {"tables": ["phase000"]},
            {"normalise": None},
            r"process\[0\].normalise works on amplitude, and there are phase; leave it out",
        ),
        ({"tables": ["amplitude000"]}, {"reference": None}, "reference works on phase, .*, and there are amplitude"),
        (
            {"tables": ["rotation000"]},
            {"smooth": {"window_s": 60}},
            "a.h5: process.0..smooth cannot be done on rotation solutions, which",
        ),
        ({"tables": ["gain000"]}, {"reference": None}, "reference cannot be done on gain solutions"),
        ({"tables": ["phase000"], "n_pol": 4}, {"smooth": {"window_s": 60}}, "cannot be done on full-Jones solutions"),
        (
            {"tables": ["amplitude000"], "n_pol": 4},
            {"normalise": {"per": ["pol"]}},
            "no scale per polarization; leave pol out",
        ),
        ({"tables": ["phase000"]}, {"reference": {"station": "CS02"}}, r"no station 'CS02'; did you mean CS002\?"),
        (
            {"tables": ["phase000"]},
            {"flag": {"window_s": 30}},
            "phase000: window_s 30 of flag is narrower than 5 solutions of 10 s; give 40 or more",
        ),
        (
            {"tables": ["phase000"]},
            {"smooth": {"window_hz": 1e6}},
            "window_hz 1e.06 of smooth is narrower than 3 solutions of 1e.06 Hz; give 2e.06 or more",
        ),
        ({"tables": ["phase000"]}, {"smoth": None}, "did you mean smooth"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, file, step, message):
    source = write(tmp_path / "a.h5", **file)
    with pytest.raises(UserError, match=message) as error:
        process(source, tmp_path / "b.h5", [step])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("b.h5*"))


def test_source_and_output(tmp_path):
    source = write(tmp_path / "a.h5")
    with pytest.raises(UserError, match="cannot be processed into itself"):
        process(source, source, [{"reference": None}])
    with pytest.raises(UserError, match="b.h5 cannot be written"):
        process(source, tmp_path / "no" / "b.h5", [{"reference": None}])
    with pytest.raises(UserError, match="no.h5 does not exist"):
        process(tmp_path / "no.h5", tmp_path / "b.h5", [{"reference": None}])


def test_memory_is_a_small_multiple_of_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(h5parm, "_BLOCK_BYTES", 1 << 16)  # of `check`
    ants = [f"CS{i:03d}" for i in range(25)]
    source = filled(tmp_path / "a.h5", ("amplitude000", "phase000"), ant=ants, n=20, freq=np.linspace(1e8, 2e8, 240))
    size = 20 * 240 * 25 * 8
    steps = [
        {"reference": None},
        {"flag": {"window_s": 50}},
        {"smooth": {"kind": "gaussian", "window_s": 40}},
        {"interpolate": {"max_gap_s": 30}},
        {"normalise": None},
    ]
    tracemalloc.start()
    process(source, tmp_path / "b.h5", steps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * size


# ---- DP3 itself -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """Merged solutions of two chunks of six slots, of which the third is missing, in three modes."""
    folder = tmp_path_factory.mktemp("solved")
    tiny_ms.make_ms(folder / "in.ms", n_slots=12, autocorrelations=False)
    tiny_ms.write_sky_model(folder / "sky.txt")
    modes = ["diagonal", "fulljones", "tec"]
    chunks = [solve(folder / f"c{k}", modes, chunk=(k, 6), solint=1) for k in (0, 6)]
    grid = Grid.of("ab", [6, 6], start_s=tiny_ms.START - INTERVAL / 2, interval_s=INTERVAL)
    for mode in modes:
        merge([chunk[mode] for chunk in chunks], folder / f"{mode}.h5", grid)
    return folder


def corrected(folder, path, name):
    """Data (slot, baseline, channel, 2, 2) after DP3 has applied an h5parm, and their flags."""
    keys = h5parm.applycal_keys(path, "ac", interpolation="nearest")
    parset = {"msin": "in.ms", "msout": f"{name}.ms", "steps": "[ac]", "ac.type": "applycal", "ac.parmdb": str(path)}
    tiny_ms.run_dp3(folder, parset | keys)
    data, flags = (tiny_ms.read(folder / f"{name}.ms", column) for column in ("DATA", "FLAG"))
    return data.reshape(12, 6, 4, 2, 2), flags.reshape(12, 6, 4, 4)


def test_dp3_applies_processed_diagonal_solutions(solved, tmp_path):
    source, out = solved / "diagonal.h5", tmp_path / "out.h5"
    steps = [
        {"reference": {"station": "ST001"}},
        {"smooth": {"kind": "median", "window_s": 60}},
        {"normalise": {"per": ["dir", "pol"]}},
    ]
    with h5py.File(source) as file:  # one station loses a slot, for DP3 to flag
        assert file["sol000/phase000/val"].shape == (12, 4, 4, 1, 2)
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(source.read_bytes())
    with h5py.File(damaged, "r+") as file:
        file["sol000/phase000/val"][4, :, 2] = np.nan
    process(damaged, out, steps)
    assert content(out) == content(source)
    amplitude, phase = (arrays(out, f"sol000/{name}000")["val"] for name in ("amplitude", "phase"))
    gains = (amplitude * np.exp(1j * phase))[..., 0, :].transpose(0, 2, 1, 3)  # slot, station, channel, pol
    raw = tiny_ms.read(solved / "in.ms", "DATA").reshape(12, 6, 4, 2, 2)
    p, q = np.triu_indices(4, 1)
    wanted = raw / np.nan_to_num(gains[:, p, :, :, None] * gains[:, q, :, None, :].conj(), nan=1)
    data, flags = corrected(solved, out, "smoothed")
    lost = np.zeros((12, 6), bool)
    lost[4, (p == 2) | (q == 2)] = True
    np.testing.assert_array_equal(flags.all(axis=(2, 3)), lost)
    np.testing.assert_allclose(data[~lost], wanted[~lost], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["diagonal", "fulljones", "tec"])
def test_referenced_solutions_correct_an_unpolarized_source_as_before(solved, tmp_path, mode):
    """What referencing changes is what no visibility of the source knows."""
    source, out = solved / f"{mode}.h5", tmp_path / "out.h5"
    process(source, out, [{"reference": {"station": "ST002"}}])
    before, _ = corrected(solved, source, f"{mode}-before")
    after, flags = corrected(solved, out, f"{mode}-after")
    assert not flags.any()
    assert not np.array_equal(arrays(out, f"sol000/{'tec' if mode == 'tec' else 'phase'}000")["val"], 0)
    # XX and YY stay as they are, and the noise in XY and YX is turned.
    parallel = np.arange(2)
    np.testing.assert_allclose(after[..., parallel, parallel], before[..., parallel, parallel], rtol=1e-4)
    np.testing.assert_allclose(np.abs(after), np.abs(before), atol=1e-3)
