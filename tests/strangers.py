"""Those who knock at the ports of a run: with its certificate, with another, or with none."""

import subprocess
import sys
from pathlib import Path

from background import DP3_AT_WORK, Run

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


def ask(program: str, *words: object) -> str:
    """Knock, and give the answer: a line that begins with "let in" or "refused"."""
    done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=60)
    return next((line for line in done.stdout.splitlines() if line.startswith(("refused", "let in"))), done.stderr)


def state_folder(run: Run) -> Path:
    """Find the state folder of a run while a DP3 is at work."""
    dp3 = run.wait_for(DP3_AT_WORK)[0]
    words = Path(f"/proc/{dp3}/environ").read_bytes().split(b"\0")
    return Path(next(word for word in words if word.startswith(b"CHUNKCAL_RUN=")).split(b"=", 1)[1].decode())
