"""Convergence is counted in what DP3 itself prints."""

import re

import h5py
import numpy as np
import pytest

import tiny_ms
from chunkcal.dp3log import convergence
from chunkcal.quality.gate import judge
from chunkcal.quality.words import describe
from chunkcal.solutions.merge import merge

N_SLOTS, SEAM = 24, 12


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Solve two chunks well and once with one iteration; what DP3 printed, and the folder."""
    folder = tmp_path_factory.mktemp("solves")
    tiny_ms.write_sky_model(folder / "sky.txt")
    jones = np.repeat(tiny_ms.random_jones(1, 6, 4), N_SLOTS, axis=0)
    tiny_ms.make_ms(folder / "in.ms", 6, N_SLOTS, jones=jones, noise=0.3)
    logs = []
    for i in range(2):
        keys = {
            "msin": "in.ms",
            "msin.starttimeslot": i * SEAM,
            "msin.ntimes": SEAM,
            "msout": "",
            "steps": "[Slow,hasty]",
        }
        for name, maxiter in (("Slow", 100), ("hasty", 1)):
            step = {"type": "ddecal", "mode": "diagonal", "sourcedb": "sky.txt", "solint": 1, "maxiter": maxiter}
            step |= {"h5parm": f"{name}.{i}.h5", "solveralgorithm": "directioniterative", "stepsize": 0.5}
            keys |= {f"{name}.{key}": value for key, value in step.items()}
        logs.append(tiny_ms.run_dp3(folder, keys))
    return folder, logs


def test_steps_are_counted_by_name(runs):
    _, logs = runs
    for log in logs:
        assert convergence(log) == {"Slow": {"n": 12, "converged": 12}, "hasty": {"n": 12, "converged": 0}}


def test_the_last_run_that_ended_counts(runs):
    _, (log, _) = runs
    shorter = log.replace("Iterations taken: [2,", "Iterations taken: [")
    assert convergence(log + shorter)["hasty"] == {"n": 11, "converged": 0}
    assert convergence(log + log.partition("Processing")[0]) == convergence(log)
    assert convergence(log.partition("Processing")[0]) == {}


def test_approximate_iterations_and_steps_of_other_kinds_do_not_count(runs):
    _, (log, _) = runs
    taken = next(line for line in log.splitlines() if line.startswith("Iterations taken"))
    assert convergence(log.replace(taken, "Iterations taken: [100|7,101|101,1]"))["Slow"] == {"n": 3, "converged": 2}
    assert convergence("   1.5% (    1 ms) Averager a.\nIterations taken: [1]\n") == {}
    assert convergence("") == {}


def test_real_solves_pass_the_gate_and_a_changed_chunk_does_not(runs):
    folder, logs = runs
    counts = [convergence(log)["Slow"] for log in logs]
    total = {key: sum(count[key] for count in counts) for key in ("n", "converged")}
    merge([folder / f"Slow.{i}.h5" for i in range(2)], folder / "merged.h5")

    def judged(**counted):
        return judge("tiny", {"Slow": folder / "merged.h5"}, {"Slow": [SEAM]}, {}, {}, counted)

    report = judged(Slow=total)
    assert describe(report) == []
    assert set(report["solves"]["Slow"]["figures"]) >= {"converged_fraction", "seam_jump", "array_phase_noise_rad"}
    with h5py.File(folder / "merged.h5", "r+") as file:
        phase = file["sol000/phase000/val"]
        values = phase[...]
        values[SEAM:, :, 3] += 0.5  # axes are time, freq, ant, dir, pol
        phase[...] = values
    report = judged(Slow=convergence(logs[0])["hasty"])
    assert report["verdict"] == "fail"
    jump, unconverged = sorted(describe(report), key=lambda line: "converged" in line)
    assert unconverged.startswith("WARN tiny, solve Slow: 0 of 12 solution intervals converged")
    assert re.search(r"station ST003: phase jumps by 0\.[45]\d+ rad between chunks t0000 and t0001", jump)
