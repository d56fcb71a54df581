"""While a run is on, only its own processes can talk to its scheduler and workers."""

import json

import pytest

from chunkcal.cluster.tls import make_security
from strangers import DASK, RAW, ask, state_folder


@pytest.mark.repeat(3, 1)
def test_strangers_are_refused(make_run, clean, tmp_path, count, repeat):
    run = make_run().start()
    folder = state_folder(run)
    address = json.loads((folder / "supervisor.json").read_text())["scheduler"]
    assert address.startswith("tls://127.0.0.1:")
    own = (folder / "tls-cert.pem", folder / "tls-key.pem")
    (tmp_path / "strange").mkdir()
    make_security(tmp_path / "strange")
    wrong = (tmp_path / "strange/tls-cert.pem", tmp_path / "strange/tls-key.pem")

    # The run's own pair is let in: that the others are refused means something.
    answer = ask(DASK, address, *own)
    assert answer.startswith("let in tls://"), answer
    workers = [word for word in answer.split() if word.startswith("tls://")]
    assert ask(RAW, *address.removeprefix("tls://").split(":"), *own).startswith("let in")

    plain = address.replace("tls://", "tcp://")
    attempts = {
        "unauthenticated client": [(DASK, plain, "none", "none"), (DASK, address, "none", "none")],
        "wrong certificate": [(DASK, address, *wrong)],
    }
    for server in (address, *workers):
        place = server.removeprefix("tls://").split(":")
        attempts["unauthenticated client"].append((RAW, *place, "none", "none"))
        attempts["wrong certificate"].append((RAW, *place, *wrong))
    for fault, tries in attempts.items():
        with count(f"{fault}: refused", len(tries)):
            for attempt in tries:
                answer = ask(*attempt)
                assert answer.startswith("refused"), f"{attempt[1:]}: {answer}"
    assert run.process.poll() is None, "the run ended before strangers had knocked: " + run.text()
    with count("run goes on beside strangers"):
        run.must_finish()
        run.must_equal(clean)
        run.must_be_gone()
