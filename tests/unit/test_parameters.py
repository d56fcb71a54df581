import datetime
from pathlib import Path

import pytest

from chunkcal import dp3
from chunkcal.errors import UserError
from chunkcal.planning.parameters import flatten, link_files, value_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (False, "false"),
        (4, "4"),
        (1e-5, "1e-05"),
        (0.25, "0.25"),
        (" CS*&& ", "CS*&&"),
        ("[a, [b]]", "[a, [b]]"),
        ([1, 2.5, True], "[1,2.5,true]"),
        ([["CS001", "CS002"], ["RS*"]], "[[CS001,CS002],[RS*]]"),
        ([100, None, None, 100], "[100,,,100]"),
        (["a,b", "c]", "f(1,2)", "it's"], "['a,b','c]',f(1,2),\"it's\"]"),
        ([], "[]"),
        ([""], "['']"),
        ({"ST1": ["CS00[2-7]*", "!CS005*"], "ST2": "RS*"}, "{ST1:[CS00[2-7]*,!CS005*],ST2:RS*}"),
        (("12h31m34.5", "52d14m07.34"), "[12h31m34.5,52d14m07.34]"),
    ],
)
def test_natural_values(value, text):
    assert value_text("x", value) == text
    dp3.parset_text({"key": value_text("x", value)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), datetime.date(2020, 1, 1), None, ["a,'\""], b"x"])
def test_values_without_text(value):
    with pytest.raises(UserError, match="Step: key"):
        value_text("Step: key", value)


def test_flatten():
    assert flatten("x", {"count": {"save": True, "path": "p"}, "chan": None, "stations": {"A": ["B"]}}) == {
        "count.save": True,
        "count.path": "p",
        "stations": {"A": ["B"]},
    }
    assert flatten("x", None) == {}
    for wrong in ({"a b": 1}, {3: 1}, {"a.b": 1, "a": {"b": 2}}):
        with pytest.raises(UserError, match="x:"):
            flatten("x", wrong)


def files(folder):
    (folder / "sub dir").mkdir()
    for name in ("it's a model.skymodel", "sub dir/strange 'name\".lua", "a.fits", "b.fits"):
        (folder / name).write_text("FORMAT = Name, Ra, Dec\ns, 1:2:3, +1.2.3\n")
    (folder / "solutions.dat").write_bytes(b"\x89HDF\r\n\x1a\n...")
    (folder / "old.parmdb").mkdir()


def link(folder, step_type, values, **options):
    return link_files("Step", step_type, "step1", values, folder, **options)


def test_paths_become_safe_names(tmp_path):
    files(tmp_path)
    values, links, notes = link(tmp_path, "predict", {"sourcedb": "it's a model.skymodel", "sources": ["x.txt"]})
    assert values == {"sourcedb": "step1-sourcedb.skymodel", "sources": ["x.txt"]}
    assert links == {"step1-sourcedb.skymodel": str(tmp_path / "it's a model.skymodel")}
    assert notes == []
    values, links, _ = link(tmp_path, "aoflagger", {"strategy": "sub dir/strange 'name\".lua"})
    assert list(links) == [values["strategy"]] == ["step1-strategy.lua"]


def test_dp3_goes_by_endings(tmp_path):
    files(tmp_path)
    # An h5parm under any name must end in .h5, a table must not.
    assert link(tmp_path, "applycal", {"parmdb": "solutions.dat"})[0] == {"parmdb": "step1-parmdb.h5"}
    assert link(tmp_path, "applycal", {"amp.parmdb": "old.parmdb"})[0] == {"amp.parmdb": "step1-amp-parmdb.parmdb"}


def test_lists_of_files(tmp_path):
    files(tmp_path)
    for value in (["a.fits", "b.fits"], "[a.fits, b.fits]"):
        values, links, _ = link(tmp_path, "wgridderpredict", {"images": value})
        assert values == {"images": ["step1-images.fits", "step1-images-2.fits"]}
        assert [Path(path).name for path in links.values()] == ["a.fits", "b.fits"]


def test_what_is_missing(tmp_path):
    with pytest.raises(UserError, match=r"Step: parmdb: .*/none.h5 does not exist; .*extra_inputs_dir"):
        link(tmp_path, "applycal", {"parmdb": "none.h5"})
    with pytest.raises(UserError, match="/none.h5 does not exist$"):
        link(tmp_path, "applycal", {"parmdb": "/none.h5"})
    (tmp_path / "bad.txt").write_text("garbage\n")
    with pytest.raises(UserError, match="line 1"):
        link(tmp_path, "demixer", {"skymodel": "bad.txt"})


def test_strategies_of_the_wheel_by_name(tmp_path):
    for name in ("generic-minimal.lua", "generic-minimal"):
        _, links, _ = link(tmp_path, "aoflagger", {"strategy": name})
        assert links["step1-strategy.lua"] == str(dp3.strategies_dir() / "generic-minimal.lua")
    with pytest.raises(UserError, match="no-such"):
        link(tmp_path, "aoflagger", {"strategy": "no-such"})
    # The user's own DP3 may know it.
    assert link(tmp_path, "aoflagger", {"strategy": "no-such"}, command_is_users=True)[:2] == (
        {"strategy": "no-such"},
        {},
    )


def test_nothing_is_written_outside(tmp_path):
    for step_type, key in (("ddecal", "h5parm"), ("gaincal", "parmdb"), ("demixer", "instrumentmodel")):
        values, links, notes = link(tmp_path, step_type, {key: "/home/me/precious.h5"})
        assert "/" not in values[key]
        assert links == {}
        assert len(notes) == 1
    assert link(tmp_path, "preflagger", {"count.save": True, "count.path": "/x"})[0]["count.path"] == "."


@pytest.mark.parametrize("name", ["none.h5", "x" * 300, "\0", "a/" * 3000])
def test_files_that_do_not_exist(tmp_path, name):
    with pytest.raises(UserError, match="Step: parmdb: .* does not exist"):
        link(tmp_path, "applycal", {"parmdb": name})
