"""The run's own certificate authority."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
import urllib3
from cryptography import x509

from beam_entra.testing.certificates import RunCertificates, write_private
from beam_entra.testing.issuer import WorkloadIssuer


def test_the_files_are_where_they_are_said_to_be(tmp_path: Path) -> None:
    """CA, chain and key are written, below a folder that is created."""
    made = RunCertificates.issue(tmp_path / "a" / "b")
    assert made.ca_file == tmp_path / "a" / "b" / "ca.pem"
    assert x509.load_pem_x509_certificate(made.ca_file.read_bytes())
    names = x509.load_pem_x509_certificate(made.server_file.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["localhost"]
    assert {str(address) for address in names.value.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}


def test_the_key_is_for_its_owner_only(tmp_path: Path) -> None:
    """Nobody else on the machine may read the private key."""
    made = RunCertificates.issue(tmp_path)
    assert stat.S_IMODE(made.key_file.stat().st_mode) == 0o600


def test_each_run_has_its_own_authority(tmp_path: Path) -> None:
    """Who trusts one run's CA does not trust another's."""
    other = RunCertificates.issue(tmp_path / "other")
    with (
        WorkloadIssuer(RunCertificates.issue(tmp_path / "mine")) as issuer,
        urllib3.PoolManager(ssl_context=other.client_context(), retries=False) as pool,
        pytest.raises(urllib3.exceptions.SSLError, match="certificate verify failed"),
    ):
        pool.request("GET", issuer.url)


def test_the_client_context_checks_names_and_certificates(certificates: RunCertificates) -> None:
    """The context that we hand out is a strict one."""
    context = certificates.client_context()
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_a_private_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """The old file is never half the new one: a reader that has it open keeps reading the old."""
    path = tmp_path / "assertion"
    write_private(path, b"old")
    with path.open("rb") as reader:
        write_private(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["assertion"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_private_file_that_cannot_be_placed_leaves_nothing(tmp_path: Path) -> None:
    """When the replacement fails its temporary file is removed."""
    (tmp_path / "taken" / "inside").mkdir(parents=True)
    with pytest.raises(OSError, match="taken"):
        write_private(tmp_path / "taken", b"secret")
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
