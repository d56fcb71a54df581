import pytest

from chunkcal.errors import UserError
from chunkcal.inputs import (
    chunks_dir,
    for_observation,
    observation_name,
    refuse_output_dir,
    refuse_scratch_dir,
    resolve_observations,
)

CALIBRATE = {"sky_model": "{ms_dir}/{obs}.skymodel", "solves": []}


def config(**changes):
    return {"input": [], "observations": None, "extra_inputs_dir": None, "calibrate": None} | changes


@pytest.mark.parametrize(
    ("ms", "name"),
    [
        ("/data/L123_SB001.MS", "L123_SB001"),
        ("/data/a.ms/", "a"),
        ("/data/my 'obs\".ms", "my__obs_"),
        ("/data/-rf.ms", "rf"),
        ("/data/Ünïcode.ms", "_n_code"),
        ("/data/.ms", "observation"),
    ],
)
def test_names_are_safe(ms, name):
    assert observation_name(ms) == name


def test_glob_and_single_path(tmp_path):
    for name in ("b.ms", "a.ms", "x[1].ms"):
        (tmp_path / name).mkdir()
    rows = resolve_observations(config(input=str(tmp_path / "?.ms")))
    assert [row["obs"] for row in rows] == ["a", "b"]
    rows = resolve_observations(config(input=[str(tmp_path / "x[1].ms")]))
    assert [row["ms"] for row in rows] == [str(tmp_path / "x[1].ms")]


def test_sky_model_follows_observation_and_folder(tmp_path):
    rows = resolve_observations(config(input=str(tmp_path / "a.ms"), calibrate=CALIBRATE))
    assert rows[0]["sky_model"] == str(tmp_path / "a.skymodel")
    rows = resolve_observations(
        config(input="a.ms", calibrate=CALIBRATE | {"sky_model": "m.txt"}, extra_inputs_dir="/extra")
    )
    assert rows[0]["sky_model"] == "/extra/m.txt"


def test_sheet(tmp_path):
    sheet = tmp_path / "o.tsv"
    sheet.write_text("obs\tms\tsky_model\tband_of\none\t/d/1.ms\t/m/1\twhole\n\t/d/2.ms\t\t\n")
    rows = resolve_observations(config(observations=str(sheet), calibrate=CALIBRATE))
    nothing = {"h5parm": None, "chunk_s": None, "reference_station": None}
    assert rows == [
        {"obs": "one", "ms": "/d/1.ms", "sky_model": "/m/1", "band_of": "whole"} | nothing,
        {"obs": "2", "ms": "/d/2.ms", "sky_model": "/d/2.skymodel", "band_of": None} | nothing,
    ]


def test_sheet_with_what_is_an_observations_own(tmp_path):
    sheet = tmp_path / "o.tsv"
    sheet.write_text("ms\th5parm\tchunk_s\treference_station\n/d/1.ms\tcal.h5\t1e3\tCS002\n/d/2.ms\t\t\t\n")
    solve = {"process": [{"reference": {"station": "auto"}}]}
    calibrate = CALIBRATE | {"solves": [solve]}
    first, second = resolve_observations(
        config(observations=str(sheet), calibrate=calibrate, extra_inputs_dir="/extra")
    )
    assert (first["h5parm"], first["chunk_s"], first["reference_station"]) == ("/extra/cal.h5", 1000.0, "CS002")
    assert (second["h5parm"], second["chunk_s"], second["reference_station"]) == (None, None, None)
    with pytest.raises(UserError, match="reference_station is CS002, but no solve"):
        resolve_observations(config(observations=str(sheet), calibrate=CALIBRATE | {"solves": [{"process": []}]}))


