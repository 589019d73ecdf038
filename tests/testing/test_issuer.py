"""The workload issuer outside Entra."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest
import urllib3

from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.issuer import TOKEN_EXCHANGE_AUDIENCE, WorkloadIssuer

SUBJECT = "system:serviceaccount:beam:orders"


def published_key(issuer: WorkloadIssuer, http: urllib3.PoolManager, assertion: str) -> jwt.PyJWK:
    """The key that a stranger finds through discovery for this assertion."""
    document = http.request("GET", f"{issuer.url}/.well-known/openid-configuration").json()
    keys = jwt.PyJWKSet.from_dict(http.request("GET", document["jwks_uri"]).json())
    return keys[jwt.get_unverified_header(assertion)["kid"]]


def test_a_stranger_can_verify_an_assertion(issuer: WorkloadIssuer, http: urllib3.PoolManager) -> None:
    """Discovery leads to the key, and the key verifies issuer, audience, subject and time."""
    text = issuer.assertion(SUBJECT).reveal()
    key = published_key(issuer, http, text)
    claims = jwt.decode(text, key, algorithms=["RS256"], audience=TOKEN_EXCHANGE_AUDIENCE, issuer=issuer.url)
    assert claims["sub"] == SUBJECT


def test_no_two_assertions_are_the_same(issuer: WorkloadIssuer) -> None:
    """Each has an id of its own, within one second too."""
    assert issuer.assertion(SUBJECT).reveal() != issuer.assertion(SUBJECT).reveal()


def test_times_come_from_its_clock(certificates: RunCertificates) -> None:
    """Life and start count from the clock that was passed in."""
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    with WorkloadIssuer(certificates, clock=clock) as issuer:
        clock.advance(timedelta(hours=1))
        text = issuer.assertion(SUBJECT, audience="other", life_s=30, not_before_s=5).reveal()
    claims = jwt.decode(text, options={"verify_signature": False})
    now = int(datetime(2026, 1, 1, 1, tzinfo=UTC).timestamp())
    assert (claims["iat"], claims["nbf"], claims["exp"], claims["aud"]) == (now, now + 5, now + 30, "other")


def test_an_assertion_redacts_itself(issuer: WorkloadIssuer) -> None:
    """It is a secret: its text shows nowhere but through `reveal`."""
    signed = issuer.assertion(SUBJECT)
    assert repr(signed) == "<assertion: redacted>"
    assert [known.reveal() for known in issuer.assertions] == [signed.reveal()]


def test_an_assertion_file_is_private_and_replaced_whole(issuer: WorkloadIssuer, tmp_path: Path) -> None:
    """Mode 0600, and a second write takes the first one's place."""
    path = tmp_path / "run" / "assertion"
    issuer.write_assertion_file(path, SUBJECT)
    second = issuer.write_assertion_file(path, SUBJECT, life_s=60)
    assert path.read_text() == second.reveal()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["assertion"]


@pytest.mark.parametrize(("keep_old", "published"), [(True, 2), (False, 1)], ids=["old key kept", "old key withdrawn"])
def test_keys_rotate(issuer: WorkloadIssuer, http: urllib3.PoolManager, keep_old: bool, published: int) -> None:
    """New assertions are signed with the new key; the old one stays published only when asked."""
    before = jwt.get_unverified_header(issuer.assertion(SUBJECT).reveal())["kid"]
    issuer.rotate_keys(keep_old=keep_old)
    text = issuer.assertion(SUBJECT).reveal()
    assert jwt.get_unverified_header(text)["kid"] != before
    assert jwt.decode(text, published_key(issuer, http, text), algorithms=["RS256"], audience=TOKEN_EXCHANGE_AUDIENCE)
    assert len(http.request("GET", f"{issuer.url}/keys").json()["keys"]) == published


def test_it_counts_who_asks(issuer: WorkloadIssuer, http: urllib3.PoolManager) -> None:
    """Each answered path is in `fetches`; what it does not serve is 404 and not counted."""
    published_key(issuer, http, issuer.assertion(SUBJECT).reveal())
    assert http.request("GET", f"{issuer.url}/other").status == 404
    assert list(issuer.fetches) == ["/.well-known/openid-configuration", "/keys"]
