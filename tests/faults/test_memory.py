"""A chunk for which there is too little memory is made where there is more, or in pieces, with the same bits."""

import json
import sys

import pytest

from chunkcal import dp3
from chunkcal.cli import main
from pipeline import assert_same_bits, columns, complaints, must_run, snakemake, solutions
from tiny_ms import DP3, dp3_environment, make_ms, write_sky_model

UNIT = 4  # slots, set by the flagger's window and by the longer solution interval
STRATEGY = str(dp3.strategy_file("LOFAR"))
CONFIG = {
    "preprocess": {"steps": [{"AOFlagger": {"timewindow": UNIT, "strategy": STRATEGY}}, {"Averager": {"timestep": 2}}]},
    "calibrate": {
        "sky_model": "{ms_dir}/{obs}.skymodel",
        "solves": [
            {"name": "phase", "mode": "scalarphase", "solint_s": 20.0278016},
            {"name": "gain", "mode": "diagonal", "solint_s": 40.0556032},
        ],
    },
    "apply": {"interpolation": "nearest"},
    "chunks": {"n_slots": 16},
    "cluster": {"n_slots": 2},
    "keep_chunks": True,
}
STAGES = ("preprocess", "calibrate", "apply")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An observation of two chunks, the second one of them short, and what an undisturbed run makes of it."""
    folder = tmp_path_factory.mktemp("memory data")
    ms = make_ms(folder / "a.ms", n_slots=30)
    write_sky_model(folder / "a.skymodel")
    config = CONFIG | {"input": [str(ms)]}
    must_run(folder / "clean", config)
    return ms, config, folder / "clean/results"


def write_dp3(folder, starves):
    """Write a DP3 that finds no memory where the shell says so, and give the ``dp3`` section with it.

    ``$n`` is the number of slots that DP3 is to read, 999 if it is all there are. What it prints is what the real one
    (6.6) prints below ``ulimit -v``. Tried by planning, and for the fit, it always has enough.
    """
    script, real = folder / "DP3", f"{sys.executable} {DP3}"
    script.write_text(
        f'#!/bin/sh\nexport AIPSPATH={dp3_environment()["AIPSPATH"]}\n[ "$1" != -v ] || exec {real} -v\n'
        f'case "$PWD" in */chunkcal-check-*) exec {real} "$@";; esac\n[ ! -e corrected.ms ] || exec {real} "$@"\n'
        f'n=$(sed -n "s/^msin.ntimes=//p" "$1"); n=${{n:-999}}\n'
        f'if {starves}; then echo "MemoryError: std::bad_alloc"; exit 1; fi\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    return {"command": str(script)}


def products(results):
    found = columns(results / "a/a.ms")
    for file in sorted(results.glob("a/solutions/*.h5")):
        found |= {f"{file.name} {name}": value for name, value in solutions(file).items()}
    return found


def records(results, stage):
    return {path.stem: json.loads(path.read_text()) for path in sorted(results.glob(f"a/{stage}/*.json"))}


def test_every_stage_in_pieces(data, tmp_path, count, capsys):
    ms, config, clean = data
    config = config | {"dp3": write_dp3(tmp_path, f"[ $n -gt {UNIT} ]")}
    with count("too little memory for any chunk: runs in pieces", 6):
        output = must_run(tmp_path / "run", config)
        results = tmp_path / "run/results"
        assert_same_bits(products(results), products(clean))
    said = {f"chunkcal: {stage} a {chunk}: out of memory" for stage in STAGES for chunk in ("t0000", "t0001")}
    assert {line.partition(";")[0] for line in complaints(output)} == said
    assert not list(results.rglob("*.tmp-*"))
    for stage in STAGES:
        whole, pieces = records(clean, stage), records(results, stage)
        # 16 and 14 raw slots are halved twice; averaged, half of them are few enough.
        n = 4 if stage == "preprocess" else 2
        for chunk, record in pieces.items():
            assert record["verified"] == whole[chunk]["verified"]
            assert "pieces" not in whole[chunk]
            assert len(record["pieces"]["runs"]) == len(record["argv"]) == n
            ntimes = [piece["parsets"][0]["msin.ntimes"] for piece in record["pieces"]["runs"]]
            assert all(int(number) <= UNIT for number in ntimes)
            assert [attempt["n_pieces"] for attempt in record["attempts"]] == [1, 2, 4][: n // 2]
            assert "std::bad_alloc" in record["attempts"][0]["error"]
    log = (tmp_path / "run/logs/preprocess_chunk/a.t0000.log").read_text()
    assert "in piece4\n" in log
    cluster = (tmp_path / "run/logs/cluster.log").read_text()
    assert cluster.count("preprocess a t0000: out of memory on worker ") == 2
    # The DP3 of the run still has too little memory for a whole chunk: it is made again as it was made.
    assert main(["replay", "a", "t0001", "--results", str(results)]) == 0
    verdicts = [line for line in capsys.readouterr().out.splitlines() if "same bits in all" in line]
    assert [line.split()[0] for line in verdicts] == list(STAGES)


@pytest.mark.parametrize("stage", ["preprocess", "calibrate"])
def test_chunk_of_one_unit_fails_with_the_remedy(data, tmp_path, count, stage):
    """It is no bad chunk either: there are no solutions of NaN, however much they are wanted."""
    ms, config, clean = data
    calibrate = config["calibrate"] | {"on_bad_chunk": "flag"}
    starving = write_dp3(tmp_path, f'case "$PWD" in */{stage}/t0001*) true;; *) false;; esac')
    config = config | {"calibrate": calibrate, "chunks": {"n_slots": UNIT}, "dp3": starving}
    with count("too little memory for the shortest chunk: one line, resumes"):
        done = snakemake(tmp_path / "run", config)
        assert done.returncode != 0
        lines = [line for line in complaints(done.stdout) if f"{stage} a t0001: " in line]
        assert len(lines) == 1
        assert "(out of memory): MemoryError: std::bad_alloc; it cannot be cut into smaller pieces, because" in lines[0]
        assert f"the shortest chunk of this plan has {UNIT} slots; give each slot more memory" in lines[0]
        way = {"preprocess": "timewindow of AOFlagger", "calibrate": "solint_s"}[stage]
        assert f"fewer threads or a shorter {way}; log: " in lines[0]
        results = tmp_path / "run/results"
        assert not list(results.rglob("*.tmp-*"))
        assert not (results / f"a/{stage}/t0001.json").exists()
        assert not list(results.rglob("failed.txt"))
        write_dp3(tmp_path, "false")
        must_run(tmp_path / "run", config)
        assert_same_bits(products(results), products(clean))


def test_worker_with_more_memory_gets_the_chunk(data, tmp_path, cluster, count):
    ms, config, clean = data
    for name, limit in (("small", "1GB"), ("large", "4GB")):
        cluster.start_worker("--name", name, "--memory-limit", limit, "--resources", "subprocess_slots=1", WORKER=name)
    config = config | {
        "dp3": write_dp3(tmp_path, "[ $WORKER = small ]"),
        "cluster": {"backend": "existing", "address": cluster.address, "start_timeout_s": 60},
    }
    with count("too little memory on one of two workers", 6):
        output = must_run(tmp_path / "run", config)
        results = tmp_path / "run/results"
        assert_same_bits(products(results), products(clean))
    assert complaints(output) == []
    found = [record for stage in STAGES for record in records(results, stage).values()]
    assert {record["worker"] for record in found} == {"large"}
    moved = [record for record in found if "attempts" in record]
    assert moved
    assert {attempt["worker"] for record in moved for attempt in record["attempts"]} == {"small"}
    assert not any("pieces" in record for record in found)
    assert "it runs again on a worker with more" in (tmp_path / "run/logs/cluster.log").read_text()