def test_a_section_for_one_observation():
    row = {"obs": "a", "ms": "/d/x.ms", "h5parm": "/h/a.h5"}
    section = {"steps": [{"ApplyCal": {"parmdb": "{h5parm}"}}, {"n": 3, "p": "{ms_dir}/{obs}.h5"}], "other": None}
    own = for_observation(section, row)
    assert own == {"steps": [{"ApplyCal": {"parmdb": "/h/a.h5"}}, {"n": 3, "p": "/d/a.h5"}], "other": None}
    with pytest.raises(UserError, match=r"a: .*fill the column h5parm"):
        for_observation(section, row | {"h5parm": None})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("obs\tmss\na\tb\n", "wanted: ms"),
        ("ms\tchunk_s\na.ms\tlong\n", "line 2: chunk_s 'long' is not a length"),
        ("ms\tchunk_s\na.ms\t-1\n", "line 2: chunk_s '-1' is not a length"),
        ("obs\tms\na\t\n", "line 2: the column ms is empty"),
        ("obs\tms\na/b\tc.ms\n", "may hold only letters"),
        ("obs\tms\n", "lists no observation"),
        ("obs\tms\na\tb.ms\na\tc.ms\n", "both called 'a'"),
    ],
)
def test_bad_sheets(tmp_path, text, words):
    sheet = tmp_path / "o.tsv"
    sheet.write_text(text)
    with pytest.raises(UserError, match=words):
        resolve_observations(config(observations=str(sheet)))


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n\xff", b"ms\tobs\na\tb\tc\n", b'ms\n"a'])
def test_files_that_are_no_sheet(tmp_path, content):
    sheet = tmp_path / "o.tsv"
    sheet.write_bytes(content)
    with pytest.raises(UserError, match=r"observations: .*o\.tsv"):
        resolve_observations(config(observations=str(sheet)))


@pytest.mark.parametrize("name", ["none.tsv", "x" * 300, "\0", ""])
def test_no_sheet(tmp_path, name):
    with pytest.raises(UserError, match="observations: .* does not exist"):
        resolve_observations(config(observations=str(tmp_path / "dir" / name)))


def test_same_name_twice_is_refused_with_both_paths(tmp_path):
    with pytest.raises(UserError, match=r"/x/a\.ms and /y/a\.MS"):
        resolve_observations(config(input=["/x/a.ms", "/y/a.MS"]))


def test_braces_are_left_to_workflows():
    with pytest.raises(UserError, match=r"input: /x/a\{1\}\.ms has braces"):
        resolve_observations(config(input="/x/a{1}.ms"))
    with pytest.raises(UserError, match=r"calibrate.sky_model: /x/\{day\}\.txt has braces"):
        resolve_observations(config(input="/x/a.ms", calibrate=CALIBRATE | {"sky_model": "{ms_dir}/{day}.txt"}))


def test_nothing_found(tmp_path):
    with pytest.raises(UserError, match="no MeasurementSet matches"):
        resolve_observations(config(input=str(tmp_path / "*.ms")))
    with pytest.raises(UserError, match="no input"):
        resolve_observations(config())


def test_folders_that_products_cannot_go_to(tmp_path, monkeypatch):
    refuse_output_dir(str(tmp_path / "new/folder"))
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to("nowhere")
    for name in ("file", "file/results", "broken"):
        with pytest.raises(UserError, match=f"output_dir: .*{name} cannot be a folder, because .* is none"):
            refuse_output_dir(str(tmp_path / name))
    monkeypatch.setattr("os.access", lambda path, mode: path != str(tmp_path))
    with pytest.raises(UserError, match=f"output_dir: {tmp_path} cannot be written to"):
        refuse_output_dir(str(tmp_path / "results"))


def test_chunks_lie_in_output_dir_unless_there_is_a_scratch_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"output_dir": "results/", "scratch_dir": None, "keep_chunks": False}
    assert chunks_dir(given) == "results"
    given["scratch_dir"] = "/nvme/me"
    mine = chunks_dir(given)
    assert mine.startswith("/nvme/me/chunkcal-")
    assert chunks_dir(given | {"output_dir": str(tmp_path / "results")}) == mine
    # Another run, here or elsewhere, has another folder.
    assert chunks_dir(given | {"output_dir": "others"}) != mine
    monkeypatch.chdir("/")
    assert chunks_dir(given) != mine
    assert chunks_dir(given | {"keep_chunks": True}) == "results"


@pytest.mark.parametrize(("key", "refuse"), [("output_dir", refuse_output_dir), ("scratch_dir", refuse_scratch_dir)])
def test_a_folder_that_casacore_would_look_for_elsewhere(tmp_path, monkeypatch, key, refuse):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    for name in ("$HOME", "$NOWHERE"):
        (tmp_path / name).mkdir()
    refuse(str(tmp_path / "$NOWHERE"))
    with pytest.raises(UserError, match=rf"^{key}: .*/\$HOME names an environment variable"):
        refuse(str(tmp_path / "$HOME"))


def test_a_scratch_dir_must_be_a_folder(tmp_path):
    refuse_scratch_dir(None)
    refuse_scratch_dir(str(tmp_path))
    (tmp_path / "file").touch()
    for path, reason in ((tmp_path / "file", "is no folder"), (tmp_path / "gone", "does not exist")):
        with pytest.raises(UserError, match=f"scratch_dir: {path} {reason}"):
            refuse_scratch_dir(str(path))
