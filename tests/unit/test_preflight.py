"""What is in the way of a run is told at once, and telling it leaves nothing behind."""

import io
import sys
from pathlib import Path

import pytest
import yaml

from chunkcal import cli, preflight
from chunkcal.config import load_schema, validate
from chunkcal.errors import UserError
from chunkcal.planning import requests
from chunkcal.planning.plan import make_plan
from tiny_ms import DP3, dp3_environment, make_ms, write_sky_model

SCHEMA = load_schema(Path(__file__).parents[2] / "workflow/schemas/config.schema.yaml")
SOLVE = {"mode": "diagonal", "solint_s": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_ms(folder / "a.ms", n_slots=8)
    write_sky_model(folder / "a.skymodel")
    return folder


def config(data, place, steps=(), **changes):
    calibrate = {"sky_model": "{ms_dir}/a.skymodel", "solves": [SOLVE]}
    given = {"input": [str(data / "a.ms")], "output_dir": str(place / "results"), "calibrate": calibrate}
    return given | {"preprocess": {"steps": list(steps)}, "chunks": {"n_slots": 4}} | changes


def told(given):
    """Report on a configuration: the verdict and the lines."""
    stream = io.StringIO()
    passed = preflight.report(validate(given, SCHEMA), stream)
    return passed, stream.getvalue().splitlines()


def test_nothing_in_the_way(data, tmp_path):
    before = sorted(data.rglob("*"))
    passed, lines = told(config(data, tmp_path, [{"AOFlagger": {}}, {"Averager": {"timestep": 2}}]))
    assert passed
    assert lines[0].startswith("DP3 6.6")
    assert any(line.startswith("a: 8 slots of") and " chunk" in line for line in lines)
    assert lines[-1].startswith("no problem")
    assert list(tmp_path.iterdir()) == []
    assert sorted(data.rglob("*")) == before


def test_all_problems_at_once(data, tmp_path):
    (tmp_path / "results/a").mkdir(parents=True)
    (tmp_path / "results/a/thesis.tex").touch()
    (tmp_path / "sheet.tsv").write_text(f"ms\n{data / 'a.ms'}\n{tmp_path / 'gone.ms'}\n{tmp_path / 'more.ms'}\n")
    steps = [{"PhaseShift": {"phasecenter": "[somewhere, nice]"}}]
    given = config(data, tmp_path, steps, input=[], observations=str(tmp_path / "sheet.tsv"))
    passed, lines = told(given)
    assert not passed
    problems = [line for line in lines if line.startswith("problem: ")]
    wanted = ["gone.ms does not exist", "a.skymodel cannot be read", "more.ms does not exist", "thesis.tex"]
    wanted.append("DP3 fails on the first slots")
    assert [word in problem for word, problem in zip(wanted, problems, strict=True)] == [True] * 5
    assert lines[-1] == f"{len(problems)} problems; nothing was started"


def test_an_input_where_products_go(data, tmp_path):
    (tmp_path / "results/b").mkdir(parents=True)
    make_ms(tmp_path / "results/b/b.ms", n_slots=4)
    passed, lines = told(config(data, tmp_path, input=[str(tmp_path / "results/b/b.ms")], calibrate=None))
    assert not passed
    assert any("lies where products go" in line for line in lines)


def test_products_are_no_strangers(data, tmp_path):
    for name in (*preflight.requests.STAGES, "solutions", "a.ms", "a.ms.tmp-12"):
        (tmp_path / "results/a" / name).mkdir(parents=True)
    for name in ("quality.json", "provenance.json", ".nfs0001"):
        (tmp_path / "results/a" / name).touch()
    assert told(config(data, tmp_path))[0]


def test_room_on_the_disk(data, tmp_path, monkeypatch):
    def little(path):
        return type("Usage", (), {"free": 1000})

    monkeypatch.setattr(preflight.shutil, "disk_usage", little)
    passed, lines = told(config(data, tmp_path))
    assert not passed
    wanted = [line for line in lines if "1 kB free" in line]
    assert len(wanted) == 1
    # What a run has made already needs no further room.
    (tmp_path / "results/a/apply").mkdir(parents=True)
    (tmp_path / "results/a/apply/big").write_bytes(b"\0" * 10_000_000)
    assert told(config(data, tmp_path))[0]


def test_room_on_two_disks(data, tmp_path, monkeypatch):
    disks = {"results": 1, "scratch": 2}
    free = {1: 10**9, 2: 10**9}

    class Place:
        def __init__(self, folder):
            self.st_dev = next(disks[name] for name in disks if name in str(folder))

        def stat(self):
            return self

    monkeypatch.setattr(preflight, "_standing", Place)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda place: type("Usage", (), {"free": free[place.st_dev]}))
    rows = [{"obs": "a", "ms": str(data / "a.ms"), "sky_model": None}]
    plans = make_plan(rows, {"chunks": {"n_slots": 4}, "preprocess": {"steps": []}}).observations
    needs = requests.data_bytes(plans["a"])

    def problems():
        return preflight._room(plans, str(tmp_path / "results"), str(tmp_path / "scratch/chunkcal-12"), False)

    assert problems() == []
    free[2] = 1000
    assert [line.partition(":")[0] for line in problems()] == ["scratch_dir"]
    free |= {1: needs - 1, 2: needs}
    assert [line.partition(":")[0] for line in problems()] == ["output_dir"]
    # On one disk they share the room.
    free |= {1: 2 * needs - 1}
    assert problems() == []
    disks["scratch"] = 1
    assert [line.partition(":")[0] for line in problems()] == ["output_dir"]


