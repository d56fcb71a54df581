"""The quality gate names what was made wrong, and nothing where nothing is wrong."""

import json
import re
from pathlib import Path

import h5py
import numpy as np
import pytest

from chunkcal.errors import UserError
from chunkcal.quality.gate import judge
from chunkcal.quality.limits import DEFAULTS
from chunkcal.quality.words import describe
from chunkcal.simulate.signal import TEC_PHASE

START = 4871282393.0  # MJD s


def write_h5parm(path, tables, interval_s=10.0, freqs=(140e6,), directions=("[p0]",), weights=None, axes=None):
    """Write solutions as DP3 does; `tables` maps names to arrays [time, freq, ant, dir(, pol)] or along `axes`."""
    with h5py.File(path, "w") as file:
        for name, values in tables.items():
            names = axes or ["time", "freq", "ant", "dir", "pol"][: values.ndim]
            length = dict(zip(names, values.shape, strict=True))
            group = file.create_group(f"sol000/{name}")
            group.attrs["TITLE"] = np.bytes_(re.sub(r"\d+$", "", name))
            every = {
                "time": START + interval_s * (np.arange(length["time"]) + 0.5),
                "freq": np.array(freqs),
                "ant": np.array(stations(length["ant"]), "S6"),
                "dir": np.array(directions, "S128"),
                "pol": np.array({2: ["XX", "YY"], 4: ["XX", "XY", "YX", "YY"]}.get(length.get("pol"), []), "S2"),
            }
            for axis in names:
                group[axis] = every[axis]
            group["val"] = values
            group["weight"] = np.ones(values.shape, "f4") if weights is None else weights
            for dataset in ("val", "weight"):
                group[dataset].attrs["AXES"] = np.bytes_(",".join(names))
    return path


def stations(n):
    return [f"{'CS' if i < 2 * n // 3 else 'RS'}{i:03d}" for i in range(n)]


# ---- gains ----------------------------------------------------------------------------------------------


