"""What a chunk job makes of the answers that it gets, and of products that are not there."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from chunkcal.cluster import chunks, state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def owner(tmp_path, monkeypatch):
    """A run that the test owns; it has no cluster. Gives host, pid and start time."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = {"cluster": {"backend": "local"}, "dp3": {"command": "DP3"}}
    folder = state.create(settings, tmp_path / "cluster.log", tmp_path / "results")
    monkeypatch.setenv(state.RUN_VARIABLE, str(folder))
    return [str(value) for value in state.read_json(folder / "run.json")["owner"].values()]


@pytest.fixture
def supervisor(owner):
    """A supervisor that gives these answers, one after the other, and hangs up; gives what it was asked."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{state.folder_of_this_run()}/submit")
    listening.listen()
    answers, asked = [], []

    def serve():
        for answer in answers:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as words:
                asked.append(state.receive(words))
                connection.sendall(answer() if callable(answer) else answer)

    def run(*given):
        answers[:] = given
        serving.start()
        return asked

    serving = threading.Thread(target=serve)
    yield run
    serving.join()
    listening.close()


def run_job(request="{}", ms_product="", ms_record=""):
    chunks.main(["fit a t0000", "a b.log", "o/in.ms", "", "o/t0000", "o/t0000.json", ms_product, ms_record], request)


def made(owner, *products):
    def make():
        words = []
        for product in products:
            Path(product).mkdir(parents=True)
            words += [product, "here", f"record of {product}\n"]
        return state.pack("made", *owner, *words)

    return make


def test_a_job_says_what_it_is_for_and_commits_what_was_made(owner, supervisor, tmp_path):
    asked = supervisor(made(owner, "o/t0000.tmp-12/product"))
    run_job('{"run": "é"}')
    words = ["fit a t0000", str(tmp_path), "a b.log", "o/in.ms", "", "o/t0000", "", '{"run": "é"}']
    assert asked == [["run", *words]]
    assert {path.name for path in Path("o").iterdir()} == {"t0000", "t0000.json"}
    assert Path("o/t0000.json").read_text() == "record of o/t0000.tmp-12/product\n"


def test_a_job_of_two_stages_commits_both_products(owner, supervisor):
    asked = supervisor(made(owner, "p/t0000.ms.tmp-1/one", "o/t0000.tmp-1/two"))
    run_job(ms_product="p/t0000.ms", ms_record="p/t0000.json")
    assert asked[0][-3:] == ["o/t0000", "p/t0000.ms", "{}"]
    assert {str(path) for path in Path().glob("[op]/*")} == {"o/t0000", "o/t0000.json", "p/t0000.ms", "p/t0000.json"}
    assert Path("o/t0000.json").read_text().endswith("two\n")


def test_what_stood_in_the_place_of_a_product_goes(owner, supervisor):
    Path("o/t0000/old").mkdir(parents=True)
    supervisor(made(owner, "o/t0000.tmp-12/product"))
    run_job()
    assert not list(Path("o/t0000").iterdir())


def test_a_product_that_only_another_host_sees(owner, supervisor, capsys):
    supervisor(state.pack("made", *owner, "o/t0000.tmp-12/product", "node7", "record"))
    with pytest.raises(SystemExit) as end:
        run_job()
    assert end.value.code == 1
    assert " was made on node7 and is not there on " in capsys.readouterr().err
    assert not Path("o").exists()


def test_a_record_that_cannot_be_written_is_one_line(owner, supervisor, capsys):
    Path("o/t0000.json").mkdir(parents=True)
    supervisor(made(owner, "o/t0000.tmp-12/product"))
    with pytest.raises(SystemExit) as end:
        run_job()
    assert end.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith("chunkcal: [Errno ")
    assert "o/t0000.json" in told
    assert [path.name for path in Path("o").iterdir()] == ["t0000.json"]


@pytest.mark.parametrize("stopped", ["interrupted", "gone"])
def test_a_product_of_a_run_that_has_been_stopped_is_not_accepted(owner, supervisor, capsys, stopped):
    if stopped == "interrupted":
        Path(state.folder_of_this_run(), "aborted").touch()
    else:
        owner[2] = "12"  # another process with this pid
    supervisor(made(owner, "o/t0000.tmp-12/product"))
    with pytest.raises(SystemExit):
        run_job()
    assert capsys.readouterr().err == "chunkcal: the run has been stopped; its last product was not accepted\n"
    assert not list(Path("o").iterdir())


def test_what_the_user_should_know_is_told_before_the_end(owner, supervisor, capsys):
    supervisor(state.pack("tell", "chunkcal: in pieces") + state.pack("error", "no\n    lines\0of DP3"))
    with pytest.raises(SystemExit) as end:
        run_job()
    assert end.value.code == 1
    assert capsys.readouterr().err == "chunkcal: in pieces\nchunkcal: no\n    lines of DP3\n"


def test_a_supervisor_that_dies_is_asked_again(owner, supervisor):
    answer = state.pack("made", *owner, "product")
    asked = supervisor(answer[:-3], b"", answer)
    assert chunks.submit("fit a t0000") == [*owner, "product"]
    assert asked == 3 * [["run", "fit a t0000"]]


def test_a_message_keeps_its_letters_in_every_locale():
    code = (
        "import sys; from chunkcal.cluster import state; assert sys.getfilesystemencoding() != 'utf-8';"
        "words = ['\\u03a9\\udcff', '']; assert state.unpack(state.pack(*words)[4:]) == words"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], env=environment, check=True)


def test_supervisors_that_keep_dying_are_told(owner, supervisor):
    supervisor(b"", b"", b"")
    with pytest.raises(state.ClusterError, match="fit a t0000: the cluster died 3 times under this task"):
        chunks.submit("fit a t0000")


def test_the_script_hands_over_what_snakemake_gives_it(tmp_path):
    spy = tmp_path / "spy"
    spy.write_text('#!/bin/sh\nfor word; do echo "<$word>"; done; cat\n')
    spy.chmod(0o755)
    # As Snakemake 9.27 declares them.
    arrays = """
        declare -A snakemake=( [rule]=other_apply_chunk )
        declare -A snakemake_wildcards=( [obs]=a [chunk]=t0000 )
        declare -A snakemake_log=( [0]='a log' )
        declare -A snakemake_input=( [ms]='it'"'"'s $HOME.ms' )
        declare -A snakemake_output=( [product]='a  b.ms' [record]=b.json )
        declare -A snakemake_params=( [request]='{"a": "'"'"'$x"}' )
    """
    script = (ROOT / "workflow/scripts/run_chunk.sh").read_text()
    environment = os.environ | {"CHUNKCAL_PYTHON": str(spy)}
    done = subprocess.run(["bash", "-c", arrays + script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *words, request = done.stdout.splitlines()
    assert words[:3] == ["<-P>", "<-c>", "<from chunkcal.cluster.chunks import script; script()>"]
    paths = ["<it's $HOME.ms>", "<>", "<a  b.ms>", "<b.json>", "<>", "<>"]
    assert words[3:] == ["<other_apply a t0000>", "<a log>", *paths]
    assert request == """{"a": "'$x"}"""


@pytest.mark.parametrize(
    ("folder", "module", "slow"),
    [
        ("src/chunkcal/cluster", "guard", {"enum", "json"}),
        ("src", "chunkcal.cluster.chunks", {"typing", "subprocess", "socket", "contextlib", "json", "re", "enum"}),
    ],
)
def test_what_starts_with_each_chunk_imports_little(folder, module, slow):
    code = f"import sys; sys.path.append({str(ROOT / folder)!r}); import {module}; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code]  # packages that are installed may have hooks
    modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert module in modules
    assert not slow & set(modules)
