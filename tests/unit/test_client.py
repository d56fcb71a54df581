"""What a script is told when there is no cluster to be had."""

import pytest

from chunkcal.cluster import client, state


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that the test owns, before its cluster is started; gives the path of the cluster's log."""
    monkeypatch.setattr(state.tempfile, "tempdir", str(tmp_path))
    log = tmp_path / "logs/cluster.log"
    log.parent.mkdir()
    log.write_text("what an earlier cluster wrote\n")
    settings = {"cluster": {"backend": "local", "start_timeout_s": 5}, "dp3": {"command": "DP3"}}
    monkeypatch.setenv(state.RUN_VARIABLE, str(state.create(settings, log, tmp_path / "results")))
    return log


def test_supervisor_that_cannot_be_imported_is_explained_by_its_log(run, tmp_path, monkeypatch):
    (tmp_path / "dask.py").write_text("raise ImportError('libssl.so.3 is not there')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(state.ClusterError) as caught:
        client.ensure_cluster()
    first, *lines = str(caught.value).splitlines()
    assert first == f"the cluster did not start: exit status 1; log: {run}"
    assert lines[-1] == "    ImportError: libssl.so.3 is not there"
    assert all(line.startswith("    ") for line in lines)
    assert "earlier cluster" not in str(caught.value)


def test_a_product_that_only_another_host_sees(run, tmp_path):
    output = tmp_path / "scratch/obs/preprocess/t0000.ms"
    result = {"product": f"{output}.tmp-12/out.ms", "record": {"host": "node7"}}
    with pytest.raises(state.ClusterError, match="made on node7 .* scratch_dir must be on file systems that all hosts"):
        client._commit(result, str(output), str(tmp_path / "t0000.json"))
    assert not (tmp_path / "t0000.json").exists()


def test_a_folder_in_scratch_dir_goes_when_no_chunk_is_left(tmp_path):
    own = tmp_path / "scratch/chunkcal-12"
    (own / "obs/preprocess/t0000.ms").mkdir(parents=True)
    (own / "obs/preprocess/t0000.ms/table.dat").touch()
    (own / "obs/apply").mkdir()
    (own / client.OWNER).touch()
    client.leave_scratch(str(own))
    assert {path.name for path in own.iterdir()} == {"obs", client.OWNER}
    assert [path.name for path in (own / "obs").iterdir()] == ["preprocess"]
    (own / "obs/preprocess/t0000.ms/table.dat").unlink()
    client.leave_scratch(str(own))
    assert list((tmp_path / "scratch").iterdir()) == []
