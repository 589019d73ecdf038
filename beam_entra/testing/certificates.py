"""A certificate authority that lives as long as one run."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

__all__ = ["RunCertificates", "write_private"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCertificates:
    """A CA and one server certificate for this machine's loopback names, as PEM files in one folder.

    The CA's own key stays in memory and is dropped: nobody can issue a second certificate after `issue` returned.

    Attributes:
        ca_file: `ca.pem`, what a client has to trust.
        server_file: `server.pem`, the server's certificate chain.
        key_file: `server.key`, mode 0600.
    """

    ca_file: Path
    server_file: Path
    key_file: Path

    @classmethod
    def issue(cls, folder: Path) -> RunCertificates:
        """Make the CA and the server certificate, and write them below `folder`, which is created if absent."""
        folder.mkdir(parents=True, exist_ok=True)
        authority = trustme.CA(organization_name="beam-entra testing kit")
        server = authority.issue_cert("localhost", "127.0.0.1", "::1")
        paths = cls(ca_file=folder / "ca.pem", server_file=folder / "server.pem", key_file=folder / "server.key")
        paths.ca_file.write_bytes(authority.cert_pem.bytes())
        paths.server_file.write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
        write_private(paths.key_file, server.private_key_pem.bytes())
        return paths

    def server_context(self) -> ssl.SSLContext:
        """The TLS context of a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self.server_file, self.key_file)
        return context

    def client_context(self) -> ssl.SSLContext:
        """The TLS context of a client that trusts this CA and nothing else."""
        return ssl.create_default_context(cafile=str(self.ca_file))


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, replacing the old one in a single step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
