import hashlib
import os
import subprocess

from chunkcal.lineage import digest


def test_file_is_what_sha256sum_says_also_after_a_change_that_keeps_size_and_time(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    os.utime(path, (1e9, 1e9))
    assert digest.of_file(path) == hashlib.sha256(b"abc").hexdigest()
    other = tmp_path / "other"
    other.write_bytes(b"abd")
    os.utime(other, (1e9, 1e9))
    other.replace(path)
    assert digest.of_file(path) == hashlib.sha256(b"abd").hexdigest()


def test_tree_is_what_sha256sum_says_and_knows_no_locks(tmp_path):
    (tmp_path / "ANTENNA").mkdir()
    (tmp_path / "table.dat").write_text("main")
    (tmp_path / "ANTENNA/table.dat").write_text("antenna")
    (tmp_path / "table.lock").write_text("1")
    lines = subprocess.run(
        ["sha256sum", "ANTENNA/table.dat", "table.dat"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert digest.of_tree(tmp_path) == hashlib.sha256(lines).hexdigest()
    before = digest.of_input(tmp_path, "full")
    (tmp_path / "table.lock").write_text("2 readers")
    assert digest.of_input(tmp_path, "full") == before
    (tmp_path / "ANTENNA/table.dat").write_text("antennb")
    after = digest.of_input(tmp_path, "full")
    assert {key for key in after if after[key] != before[key]} == {"tree_sha256"}
    assert digest.of_input(tmp_path, "metadata") == {"n_bytes": 11, "table_dat_sha256": before["table_dat_sha256"]}


def test_contents_of_what_is_not_there_yet(tmp_path):
    (tmp_path / "a.ms").mkdir()
    (tmp_path / "a.ms/table.dat").write_text("main")
    found = digest.of_contents([tmp_path / "a.ms", tmp_path / "none", None])
    assert list(found.values()) == [hashlib.sha256(b"main").hexdigest(), None]


def test_files_that_a_configuration_names(tmp_path):
    for name in ("bandpass.h5", "start.h5"):
        (tmp_path / name).touch()
    section = {"steps": [{"ApplyCal": {"parmdb": "bandpass.h5", "n": 3}}, {"Averager": None}], "a": ["start.h5", "x"]}
    paths = [str(tmp_path / name) for name in ("bandpass.h5", "start.h5")]
    assert digest.named_in([section, section], str(tmp_path)) == paths
    assert digest.named_in([section]) == []
    assert digest.named_in(paths[0], "/elsewhere") == paths[:1]
