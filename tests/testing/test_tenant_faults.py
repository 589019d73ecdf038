"""Each fault switch of the local tenant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import urllib3
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError
from azure.identity import ClientSecretCredential

from beam_entra.testing.apps import App
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.tenant import STORAGE, LocalTenant

SCOPE = f"{STORAGE}/.default"
Ask = Callable[[], Any]


@pytest.fixture
def app(tenant: LocalTenant) -> App:
    """A registered app."""
    return tenant.register_app()


@pytest.fixture
def ask(app: App, post: Callable[..., Any]) -> Ask:
    """Ask for a token with a good secret."""
    secret = app.add_secret().reveal()
    return lambda: post(client_id=app.client_id, client_secret=secret)


def outcomes(tenant: LocalTenant) -> list[str]:
    """What became of each request."""
    return [request.outcome for request in tenant.requests]


def test_throttling_answers_429_with_a_time_to_wait(tenant: LocalTenant, ask: Ask) -> None:
    """As many requests as it was set to, then as usual."""
    tenant.throttle(retry_after_s=17, times=2)
    replies = [ask() for _ in range(3)]
    assert [reply.status for reply in replies] == [429, 429, 200]
    assert replies[0].headers["Retry-After"] == "17"
    assert replies[0].code == 90055
    assert outcomes(tenant) == ["throttle", "throttle", "issued"]


def test_azure_identity_gets_past_a_short_throttling(
    tenant: LocalTenant, app: App, identity_options: dict[str, Any]
) -> None:
    """The SDK's own retry policy understands our 429."""
    tenant.throttle(retry_after_s=0, times=1)
    options = identity_options | {"retry_total": 2}
    with ClientSecretCredential(tenant.tenant_id, app.client_id, app.add_secret().reveal(), **options) as credential:
        assert credential.get_token(SCOPE).token
    assert outcomes(tenant)[-2:] == ["throttle", "issued"]


@pytest.mark.parametrize(("status", "code"), [(503, 90033), (500, 50000), (502, 50000), (400, 50000)])
def test_failing_answers_the_status_it_was_set_to(tenant: LocalTenant, ask: Ask, status: int, code: int) -> None:
    """The body is Entra's; the fault lasts until it is cleared."""
    fault = tenant.fail(status)
    assert {(reply.status, reply.code) for reply in (ask(), ask())} == {(status, code)}
    fault.clear()
    assert ask().status == 200
    assert outcomes(tenant) == [f"fail {status}"] * 2 + ["issued"]


def test_a_stalled_request_is_answered_when_it_is_let_go(tenant: LocalTenant, ask: Ask) -> None:
    """It stands at the gate, and goes on as if nothing had been."""
    fault = tenant.stall(times=1)
    assert fault.gate is not None
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(ask)
        fault.gate.wait_for_arrivals()
        assert not pending.done()
        assert ask().status == 200  # the next one is not held
        fault.gate.open()
        assert pending.result(5).status == 200


def test_a_stall_may_have_an_end(tenant: LocalTenant, ask: Ask) -> None:
    """After its seconds the request goes on by itself."""
    tenant.stall(0.01)
    assert ask().status == 200
    assert outcomes(tenant) == ["issued"]


def test_a_stall_does_not_keep_the_tenant_from_closing(
    certificates: RunCertificates, http: urllib3.PoolManager
) -> None:
    """Closing lets go of what is held; no thread is left."""
    before = set(threading.enumerate())
    tenant = LocalTenant(certificates)
    fault = tenant.stall()
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(http.request, "POST", tenant.token_url, body=b"")
        fault.wait_for_hits()
        tenant.close()
        assert pending.exception(5) is None or isinstance(pending.exception(), urllib3.exceptions.HTTPError)
    assert not set(threading.enumerate()) - before


def test_dropping_resets_the_connection(tenant: LocalTenant, ask: Ask) -> None:
    """There is no answer, and the next request is fine."""
    tenant.drop(times=1)
    with pytest.raises(urllib3.exceptions.HTTPError):
        ask()
    assert ask().status == 200
    assert outcomes(tenant) == ["drop", "issued"]


def test_azure_identity_sees_a_dropped_connection(
    tenant: LocalTenant, app: App, identity_options: dict[str, Any]
) -> None:
    """To the SDK it is a transport error, not a refusal."""
    secret = app.add_secret().reveal()
    with ClientSecretCredential(tenant.tenant_id, app.client_id, secret, **identity_options) as credential:
        assert credential.get_token(SCOPE).token  # discovery is done; what follows is the token request alone
        tenant.drop()
        with pytest.raises((ServiceRequestError, ServiceResponseError, ClientAuthenticationError)):
            credential.get_token(f"{tenant.resources[1]}/.default")
    assert outcomes(tenant)[-1] == "drop"


def test_garbage_is_a_page_of_html(tenant: LocalTenant, ask: Ask) -> None:
    """200, but no token: what a captive portal sends."""
    tenant.garbage(times=1)
    reply = ask()
    assert (reply.status, reply.headers["Content-Type"], reply.json) == (200, "text/html", {})
    assert outcomes(tenant) == ["garbage"]


@pytest.mark.parametrize(("delete", "code"), [(False, 7000112), (True, 700016)], ids=["disabled", "deleted"])
def test_a_revoked_app_gets_no_more_tokens(tenant: LocalTenant, app: App, ask: Ask, delete: bool, code: int) -> None:
    """What it got before stays valid, as in Entra; from then on it is refused."""
    assert ask().status == 200
    tenant.revoke(app, delete=delete)
    assert ask().code == code


def test_faults_spare_discovery(tenant: LocalTenant, http: urllib3.PoolManager) -> None:
    """Only token requests meet a fault."""
    tenant.fail()
    url = f"{tenant.authority}/{tenant.tenant_id}/v2.0/.well-known/openid-configuration"
    assert http.request("GET", url).status == 200


def test_faults_happen_in_the_order_they_were_set(tenant: LocalTenant, ask: Ask) -> None:
    """One after the other: a script of an outage."""
    tenant.fail(503, times=1)
    tenant.throttle(times=1)
    assert [ask().status for _ in range(3)] == [503, 429, 200]


def test_clearing_ends_all_faults(tenant: LocalTenant, ask: Ask) -> None:
    """`clear_faults` keeps the records, `clear` forgets them too."""
    tenant.fail()
    tenant.garbage()
    assert ask().status == 503
    tenant.clear_faults()
    assert ask().status == 200
    assert outcomes(tenant) == ["fail 503", "issued"]
    tenant.fail()
    tenant.clear()
    assert ask().status == 200
    assert outcomes(tenant) == ["issued"]
