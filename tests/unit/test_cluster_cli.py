import os
from pathlib import Path

import pytest

from chunkcal import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder without a configuration of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(capsys, *words):
    status = cli.main(["cluster", "job-script", *words])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_profile_files_and_keys_lie_on_top_of_each_other(here, capsys):
    profile = str(ROOT / "slurm")
    assert "#SBATCH --cpus-per-task=4" in ask(capsys, "--profile", profile)[1]
    (here / "mine.yaml").write_text("cluster: {job: {queue: mine, n_cores: 6}}\n")
    files = ("--configfile", f"{profile}/cluster.yaml", "mine.yaml")
    text = ask(capsys, "--profile", profile, *files, "--config", "cluster={job: {n_cores: 12}}")[1]
    assert "#SBATCH -p mine" in text
    assert "#SBATCH --cpus-per-task=12" in text
    assert "#SBATCH -t 04:00:00" in text
    assert f"{os.getcwd()}/results/.chunkcal/RUN/tls-key.pem" in text
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "cluster.backend auto submits no jobs"),
        (("--configfile", "no.yaml"), "no.yaml: No such file"),
        (("--config", "cluster"), "write KEY=VALUE"),
        (("--config", "cluster={backend: pbs, job: {qos: a}}"), "cluster.job.qos: PBS has none"),
    ],
)
def test_mistakes_get_one_line(here, capsys, words, complaint):
    status, out, err = ask(capsys, *words)
    assert (status, out) == (1, "")
    assert complaint in err
    assert len(err.splitlines()) == 1


def test_processes_that_wait_for_the_plan_are_as_many_as_cores(here, capsys):
    status, out, _ = ask(capsys, "--config", "cluster={backend: slurm, job: {n_processes: auto, n_cores: 6}}")
    assert status == 0
    assert "--nworkers 6" in out
