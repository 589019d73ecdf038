"""Continuous access evaluation, at Storage's side: a challenge leads to one new token, then to a clear refusal."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest

from beam_entra.errors import AccessDenied, AuditUnavailable, IdentityRejected
from beam_entra.testing.storage_requests import matching
from tests.session.conftest import DATA, read_blob, write_blob
from tests.session.test_session import GRAPH, in_threads

LOCATION = {"access_token": {"xms_rp_ipaddr": {"value": "192.0.2.7"}}}


def asked_claims(job) -> list[dict]:
    """What the token requests asked for, besides the capability."""
    asked = [json.loads(each.claims)["access_token"] for each in job.cloud.tenant.requests if each.kind == "token"]
    return [{name: value for name, value in each.items() if name != "xms_cc"} for each in asked]


@pytest.mark.parametrize("threads", [1, 16])
def test_a_challenge_to_the_keys_request(job, threads):
    """One new token with these claims, the key under it, and both tokens in the trail; nobody else notices."""
    job.cloud.proxy.challenge(LOCATION, times=1)
    session = job.session()
    assert set(in_threads(threads, lambda number: read_blob(session, job))) == {DATA}
    assert asked_claims(job) == [{}, LOCATION["access_token"]]
    first, second = job.records("token_acquired")
    assert [record["token"] for record in job.records("key_acquired")] == [second["token"]]
    assert first["uti"] != second["uti"]
    job.seal_and_verify(session)


def test_a_challenge_to_a_principal_that_was_revoked(make_job):
    """Entra says no to the new token: its code is the error."""
    app = make_job().cloud.add_client()
    job = make_job(client=app.client_id)
    session = job.session()
    session.broker.get("https://storage.azure.com")
    job.cloud.proxy.challenge()
    app.disable()
    refused = (IdentityRejected, AuditUnavailable)  # the trail needs a key as well, and may be the first to ask
    with pytest.raises(refused, match="an administrator has disabled the application") as caught:
        write_blob(session, job)
    assert caught.value.diagnosis.code == "AADSTS7000112"


def test_a_connectors_challenge(make_job):
    """A connector whose service refuses its token hands the claims on, and gets one with them, on the record."""
    job = make_job(audiences=(GRAPH,))
    with job.session().bundle("look up", audience=GRAPH) as bundle:
        refused = bundle.access_token(GRAPH)
        with pytest.raises(ValueError, match="its own audience"):
            bundle.access_token(GRAPH, refused=replace(refused, audience="https://vault.azure.net"), claims="{}")
        fresh = bundle.access_token(GRAPH, refused=refused, claims=json.dumps(LOCATION))
        assert bundle.access_token(GRAPH) == fresh != refused
        asked = job.cloud.tenant.token_requests
        with pytest.raises(IdentityRejected, match="refuses the new token that was got with them as well") as caught:
            bundle.access_token(GRAPH, refused=fresh, claims=json.dumps(LOCATION))
        assert (job.cloud.tenant.token_requests, bundle.access_token(GRAPH)) == (asked, fresh)
        assert "Conditional Access" in caught.value.hint
    assert [(each["path"], each["by"]) for each in job.records("denied")] == [(GRAPH, "entra")]
    assert LOCATION["access_token"] in asked_claims(job)
    assert fresh.token_id in {record["token"] for record in job.records("token_acquired")}


@pytest.mark.parametrize("claims", ["eyJhIjoxfQ==", "[1]", "nothing", '{"a":' * 6000])
def test_what_a_connector_takes_for_claims(make_job, claims):
    """What is none is refused, not repeated, and asked of Entra neither then nor later."""
    job = make_job(audiences=(GRAPH,))
    with job.session().bundle("look up", audience=GRAPH) as bundle:
        token = bundle.access_token(GRAPH)
        asked = job.cloud.tenant.token_requests
        with pytest.raises(ValueError, match="a JSON object") as caught:
            bundle.access_token(GRAPH, refused=token, claims=claims)
        assert claims not in str(caught.value)
        assert bundle.access_token(GRAPH) == token
        assert job.cloud.tenant.token_requests == asked


def test_a_sas_is_not_renewed_by_claims(job):
    """A challenge to a SAS is a refusal like any other: no token is asked for, and none is sent where the SAS went."""
    session = job.session()
    read_blob(session, job)
    requests = job.cloud.tenant.token_requests
    job.cloud.proxy.challenge(where=matching("GetBlob"))
    with pytest.raises(AccessDenied):
        read_blob(session, job)
    assert job.cloud.tenant.token_requests == requests


def test_a_challenge_in_mid_job_under_bearer(make_job, caplog):
    """Where the token itself opens the blobs, sixteen readers that meet one challenge each cost one new token."""
    job = make_job(scoping="bearer")
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    assert read_blob(session, job) == DATA
    seen = {each.request.headers["authorization"] for each in job.requests("GetBlob")}
    job.cloud.proxy.challenge(
        LOCATION, where=lambda request: request.operation == "GetBlob" and request.headers["authorization"] in seen
    )
    with caplog.at_level(logging.DEBUG):
        assert set(in_threads(16, lambda number: read_blob(session, job))) == {DATA}
    assert asked_claims(job) == [{}, LOCATION["access_token"]]
    assert {record["token"] for record in job.records("read")} == {
        record["token"] for record in job.records("token_acquired")
    }
    assert job.cloud.find_leaks(caplog.text) == []
    job.seal_and_verify(session)


def test_a_refusal_under_bearer_is_recorded(make_job):
    """A data request that is challenged twice is denied by Storage, in the trail as well."""
    job = make_job(scoping="bearer")
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    job.cloud.proxy.challenge(where=matching("GetBlob"))
    with pytest.raises(AccessDenied, match="refuses the new token"):
        read_blob(session, job)
    assert [(record["by"], record["permission"]) for record in job.records("denied")] == [("storage", "read")]