def test_a_scratch_dir_that_is_not_there(data, tmp_path):
    passed, lines = told(config(data, tmp_path, scratch_dir=str(tmp_path / "nvme")))
    assert not passed
    assert [line for line in lines if line.startswith("problem: ")] == [
        f"problem: scratch_dir: {tmp_path / 'nvme'} does not exist; make the folder (is the disk mounted?), or choose"
        " another one"
    ]
    assert not (tmp_path / "nvme").exists()


def test_steps_that_dp3_itself_refuses(data, tmp_path):
    passed, lines = told(config(data, tmp_path, [{"PhaseShift": {"phasecenter": "[somewhere, nice]"}}]))
    assert not passed
    assert [line for line in lines if "a: preprocess: DP3 fails on the first slots" in line]


@pytest.mark.parametrize("on_bad_chunk", ["stop", "flag"])
def test_a_first_chunk_that_cannot_be_solved(data, tmp_path, on_bad_chunk):
    script = tmp_path / "DP3"
    measures = dp3_environment()["AIPSPATH"]
    fails = 'grep -q ddecal "$1" && exit 3'
    script.write_text(f'#!/bin/sh\n{fails}\nexport AIPSPATH={measures}\nexec {sys.executable} {DP3} "$@"\n')
    script.chmod(0o755)
    given = config(data, tmp_path, dp3={"command": str(script)})
    given["calibrate"]["on_bad_chunk"] = on_bad_chunk
    passed, lines = told(given)
    assert passed == (on_bad_chunk == "flag")
    assert passed or any("a: calibrate: DP3 fails on the first slots" in line for line in lines)


def test_observations_alike_are_tried_once(data, monkeypatch):
    rows = [{"obs": name, "ms": str(data / "a.ms"), "sky_model": str(data / "a.skymodel")} for name in "abc"]
    sections = {"chunks": {"n_slots": 4}, "preprocess": {"steps": []}, "dp3": {"command": "auto", "measures_dir": None}}
    plans = make_plan(rows, sections).observations
    tried = []
    monkeypatch.setattr(preflight, "_try", lambda name, *_: tried.append(name))
    preflight._trials(plans, sections["dp3"], ("preprocess",))
    assert tried == ["a"]


def test_planning_refuses_with_all_problems(data, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/notes").touch()
    rows = [
        {"obs": "a", "ms": str(data / "a.ms"), "sky_model": None},
        {"obs": "b", "ms": str(tmp_path / "b.ms"), "sky_model": None},
    ]
    sections = {"chunks": {"n_slots": 4}, "preprocess": {"steps": []}, "dp3": {"command": "auto", "measures_dir": None}}
    with pytest.raises(UserError) as caught:
        preflight.checked_plan(rows, sections, str(tmp_path))
    assert ["b.ms does not exist" in caught.value.lines[0], "notes" in caught.value.lines[1]] == [True, True]


def test_the_command(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(config(data, tmp_path)))
    assert cli.main(["check", "--configfile", "mine.yaml"]) == 0
    assert "no problem" in capsys.readouterr().out
    assert cli.main(["check", "--configfile", "mine.yaml", "--config", f"input={tmp_path / 'x.ms'}"]) == 1
    assert "problem: " in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
