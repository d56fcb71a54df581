"""While a run is on, only its own processes can talk to its scheduler and workers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chunkcal.cluster.tls import make_security

# Each prints "refused" or "let in"; a raw connection, because dask's own client already checks the server.
RAW = """
import socket, ssl, sys
host, port, certificate, key = sys.argv[1], int(sys.argv[2]), *sys.argv[3:5]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if certificate != "none":
    context.load_cert_chain(certificate, key)
try:
    connection = context.wrap_socket(socket.create_connection((host, port), timeout=10))
    print("let in" if connection.recv(1) else "refused")
except (ssl.SSLError, ConnectionError) as error:
    print("refused", error)
"""
DASK = """
import sys
from distributed import Client
from distributed.security import Security
address, certificate, key = sys.argv[1:4]
pair = dict(tls_ca_file=certificate, tls_client_cert=certificate, tls_client_key=key)
security = Security(require_encryption=True, **pair) if certificate != "none" else None
try:
    client = Client(address, security=security, timeout=5)
    print("let in", *client.scheduler_info(n_workers=-1)["workers"])
except (OSError, TimeoutError, ValueError, TypeError, RuntimeError) as error:
    print("refused", repr(error))
"""


def ask(program, *words):
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=60)
    return next((line for line in done.stdout.splitlines() if line.startswith(("refused", "let in"))), done.stderr)


def state_folder(run):
    guard = run.wait_for("guard.py")[0]
    words = Path(f"/proc/{guard}/environ").read_bytes().split(b"\0")
    return Path(next(word for word in words if word.startswith(b"CHUNKCAL_RUN=")).split(b"=", 1)[1].decode())


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
