"""The simulator: what it says it wrote is in the MS, DP3 and casacore agree with it, and nothing half-made stays."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import tarfile
from importlib.resources import files
from pathlib import Path

import casacore.tables as ct
import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal import simulate as sim
from chunkcal.errors import UserError
from chunkcal.planning.skymodel import read_patches
from chunkcal.simulate import Simulation, SimulationFiles, gain, signal, simulate

SMALL = Simulation(n_stations=6, n_slots=6, n_channels=4, n_sources=6)
PERFECT = dataclasses.replace(SMALL, noise_jy=0.0, rfi=0.0, tec_tecu=0.0, amplitude_scatter=0.0, static_phase_rad=0.0)
REAL_SETS = Path(__file__).parents[3] / "shared" / "data"


def change(settings: Simulation, **values: object) -> Simulation:
    return dataclasses.replace(settings, **values)


def column(ms: Path, name: str) -> np.ndarray:
    """Read a column as [time, baseline, ...]."""
    with ct.table(str(ms), ack=False) as table:
        values, times = table.getcol(name), table.getcol("TIME")
    return values.reshape(len(np.unique(times)), -1, *values.shape[1:])


def truth(made: SimulationFiles, name: str) -> np.ndarray:
    with h5py.File(made.truth) as file:
        return file[name][:]


def crosses(made: SimulationFiles) -> np.ndarray:
    return truth(made, "antenna1") != truth(made, "antenna2")


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sim.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture(scope="module")
def perfect(tmp_path_factory) -> SimulationFiles:
    return simulate(PERFECT, tmp_path_factory.mktemp("perfect") / "sky.ms")


def test_same_seed_gives_same_bytes(tmp_path, monkeypatch):
    rich = change(SMALL, dead_stations=(2,), n_nan_rows=3, missing_slots=((1, 2),))
    first = simulate(rich, tmp_path / "a")
    monkeypatch.setattr(sim, "BLOCK_BYTES", 2 * 21 * 4 * 32)  # two slots at a time instead of all
    second = simulate(rich, tmp_path / "b")
    other = simulate(change(rich, seed=2), tmp_path / "c")
    for name in ("DATA", "UVW", "TIME", "WEIGHT_SPECTRUM", "FLAG"):
        assert column(first.ms, name).tobytes() == column(second.ms, name).tobytes()
    for name in ("tec", "amp", "phase0", "rfi", "nan"):
        assert truth(first, name).tobytes() == truth(second, name).tobytes()
        assert truth(first, name).tobytes() != truth(other, name).tobytes()
    assert first.sky_model.read_bytes() == second.sky_model.read_bytes() != other.sky_model.read_bytes()
    different = column(first.ms, "DATA")[..., 1] != column(other.ms, "DATA")[..., 1]
    assert different.mean() > 0.99


def test_slots_do_not_depend_on_what_is_missing(tmp_path):
    whole = simulate(SMALL, tmp_path / "whole")
    gaps = simulate(change(SMALL, missing_slots=((1, 2), (4, 5))), tmp_path / "gaps")
    there = [0, 2, 3, 5]
    assert truth(gaps, "slot").tolist() == there
    for name in ("TIME", "UVW", "DATA"):
        assert np.array_equal(column(whole.ms, name)[there], column(gaps.ms, name))
    times = column(gaps.ms, "TIME")[:, 0]
    start = SMALL.complete().start_mjd_s()
    assert start == 60383 * 86400 + 23 * 3600  # 2024-03-14T23:00:00
    np.testing.assert_allclose(times, start + (np.array(there) + 0.5) * 4.0, rtol=0, atol=1e-6)
    with ct.table(f"{gaps.ms}/OBSERVATION", ack=False) as table:
        np.testing.assert_allclose(table.getcell("TIME_RANGE", 0), [start, start + 24], rtol=0, atol=1e-6)


@pytest.mark.parametrize("telescope", ["lofar", "meerkat"])
def test_dp3_predicts_the_same_visibilities(tmp_path, telescope):
    made = simulate(change(PERFECT, telescope=telescope), tmp_path / "sky.ms")
    keys = {"msin": "sky.ms", "msout": "out.ms", "steps": "[predict]", "predict.sourcedb": "sky.skymodel"}
    tiny_ms.run_dp3(tmp_path, keys)
    rows = crosses(made)  # DP3 predicts 0 for autocorrelations
    data, model = (column(ms, "DATA")[:, rows] for ms in (made.ms, tmp_path / "out.ms"))
    assert np.ptp(np.angle(model[..., 0])) > 0.1  # else a wrong sign of phases could hide
    error = np.abs(data - model).max() / np.abs(model).max()
    print(f"{telescope}: DATA differ from DP3's model by {error:.1e} of its maximum")
    assert error < 5e-6
    autos = column(made.ms, "DATA")[:, ~rows]
    sources = [line.split(",") for line in made.sky_model.read_text().splitlines() if "POINT" in line]
    freq = truth(made, "freq")
    total = sum(float(s[5]) * (freq / float(s[8])) ** float(s[6].strip(" []")) for s in sources)
    np.testing.assert_allclose(autos[..., 0], np.broadcast_to(total, autos.shape[:-1]), rtol=1e-6)


def test_uvw_is_dp3s(tmp_path):
    """DP3 computes UVW itself where slots are missing."""
    whole = simulate(PERFECT, tmp_path / "whole.ms")
    simulate(change(PERFECT, missing_slots=((2, 5),)), tmp_path / "gaps.ms")
    tiny_ms.run_dp3(tmp_path, {"msin": "gaps.ms", "msout": "filled.ms", "steps": "[]"})
    ours, dp3s = column(whole.ms, "UVW"), column(tmp_path / "filled.ms", "UVW")
    assert np.abs(ours).max() > 1e4
    np.testing.assert_allclose(ours, dp3s, rtol=0, atol=1e-7)  # m


def test_data_are_model_times_true_gains(tmp_path):
    one_patch = change(PERFECT, n_patches=1)
    model = column(simulate(one_patch, tmp_path / "model").ms, "DATA").astype(complex)
    corrupted = change(one_patch, tec_tecu=0.05, amplitude_scatter=0.1, static_phase_rad=1.0)
    corrupted = change(corrupted, dead_stations=("RS210HBA",))
    made = simulate(corrupted, tmp_path / "data")
    data, gains = column(made.ms, "DATA"), gain(made.truth)
    assert gains.shape == (6, 6, 4, 2)
    assert (gains[:, 5] == 0).all()
    assert np.ptp(np.angle(gains[0, 1:5, 0, 0])) > 0.5
    p, q = truth(made, "antenna1"), truth(made, "antenna2")
    for pol, correlation in enumerate((0, 3)):
        one = gains[..., pol]
        expected = one[:, p] * model[..., correlation] * one[:, q].conj()
        assert np.abs(data[..., correlation] - expected).max() < 3e-6 * np.abs(expected).max()
    assert (data[..., 1:3] == 0).all()


def test_each_patch_has_its_own_gain(tmp_path):
    settings = change(PERFECT, n_patches=2, n_sources=2, tec_tecu=0.1)
    made = simulate(settings, tmp_path / "data")
    assert np.abs(gain(made.truth, 0) - gain(made.truth, "patch1")).max() > 0.1
    total = np.zeros((6, 21, 4), complex)
    p, q = truth(made, "antenna1"), truth(made, "antenna2")
    text = made.sky_model.read_text().splitlines()
    for patch in (0, 1):
        part = tmp_path / f"part{patch}.skymodel"
        part.write_text("\n".join([text[0], *(line for line in text if f"patch{patch}" in line)]) + "\n")
        keys = {"msin": "data.ms", "msout": f"part{patch}.ms", "steps": "[predict]", "predict.sourcedb": part.name}
        tiny_ms.run_dp3(tmp_path, keys)
        gains = gain(made.truth, patch)[..., 0]
        total += gains[:, p] * column(tmp_path / f"part{patch}.ms", "DATA")[..., 0] * gains[:, q].conj()
    rows = crosses(made)
    assert np.abs(column(made.ms, "DATA")[..., 0] - total)[:, rows].max() < 1e-5 * np.abs(total).max()


def test_dead_station_has_only_noise(tmp_path):
    settings = change(SMALL, n_slots=20, peak_jy=1e4, noise_jy=0.5, dead_stations=("CS001HBA0", 3))
    made = simulate(settings, tmp_path / "dead")
    dead = np.isin(np.arange(6), [0, 3])
    assert truth(made, "dead").tolist() == dead.tolist()
    p, q = truth(made, "antenna1"), truth(made, "antenna2")
    data, rows = column(made.ms, "DATA"), dead[p] | dead[q]
    cross = data[:, rows & (p != q)]
    assert abs(cross.real.std() / 0.5 - 1) < 0.05
    assert abs(cross.imag.std() / 0.5 - 1) < 0.05
    assert np.abs(data[:, rows]).max() < 0.5 * 7
    assert np.abs(data[:, ~rows & (p != q)][..., 0]).mean() > 1e3
    assert not truth(made, "rfi")[:, rows].any()


def test_rfi_mask_is_where_data_are_large(tmp_path):
    settings = change(SMALL, n_slots=70, n_channels=16, rfi=3.0, amplitude_scatter=0.05)
    made = simulate(settings, tmp_path / "rfi")
    mask, rows = truth(made, "rfi"), crosses(made)
    with h5py.File(made.truth) as file:
        noise = file.attrs["noise_jy"]
    sky = sum(float(line.split(",")[5]) for line in made.sky_model.read_text().splitlines() if "POINT" in line)
    # Clean: the sky with gains of 1.3 at most, and 7 sigma of complex noise. Spoilt: 3 (5 sigma + sky) less that.
    large = np.abs(column(made.ms, "DATA")[:, rows][..., 0]) > 1.4 * sky + 7 * noise
    assert np.array_equal(large, mask[:, rows])
    hit = mask.mean(axis=(1, 2))
    assert (hit == 1).sum() == 1  # a burst in every 60 slots
    assert (mask.mean(axis=(0, 1)) > 0.6).sum() == 1  # a carrier in every 40 channels
    drifting = mask.any(axis=1) & ~mask.all(axis=1)
    assert len(np.unique(np.nonzero(drifting)[1])) == 16
    assert 0.05 < mask.mean() < 0.2


@pytest.mark.parametrize("telescope", ["lofar", "meerkat"])
def test_noise_follows_the_radiometer_equation(tmp_path, telescope):
    settings = Simulation(telescope, n_stations=10, n_slots=20, n_channels=8, rfi=0.0)
    sefd = {"lofar": 3000, "meerkat": 430}[telescope]
    for factor in (1, 4):
        full = settings.complete()
        scaled = change(full, interval_s=full.interval_s * factor, channel_width_hz=full.channel_width_hz * factor)
        made = simulate(change(scaled, noise_jy=None), tmp_path / f"n{factor}")
        cross_hand = column(made.ms, "DATA")[:, crosses(made), :, 1]
        expected = sefd / np.sqrt(2 * full.interval_s * full.channel_width_hz) / factor
        for part in (cross_hand.real, cross_hand.imag):
            assert abs(part.std() / expected - 1) < 0.03  # 7200 values: 0.8 % is one sigma
        with h5py.File(made.truth) as file:
            assert file.attrs["noise_jy"] == pytest.approx(expected)
        np.testing.assert_allclose(column(made.ms, "WEIGHT_SPECTRUM"), expected**-2, rtol=1e-6)
        np.testing.assert_allclose(column(made.ms, "SIGMA"), expected, rtol=1e-6)


def test_autocorrelations_are_hermitian_and_have_system_power(tmp_path):
    made = simulate(change(SMALL, rfi=0.0, amplitude_scatter=0.0), tmp_path / "autos")
    autos = column(made.ms, "DATA")[:, ~crosses(made)]
    assert (autos[..., 0].imag == 0).all()
    assert (autos[..., 3].imag == 0).all()
    assert np.array_equal(autos[..., 2], autos[..., 1].conj())
    assert autos[..., 0].real.mean() == pytest.approx(3000, rel=0.02)
    without = simulate(change(SMALL, autocorrelations=False), tmp_path / "crosses")
    assert crosses(without).all()
    assert column(without.ms, "DATA").shape == (6, 15, 4, 4)


def test_nan_rows(tmp_path):
    made = simulate(change(SMALL, n_nan_rows=5), tmp_path / "nan")
    marked = truth(made, "nan")
    assert marked.sum() == 5
    assert np.array_equal(np.isnan(column(made.ms, "DATA")).all(axis=(2, 3)), marked)
    assert np.array_equal(np.isnan(column(made.ms, "DATA")).any(axis=(2, 3)), marked)


def test_ids_point_to_rows_and_data_are_tiled(perfect):
    targets = {
        "ANTENNA1": "ANTENNA",
        "ANTENNA2": "ANTENNA",
        "DATA_DESC_ID": "DATA_DESCRIPTION",
        "FIELD_ID": "FIELD",
        "OBSERVATION_ID": "OBSERVATION",
        "PROCESSOR_ID": "PROCESSOR",
        "STATE_ID": "STATE",
    }
    for name, subtable in targets.items():
        ids = column(perfect.ms, name)
        with ct.table(f"{perfect.ms}/{subtable}", ack=False) as table:
            assert 0 <= ids.min() <= ids.max() < table.nrows()
    with ct.table(str(perfect.ms), ack=False) as table:
        assert set(ct.required_ms_desc()) - {"_define_hypercolumn_"} <= {
            *table.colnames(),
            "_keywords_",
            "_private_keywords_",
        }
        for name in ("DATA", "FLAG", "WEIGHT_SPECTRUM", "UVW"):
            assert table.getcoldesc(name)["dataManagerType"].startswith("Tiled")
        assert set(np.unique(table.getcol("INTERVAL"))) == {4.0}
        assert not table.getcol("FLAG").any()
        for name, value in table.getkeywords().items():
            if str(value).startswith("Table:"):
                assert Path(value.removeprefix("Table: ")).parent == perfect.ms, name
    with ct.table(f"{perfect.ms}/FEED", ack=False) as table:
        assert table.getcol("ANTENNA_ID").tolist() == list(range(6))
    assert read_patches(perfect.sky_model).patches == ("patch0", "patch1", "patch2")


def test_stations_are_the_real_ones(perfect, tmp_path):
    rows = list(csv.DictReader((files("chunkcal") / "data" / "stations.csv").read_text().splitlines()))
    table = {(row["telescope"], row["station"]): [float(row[axis]) for axis in ("x_m", "y_m", "z_m")] for row in rows}
    assert len(table) == len(rows) == 124
    with ct.table(f"{perfect.ms}/ANTENNA", ack=False) as antennas:
        for name, position in zip(antennas.getcol("NAME"), antennas.getcol("POSITION"), strict=True):
            assert table["lofar", name] == position.tolist()
    if not REAL_SETS.is_dir():
        pytest.skip("no real MeasurementSets to compare the other positions with")
    for telescope, name in (("lofar", "tNDPPP-generic.MS"), ("meerkat", "tDish.MS")):
        with tarfile.open(REAL_SETS / f"{name}.tgz") as archive:
            archive.extractall(tmp_path, filter="data")
        with ct.table(str(tmp_path / name / "ANTENNA"), ack=False) as antennas:
            for station, position in zip(antennas.getcol("NAME"), antennas.getcol("POSITION"), strict=True):
                np.testing.assert_allclose(table[telescope, station], position, rtol=0, atol=0.0006)


def test_tec_screen_has_the_requested_size(monkeypatch):
    settings = Simulation(n_slots=2000, n_patches=2, n_sources=2, tec_tecu=0.2).complete()
    _, positions = signal.load_stations("lofar", 62)
    tec = signal.make_tec(settings, settings.slots(), positions, np.array([[0, 0], [0.02, 0.01]]))
    assert (tec[:, 0] == 0).all()
    far = np.argmax(np.linalg.norm(positions - positions[0], axis=1))
    assert 0.1 < tec[:, far].std() < 0.4  # two places of a screen of 0.2 differ by at most 0.28 on average
    assert tec[:, 1].std() < 0.05  # the neighbouring field
    assert np.abs(np.diff(tec[:, far], axis=0)).max() < 0.05


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"telescope": "vla"}, "lofar, meerkat"),
        ({"n_stations": 63}, "from 2 to 62"),
        ({"n_stations": 1}, "from 2 to 62"),
        ({"n_slots": 0}, "n_slots is 0"),
        ({"n_slots": 2.5}, "an integer"),
        ({"interval_s": float("nan")}, "interval_s is nan"),
        ({"n_sources": 2}, "at least 3"),
        ({"noise_jy": -1.0}, "noise_jy is -1.0"),
        ({"noise_jy": 1e-9}, "at least 1e-6 Jy"),
        ({"missing_slots": ((4, 7),)}, "4:7"),
        ({"missing_slots": ((3, 3),)}, "3:3"),
        ({"missing_slots": ((0, 3), (3, 6))}, "leaves none of the 6 slots"),
        ({"dead_stations": ("m000",)}, "m000"),
        ({"dead_stations": (6,)}, "index below 6"),
        ({"n_nan_rows": 127}, "only 126 rows"),
        ({"start": "yesterday"}, "yesterday"),
        ({"phase_centre_deg": (0.0, 91.0)}, "91"),
    ],
)
def test_senseless_settings_are_refused(tmp_path, values, message):
    with pytest.raises(UserError, match=message) as caught:
        simulate(change(SMALL, **values), tmp_path / "bad")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_command_line_makes_three_files(tmp_path, capsys):
    words = "--telescope meerkat --n-stations 4 --n-slots 8 --n-channels 2 --n-sources 3 --noise-jy 0.1 --rfi 0"
    more = "--missing-slots 2:3,5:7 --dead-stations m058,1 --phase-centre-deg 85 -31 --no-autocorrelations --seed 7"
    # A folder to be made, with what a shell would trip over.
    args = options(str(tmp_path / "new folder" / "it's.ms"), *words.split(), *more.split())
    assert sim.run(args) == 0
    assert sorted(p.name for p in (tmp_path / "new folder").iterdir()) == ["it's.ms", "it's.skymodel", "it's.truth.h5"]
    assert "4 stations, 6 baselines, 5 slots of 8 s, 2 channels, noise 0.1 Jy" in capsys.readouterr().out
    made = SimulationFiles.named(tmp_path / "new folder" / "it's")
    assert truth(made, "slot").tolist() == [0, 1, 3, 4, 7]
    assert truth(made, "dead").tolist() == [False, True, False, True]
    with h5py.File(made.truth) as file:
        settings = json.loads(file.attrs["settings"])
    assert settings["seed"] == 7
    assert settings["telescope"] == "meerkat"


def test_command_line_defaults_are_the_settings_defaults():
    args = options("x")
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Simulation)}
    assert Simulation(**given) == Simulation()
    with pytest.raises(SystemExit):
        options("x", "--missing-slots", "3-5")


def test_existing_files_are_left_alone(tmp_path):
    made = simulate(SMALL, tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"a\.ms.* exist.*--overwrite"):
        simulate(change(SMALL, seed=2), tmp_path / "a.ms")
    assert snapshot(tmp_path) == before
    made.sky_model.rename(tmp_path / "kept")
    (tmp_path / "b.skymodel").write_text("mine")
    with pytest.raises(UserError, match=r"b\.skymodel"):
        simulate(SMALL, tmp_path / "b")
    simulate(change(SMALL, seed=2), tmp_path / "a", overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ms", "a.skymodel", "a.truth.h5", "b.skymodel", "kept"]
    assert made.sky_model.read_bytes() != (tmp_path / "kept").read_bytes()


@pytest.mark.parametrize("exception", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("place", ["slot", "rename"])
def test_nothing_stays_behind(tmp_path, monkeypatch, exception, place):
    simulate(SMALL, tmp_path / "a")
    before = snapshot(tmp_path)
    calls = []

    def fail_late(real):
        def wrapper(*args):
            calls.append(args)
            if len(calls) == 4:
                raise exception("half way")
            return real(*args)

        return wrapper

    if place == "slot":
        monkeypatch.setattr(signal.Scene, "fill", fail_late(signal.Scene.fill))
    else:
        monkeypatch.setattr(sim.os, "rename", fail_late(sim.os.rename))  # the old truth is out, the new one not in
    with pytest.raises(exception, match="half way"):
        simulate(change(SMALL, seed=2), tmp_path / "a", overwrite=True)
    assert len(calls) >= 4
    assert snapshot(tmp_path) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ms", "a.skymodel", "a.truth.h5"]


def test_full_disk_and_forbidden_place_are_said_beforehand(tmp_path):
    with pytest.raises(UserError, match="GB free"):
        simulate(Simulation(n_slots=100_000, n_channels=100_000), tmp_path / "huge")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        simulate(SMALL, tmp_path / "file" / "a.ms")
    with pytest.raises(UserError, match="no name"):
        simulate(SMALL, "..")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
