"""What a session does when a key is refused, and when it is closed in the middle of a pause."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from beam_entra.errors import AccessDenied, BeamEntraError
from beam_entra.testing.storage_requests import StorageRequest, matching
from tests.session.conftest import Job, read_blob, write_blob

ROW = b'{"id": 1}\n'
MakeJob = Callable[..., Job]


@pytest.fixture
def job(make_job: MakeJob) -> Job:
    """A job with a blob to read."""
    job = make_job()
    job.raw.upload("orders/a.jsonl", ROW)
    return job


def end_keys(job: Job) -> Callable[[StorageRequest], bool]:
    """Storage takes no SAS any more of a key that it has given so far. Waits until a new one is another."""
    signed = {each.request.parameters["skt"] for each in job.requests() if "skt" in each.request.parameters}
    threading.Event().wait(1.1)

    def under_them(request: StorageRequest) -> bool:
        return request.parameters.get("skt") in signed

    job.cloud.proxy.respond(403, "AuthenticationFailed", where=under_them)
    return under_them


def test_a_key_that_has_ended_is_replaced(job: Job) -> None:
    """Reads, writes and the trail go on under one new key; nothing is signed with the old one again."""
    session = job.session()
    assert read_blob(session, job) == ROW
    under_the_old = end_keys(job)
    assert read_blob(session, job) == ROW
    write_blob(session, job)
    refused = [each for each in job.requests() if each.status == 403]
    assert {each.request.container for each in refused} <= {job.raw.name, job.audit.name}
    assert len(refused) <= 2
    assert len(job.requests("GetUserDelegationKey")) == 2
    assert not any(under_the_old(each.request) for each in job.requests("PutBlock", "PutBlockList"))
    assert len(job.records("key_acquired")) == 2
    job.seal_and_verify(session)


def test_signatures_that_a_new_key_does_not_mend_are_refused(job: Job) -> None:
    """One more key, and then the refusal; for a minute there is no third, however often it is tried."""
    session = job.session()
    assert read_blob(session, job) == ROW
    job.cloud.proxy.respond(403, "AuthenticationFailed", where=matching("GetBlob"))
    for _ in range(3):
        with pytest.raises(AccessDenied, match="Storage refused"):
            read_blob(session, job)
    assert len(job.requests("GetUserDelegationKey")) == 2


def test_a_refusal_of_another_kind_costs_no_key(job: Job) -> None:
    """A role that is missing is not mended by a new key."""
    session = job.session()
    job.cloud.proxy.without_role(where=matching("GetBlob"))
    with pytest.raises(AccessDenied):
        read_blob(session, job)
    assert len(job.requests("GetBlob")) == 1
    assert len(job.requests("GetUserDelegationKey")) == 1


@pytest.mark.timeout(60)
def test_nobody_waits_for_a_pause_of_a_session_that_is_closed(job: Job) -> None:
    """Who is told to come back in a minute and a half ends at once, and does not come back."""
    session = job.session()
    busy = job.cloud.proxy.respond(503, "ServerBusy", headers={"Retry-After": "90"}, where=matching("GetBlob"))
    told: list[BeamEntraError] = []

    def read() -> None:
        try:
            read_blob(session, job)
        except BeamEntraError as error:
            told.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    busy.wait_for_hits()
    session.close()
    reader.join(30)
    assert len(told) == 1
    assert busy.hits == 1