def gains(telescope, seed, n_time, n_ant, freqs, interval_s, noise):
    """Gains with an arbitrary phase in every solution: [time, freq, ant, pol], complex.

    LOFAR: TEC that walks by up to 10 mTECU (0.6 rad) in 10 s at the remote stations, amplitudes that wander by 10 % in
    an hour. MeerKAT: phases that walk by 0.1 rad in a minute, amplitudes by 2 %.
    """
    rng = np.random.default_rng(seed)
    freqs = np.array(freqs)
    seconds = interval_s * np.arange(n_time)
    if telescope == "lofar":
        baseline = np.where(np.arange(n_ant) < 2 * n_ant // 3, 0.1, 1.0)
        walk = np.cumsum(rng.normal(size=(n_time, n_ant)), axis=0) * np.sqrt(interval_s / 10)
        phase = TEC_PHASE * (0.004 * walk * baseline)[:, None] / freqs[:, None]
        scatter, period_s = 0.1, rng.uniform(2200, 7200, (n_ant, 2))
    else:
        walk = np.cumsum(rng.normal(size=(n_time, n_ant)), axis=0) * np.sqrt(interval_s / 60)
        phase = 0.1 * walk[:, None] * freqs[:, None] / freqs.mean()
        scatter, period_s = 0.02, rng.uniform(2200, 7200, (n_ant, 2))
    turn = 2 * np.pi * seconds[:, None, None] / period_s + rng.uniform(0, 2 * np.pi, (n_ant, 2))
    amplitude = np.exp(scatter * (np.sqrt(0.5) * rng.normal(size=(n_ant, 2)) + np.sin(turn)))
    gain = amplitude[:, None] * np.exp(1j * (phase[..., None] + rng.normal(size=(n_ant, 2))))
    gain = gain + noise * rng.normal(size=(*gain.shape, 2)).view(complex)[..., 0]
    return gain * np.exp(1j * rng.uniform(0, 2 * np.pi, (n_time, len(freqs), 1, 2)))


def tables_of(gain):
    gain = gain[:, :, :, None]
    return {"amplitude000": np.abs(gain), "phase000": np.angle(gain)}


def judged(tmp_path, tables, seams=(), failed=(), convergence=None, limits=None, **layout):
    path = write_h5parm(tmp_path / "gain.h5", tables, **layout)
    by_solve = {"gain": convergence} if convergence else {}
    report = judge("obs1", {"gain": path}, {"gain": list(seams)}, limits or {}, {"gain": list(failed)}, by_solve)
    assert json.loads(json.dumps(report)) == report
    assert "nan" not in json.dumps(report).lower().replace("antenna", "")
    return report


def figures(report, *verdicts):
    found = report["solves"]["gain"]["figures"]
    return {name for name, figure in found.items() if figure["verdict"] in verdicts}


# telescope, times, stations, frequencies, interval s, solutions per chunk, noise
CASES = {
    "lofar fast": ("lofar", 120, 12, 4, 8.0, 15, 0.05),
    "lofar slow": ("lofar", 30, 12, 6, 120.0, 5, 0.02),
    "lofar noisy": ("lofar", 96, 10, 2, 32.0, 24, 0.2),
    "lofar many chunks": ("lofar", 100, 14, 1, 8.0, 4, 0.05),
    "meerkat": ("meerkat", 60, 16, 3, 8.0, 10, 0.01),
    "meerkat noisy": ("meerkat", 48, 8, 1, 64.0, 8, 0.1),
    "meerkat short": ("meerkat", 16, 8, 2, 64.0, 8, 0.02),
}


def case(name, seed):
    telescope, n_time, n_ant, n_freq, interval_s, n_chunk, noise = CASES[name]
    freqs = (140e6 if telescope == "lofar" else 1e9) * (1 + 0.01 * np.arange(n_freq))
    gain = gains(telescope, seed, n_time, n_ant, freqs, interval_s, noise)
    return gain, {"seams": range(n_chunk, n_time, n_chunk), "interval_s": interval_s, "freqs": freqs}


@pytest.mark.parametrize("name", CASES)
def test_ten_clean_seeds_raise_no_alarm(tmp_path, name):
    for seed in range(10):
        gain, layout = case(name, seed)
        report = judged(tmp_path, tables_of(gain), convergence={"n": len(gain), "converged": len(gain)}, **layout)
        assert describe(report) == []
        assert report["verdict"] == "pass"
        assert {"seam_jump", "chunk_noise", "amplitude_drift", "phase_noise_rad"} <= figures(report, "pass")


# ---- faults ---------------------------------------------------------------------------------------------

# Where a fault is put: its first solution, and its chunk's name and length.
FAULTY = {"lofar fast": (60, "t0004", 15), "meerkat": (30, "t0003", 10)}


def one_shifted(gain, chunk):
    gain[chunk.start :, :, 2] *= np.exp(0.5j)
    return "seam_jump", "CS002"


def all_but_one_shifted(gain, chunk):
    gain[chunk.start :, :, 1:] *= np.exp(0.5j)
    return "seam_jump", "CS000"  # the reference is what differs from the others


def all_scaled(gain, chunk):
    gain[chunk.start :] *= 1.5
    return "seam_jump", ""


def made_noisy(gain, chunk):
    sigma = np.median(np.abs(np.diff(np.abs(gain), axis=0))) / 0.6745 / np.sqrt(2)
    more = np.random.default_rng(3).normal(size=(*gain[chunk].shape, 2)).view(complex)[..., 0]
    gain[chunk] += np.sqrt(5**2 - 1) * sigma * more
    return "chunk_noise", ""


def all_flagged(gain, chunk):
    gain[chunk] = np.nan
    return "chunk_flagged", ""


@pytest.mark.parametrize("name", FAULTY)
@pytest.mark.parametrize("fault", [one_shifted, all_but_one_shifted, all_scaled, made_noisy, all_flagged])
def test_a_faulty_chunk_is_named_once(tmp_path, name, fault):
    gain, layout = case(name, seed=3)
    first, chunk, n = FAULTY[name]
    figure, station = fault(gain, slice(first, first + n))
    report = judged(tmp_path, tables_of(gain), **layout)
    assert figures(report, "warn", "fail") == {figure}
    where = report["solves"]["gain"]["figures"][figure]["where"]
    assert where["chunk"] == chunk
    assert where.get("station", "").startswith(station)
    (line,) = describe(report)
    assert re.search(rf"solve gain: .*{station}.*{chunk}.*{figure} .*limit", line)


def test_every_seam_that_jumps_a_little_is_noticed(tmp_path):
    gain, layout = case("meerkat", seed=3)
    rng = np.random.default_rng(5)
    for seam in layout["seams"]:  # for one station and seam it may be chance, but not for all
        gain[seam:] *= np.exp(0.1j * rng.choice([-1, 1], gain.shape[2]))[:, None]
    report = judged(tmp_path, tables_of(gain), **layout)
    assert "seam_ratio" in figures(report, "warn")
    assert figures(report, "warn", "fail") <= {"seam_ratio", "seam_jump"}


@pytest.mark.parametrize(("n_bad", "others"), [(1, []), (2, ["RS010"])])
def test_a_drifting_station_is_named(tmp_path, n_bad, others):
    gain, layout = case("meerkat", seed=4)
    gain[:, :, 3] *= np.linspace(1, 1.35, len(gain))[:, None, None]
    if n_bad == 2:
        gain[:, :, 10] *= np.linspace(1, 0.7, len(gain))[:, None, None] ** 0.9
    report = judged(tmp_path, tables_of(gain), **layout)
    assert figures(report, "warn", "fail") == {"amplitude_drift"}
    found = report["solves"]["gain"]["figures"]["amplitude_drift"]
    assert {found["where"]["station"], *found["others"]} == {"CS003", *others[:1]}
    assert report["solves"]["gain"]["stations"]["CS003"]["amplitude_drift"] == pytest.approx(np.log(1.35), abs=0.05)


def test_a_drift_that_all_stations_share_is_the_sky_models_or_the_beams(tmp_path):
    gain, layout = case("meerkat", seed=4)
    gain *= np.linspace(1, 2, len(gain))[:, None, None, None]
    assert describe(judged(tmp_path, tables_of(gain), **layout)) == []


@pytest.mark.parametrize("how", ["flagged", "silent"])
def test_a_dead_station_is_named_and_spoils_nothing_else(tmp_path, how):
    gain, layout = case("lofar fast", seed=6)
    rng = np.random.default_rng(1)
    silent = 0.01 * rng.normal(size=(*gain[:, :, 5].shape, 2)).view(complex)[..., 0]
    gain[:, :, 5] = np.nan if how == "flagged" else silent
    report = judged(tmp_path, tables_of(gain), **layout)
    assert figures(report, "warn", "fail") == {"dead_station_fraction"}
    assert report["verdict"] == "warn"
    assert report["solves"]["gain"]["figures"]["dead_station_fraction"]["where"]["station"] == "CS005"
    assert report["solves"]["gain"]["stations"]["CS005"]["is_dead"]


def test_a_station_that_is_half_flagged_by_weights_is_named(tmp_path):
    gain, layout = case("meerkat", seed=7)
    weights = np.ones((*gain.shape[:3], 1, 2), "f4")
    weights[: len(gain) // 2, :, 4] = 0
    report = judged(tmp_path, tables_of(gain), weights=weights, **layout)
    assert figures(report, "warn", "fail") == {"flagged_fraction"}
    assert report["solves"]["gain"]["figures"]["flagged_fraction"]["where"]["station"] == "CS004"
    assert report["solves"]["gain"]["stations"]["CS004"]["flagged_fraction"] == 0.5


@pytest.mark.parametrize(("converged", "verdict"), [(20, "pass"), (10, "warn"), (0, "warn")])
def test_unconverged(tmp_path, converged, verdict):
    gain, layout = case("meerkat", seed=8)
    report = judged(tmp_path, tables_of(gain), convergence={"n": 60, "converged": converged}, **layout)
    assert report["verdict"] == verdict
    assert figures(report, "warn", "fail") == ({"converged_fraction"} if converged < 20 else set())


def test_a_chunk_known_to_have_failed_is_named_once(tmp_path):
    gain, layout = case("meerkat", seed=8)
    gain[20:30] = np.nan
    report = judged(tmp_path, tables_of(gain), failed=[("t0002", 20, 10)], **layout)
    assert figures(report, "warn", "fail") == {"failed_fraction"}
    assert "t0002" in describe(report)[0]
    assert report["solves"]["gain"]["stations"]["CS000"]["flagged_fraction"] == 0


def test_random_phases_and_amplitudes_fail(tmp_path):
    gain, layout = case("meerkat", seed=9)
    gain[:] = np.random.default_rng(0).normal(size=(*gain.shape, 2)).view(complex)[..., 0]
    report = judged(tmp_path, tables_of(gain), **layout)
    assert figures(report, "fail") == {"array_phase_noise_rad", "array_amplitude_noise"}
    assert [line.split()[0] for line in describe(report)] == ["FAIL", "FAIL", "WARN", "WARN"]
    stations = report["solves"]["gain"]["stations"].values()
    # the limits that limits.py gives for pure noise
    assert np.median([one["phase_noise_rad"] for one in stations]) == pytest.approx(1.4, abs=0.07)
    assert np.median([one["amplitude_noise"] for one in stations]) == pytest.approx(0.58, abs=0.06)


# ---- layouts --------------------------------------------------------------------------------------------


def test_noise_is_that_of_a_single_solution(tmp_path):
    rng = np.random.default_rng(1)
    gain = np.exp(0.03 * rng.normal(size=(400, 2, 9, 2)) + 0.1j * rng.normal(size=(400, 2, 9, 2)))
    report = judged(tmp_path, tables_of(gain), freqs=(1e9, 1.1e9))
    for station in report["solves"]["gain"]["stations"].values():
        assert station["amplitude_noise"] == pytest.approx(0.03, rel=0.1)
        # the median of the 8 others scatters itself
        assert station["phase_noise_rad"] == pytest.approx(0.1 * np.sqrt(1 + np.pi / 2 / 8), rel=0.1)
    assert "seam_jump" not in report["solves"]["gain"]["figures"]


@pytest.mark.parametrize("axes", [["time", "ant", "dir", "freq"], ["ant", "dir", "freq", "time"]])
def test_tec_in_any_order_of_axes(tmp_path, axes):
    rng = np.random.default_rng(2)
    tec = np.cumsum(0.002 * rng.normal(size=(60, 10)), axis=0) + rng.normal(size=(60, 1))
    tec[30:, 4] += 0.1
    tec = tec[:, :, None, None].transpose([["time", "ant", "dir", "freq"].index(axis) for axis in axes])
    report = judged(tmp_path, {"error000": tec * np.nan, "tec000": tec}, range(10, 60, 10), axes=axes)
    assert figures(report, "warn", "fail") == {"seam_jump"}
    found = report["solves"]["gain"]["figures"]
    assert found["seam_jump"]["where"].items() >= {"station": "CS004", "chunk": "t0003"}.items()
    assert found["array_tec_noise_tecu"]["unit"] == "TECU"
    assert found["phase_noise_rad"]["where"]["table"] == "sol000/tec000"
    assert not {"amplitude_noise", "amplitude_drift"} & set(found)


def test_tec_and_phase_are_judged_by_what_they_add_up_to(tmp_path):
    rng = np.random.default_rng(2)
    phase = np.cumsum(0.05 * rng.normal(size=(60, 10)), axis=0)
    tec = rng.normal(size=phase.shape)  # of a narrow band: it and the phase undo each other
    pair = {"tec000": tec, "phase000": phase - TEC_PHASE / 140e6 * tec}
    tables = {name: values[:, :, None, None] for name, values in pair.items()}
    axes = ["time", "ant", "dir", "freq"]
    report = judged(tmp_path, tables, [30], axes=axes, convergence={"n": 60, "converged": 0})
    assert describe(report) == []
    assert report["solves"]["gain"]["figures"]["array_phase_noise_rad"]["value"] == pytest.approx(0.037, rel=0.2)
    tables["phase000"] = tables["phase000"] + rng.normal(size=tec.shape)[:, :, None, None] * 3
    assert "array_phase_noise_rad" in figures(judged(tmp_path, tables, [30], axes=axes), "fail")


def test_rotations_repeat_after_half_a_turn(tmp_path):
    rng = np.random.default_rng(2)
    rotation = np.pi * rng.integers(-1, 2, (60, 10)) + 0.05 * rng.normal(size=(60, 10))
    phase = 0.1 * rng.normal(size=rotation.shape)
    phase[30:, 4] += np.pi  # one and the same as a rotation by half a turn
    tables = {"phase000": phase[:, None, :, None], "rotation000": rotation[:, None, :, None]}
    report = judged(tmp_path, tables, [30], convergence={"n": 60, "converged": 0})
    assert describe(report) == []
    assert report["solves"]["gain"]["figures"]["rotation_noise_rad"]["value"] == pytest.approx(0.05, rel=0.5)


def test_the_worst_direction_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("chunkcal.quality.tables._HELD_BYTES", 1)  # one direction at a time
    monkeypatch.setattr("chunkcal.quality.tables._READ_BYTES", 4000)
    monkeypatch.setattr("chunkcal.quality.statistics._BLOCK_VALUES", 50)
    gain, layout = case("meerkat", seed=3)
    phase = np.repeat(np.angle(gain[..., :1]), 3, axis=3)  # scalarphase: time, freq, ant, dir
    phase[30:, :, 2, 1] += 0.7
    directions = ["[near]", "[far]", "[odd]"]
    report = judged(tmp_path, {"phase000": phase}, directions=directions, **layout)
    (line,) = describe(report)
    assert "station CS002: phase in direction far jumps by" in line
    assert report["solves"]["gain"]["figures"]["seam_jump"]["where"]["direction"] == "far"


def test_off_diagonals_of_full_jones_do_not_count(tmp_path):
    gain, layout = case("meerkat", seed=3)
    noise = 0.01 * np.random.default_rng(0).normal(size=(*gain.shape, 2)).view(complex)[..., 0]
    full = np.concatenate([gain[..., :1], noise, gain[..., 1:]], axis=-1)
    assert describe(judged(tmp_path, tables_of(full), **layout)) == []


@pytest.mark.parametrize(("n_time", "seams"), [(1, []), (2, [1]), (6, [3])])
def test_few_solutions_leave_figures_out(tmp_path, n_time, seams):
    gain, layout = case("meerkat", seed=3)
    phase = np.angle(gain[:n_time, :1, :, :1])
    report = judged(tmp_path, {"phase000": phase}, **layout | {"freqs": [1e9], "seams": seams})
    assert report["verdict"] == "pass"
    found = set(report["solves"]["gain"]["figures"])
    assert "flagged_fraction" in found
    assert not {"phase_noise_rad", "amplitude_drift", "seam_jump"} & found


def test_all_flagged_fails(tmp_path):
    gain, layout = case("meerkat", seed=3)
    report = judged(tmp_path, tables_of(gain * np.nan), **layout)
    assert figures(report, "fail") == {"dead_station_fraction", "array_flagged_fraction"}
    assert report["verdict"] == "fail"
    assert not {"phase_noise_rad", "seam_jump", "chunk_noise", "amplitude_drift"} & figures(report, "pass", "warn")


def test_the_worst_solve_decides(tmp_path):
    good, layout = case("meerkat", seed=3)
    bad = good.copy()
    bad[:, :, 0] = np.nan
    paths = {
        name: write_h5parm(tmp_path / f"{name}.h5", tables_of(gain), freqs=layout["freqs"])
        for name, gain in (("fast", good), ("slow", bad))
    }
    report = judge("obs1", paths, {"slow": layout["seams"]}, {}, {}, {})
    assert report["verdict"] == report["solves"]["slow"]["verdict"] == "warn"
    assert report["solves"]["fast"]["verdict"] == "pass"
    assert describe(report)[0].startswith("WARN obs1, solve slow: station CS000 is dead")


# ---- limits ---------------------------------------------------------------------------------------------


def test_limits_of_the_configuration(tmp_path):
    gain, layout = case("meerkat", seed=3)
    limits = {"phase_noise_rad": {"warn": 0.001, "fail": 0.002}, "array_phase_noise_rad": {"warn": None, "fail": None}}
    report = judged(tmp_path, tables_of(gain), limits=limits, **layout)
    found = report["solves"]["gain"]["figures"]["phase_noise_rad"]
    assert (found["verdict"], found["warn"], found["fail"]) == ("fail", 0.001, 0.002)
    assert len(found["others"]) == 10
    assert found["what"].endswith("and 5 more")
    assert figures(report, "warn", "fail") == {"phase_noise_rad"}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"phase_noise": {}}, "no figure 'phase_noise'; did you mean phase_noise_rad"),
        ({"seam_jump": 3}, "write {warn: number, fail: number}"),
        ({"seam_jump": {"warn": "3"}}, "seam_jump.warn is '3'; give a number"),
        ({"seam_jump": {"warn": 30}}, "fail .20. is stricter than warn .30."),
        ({"converged_fraction": {"fail": 0.95}}, "stricter than warn"),
    ],
)
def test_wrong_limits_are_refused(limits, message):
    with pytest.raises(UserError, match=message):
        judge("obs1", {}, {}, limits, {}, {})


def test_seams_outside_are_a_programming_error(tmp_path):
    gain, layout = case("meerkat", seed=3)
    with pytest.raises(ValueError, match="do not increase"):
        judged(tmp_path, tables_of(gain), **layout | {"seams": [10, 60]})


def test_the_page_says_what_the_limits_are():
    page = (Path(__file__).parents[2] / "docs/quality.md").read_text()
    for name, limit in DEFAULTS.items():
        if limit.warn is None:
            assert name.removeprefix("array_") in page
            continue
        cells = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |")).split("|")
        assert float(cells[2].replace("below", "")) == limit.warn
        assert (cells[3].strip() == "never") if limit.fail is None else (float(cells[3]) == limit.fail)
