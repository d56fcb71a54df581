import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal.errors import UserError
from chunkcal.solutions import h5parm
from tiny_h5parm import solve, write

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


def test_stations_without_solutions(tmp_path):
    path = write(tmp_path / "a.h5")
    known = h5parm.describe(path).solsets["sol000"][0].antennas
    assert h5parm.applycal_keys(path, "ac", stations=known[:1]) == h5parm.applycal_keys(path, "ac")
    with pytest.raises(
        UserError, match=r"no solutions for 2 of the 3 stations \(X1, ...\); give the file of this array"
    ):
        h5parm.applycal_keys(path, "ac", stations=["X1", known[0], "X2"])


# ---- DP3 itself -----------------------------------------------------------------------------------------


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
