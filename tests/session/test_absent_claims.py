"""Not every issuer puts into a token what the audit would like to have: the trail says what it knows, and holds."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from beam_entra.audit.show import Story, show_trail
from beam_entra.clock import utc_now
from beam_entra.identity import AccessToken, EntraSource, TokenClaims
from beam_entra.secret import Secret
from beam_entra.session import Session
from tests.session.conftest import DATA, read_blob, write_blob


class Without:
    """The job's identity, whose tokens lack some claims; Azurite does not check that the signature is another's."""

    def __init__(self, source: EntraSource, absent: frozenset[str]) -> None:
        self._source, self._absent = source, absent

    def acquire(self, audience: str, *, claims: str = "") -> AccessToken:
        token = self._source.acquire(audience, claims=claims)
        head, payload, signature = token.secret.reveal().split(".")
        said = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        left = json.dumps({name: value for name, value in said.items() if name not in self._absent})
        payload = base64.urlsafe_b64encode(left.encode()).rstrip(b"=").decode()
        secret = Secret(f"{head}.{payload}.{signature}", what="access token")
        return replace(token, secret=secret, claims=TokenClaims.of(secret))


@pytest.mark.parametrize(
    ("scoping", "absent"),
    [
        ("sas", {"uti"}),  # Azurite gives no delegation key to a token without an oid
        ("bearer", {"uti"}),
        ("bearer", {"oid"}),
        ("bearer", {"oid", "uti"}),
        ("bearer", {"oid", "uti", "appid", "tid"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "no " + ", ".join(sorted(value)),
)
def test_a_token_that_lacks_claims(make_job, scoping, absent):
    """Reads, writes, seals, verifies and shows; what the token does not say is null in its record."""
    job = make_job(scoping=scoping)
    job.raw.upload("orders/a.jsonl", DATA)
    source = Without(EntraSource(job.manifest.identity, clock=utc_now), frozenset(absent))
    session = Session(job.scope, source=source)
    job.sessions.append(session)
    assert read_blob(session, job) == DATA
    write_blob(session, job)
    assert job.curated.list() == ["orders/out.jsonl"]
    summary = job.seal_and_verify(session)
    assert summary.counts["token_acquired"] == 1
    (record,) = job.records("token_acquired")
    names = {"oid": "oid", "uti": "uti", "appid": "appid", "tid": "tenant"}
    for claim, field in names.items():
        assert (record[field] is None) is (claim in absent), field
    shown = io.StringIO()
    show_trail(Story.read(job.trail), Console(file=shown, width=200))
    assert f"uti {record['uti'] or '-'}" in shown.getvalue()
