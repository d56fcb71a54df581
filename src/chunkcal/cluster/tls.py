"""Certificates of one run: who has not got them cannot talk to its scheduler or workers.

A dask scheduler runs what it is sent, so a port on loopback without them would let every user of the machine run code
as the owner of the run.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path
from typing import Any

from distributed.security import Security

CERTIFICATE, KEY = "tls-cert.pem", "tls-key.pem"
# Longer than any run; the pair is removed with the state folder of the run.
VALIDITY = datetime.timedelta(days=90)


def make_security(folder: Path) -> Security:
    """Make a self-signed pair for a run, in its state folder, and what dask needs to use it at every end.

    The certificate is its own authority: both ends of every connection must show it, so only processes that can read
    the key (mode 0600, in a folder of mode 0700) get through.
    """
    _write_pair(folder / CERTIFICATE, folder / KEY)
    return security_of(folder)


def security_of(folder: Path) -> Security:
    """Give what dask needs to use the pair in `folder`."""
    certificate, key = folder / CERTIFICATE, folder / KEY
    pairs = {
        f"tls_{role}_{kind}": str(path)
        for role in ("client", "scheduler", "worker")
        for kind, path in (("cert", certificate), ("key", key))
    }
    return Security(require_encryption=True, tls_ca_file=str(certificate), **pairs)


def as_configuration(security: Security) -> dict[str, Any]:
    """Say in dask's own configuration what `security` holds, for workers that are started by a command line."""
    roles = {
        f"distributed.comm.tls.{role}.{kind}": getattr(security, f"tls_{role}_{kind}")
        for role in ("client", "scheduler", "worker")
        for kind in ("cert", "key")
    }
    return {
        "distributed.comm.require-encryption": True,
        "distributed.comm.tls.ca-file": security.tls_ca_file,
        **roles,
    }


def _write_pair(certificate: Path, key: Path) -> None:
    # Not above: it is slow to import, and a cluster of the user's own has its own certificates.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "chunkcal run")])
    now = datetime.datetime.now(datetime.UTC)
    addresses = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))  # clocks of other hosts may be behind
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    _write_private(
        key,
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    _write_private(certificate, signed.public_bytes(pem))


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # of a supervisor that died
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
