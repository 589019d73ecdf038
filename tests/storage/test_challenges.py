"""Claims challenges: which answers are one, and that each is met by one new token."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_entra.clock import utc_now
from beam_entra.errors import AccessDenied
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource, TokenBroker
from beam_entra.storage.answers import Answer, claims_challenge
from beam_entra.testing.storage_requests import matching
from tests.identity.leaks import everything_in
from tests.storage.conftest import ACCOUNT, Desk, identity_of

CLAIMS = '{"access_token":{"nbf":{"essential":true,"value":"1772366400"}}}'
ENCODED = base64.b64encode(CLAIMS.encode()).decode()
URI = 'authorization_uri="https://login.microsoftonline.com/common/oauth2/authorize"'


def said(header: str, status: int = 401) -> str:
    """What an answer with this header asks for."""
    return claims_challenge(Answer(status=status, headers={"www-authenticate": header}, client_request_id="x"))


CHALLENGES = {
    "as Entra documents it": f'Bearer realm="", {URI}, error="insufficient_claims", claims="{ENCODED}"',
    "in another order": f'Bearer claims="{ENCODED}", error="insufficient_claims"',
    "without padding": f'Bearer error="insufficient_claims", claims="{ENCODED.rstrip("=")}"',
    "the second of two": f'Bearer {URI}, resource_id="x", Bearer error="insufficient_claims", claims="{ENCODED}"',
    "in small letters": f'bearer error="insufficient_claims", claims="{ENCODED}"',
    "after Basic": f'Basic realm="x", Bearer error="insufficient_claims", claims="{ENCODED}"',
}


@pytest.mark.parametrize("header", CHALLENGES.values(), ids=CHALLENGES)
def test_a_challenge_is_found(header):
    """The claims are decoded."""
    assert said(header) == CLAIMS


NONE = {
    "no header": "",
    "another error": f'Bearer error="invalid_token", claims="{ENCODED}"',
    "no claims": 'Bearer error="insufficient_claims"',
    "empty claims": 'Bearer error="insufficient_claims", claims=""',
    "no base64": 'Bearer error="insufficient_claims", claims="@@@"',
    "no JSON": f'Bearer error="insufficient_claims", claims="{base64.b64encode(b"nothing").decode()}"',
    "no object": f'Bearer error="insufficient_claims", claims="{base64.b64encode(b"[1]").decode()}"',
    "too many": f'Bearer error="insufficient_claims", claims="{base64.b64encode(b"{}" + b" " * 8000).decode()}"',
    "nested too deep": f'Bearer error="insufficient_claims", claims="{base64.b64encode(b"[" * 6000).decode()}"',
    "of another scheme": f'Basic error="insufficient_claims", claims="{ENCODED}"',
    "error and claims of two": f'Bearer error="insufficient_claims", Bearer claims="{ENCODED}"',
}


@pytest.mark.parametrize("header", NONE.values(), ids=NONE)
def test_what_is_no_challenge(header):
    """It is a refusal like any other."""
    assert said(header) == ""


def test_a_challenge_has_status_401():
    """403 is no challenge."""
    assert said(CHALLENGES["as Entra documents it"], status=403) == ""


@given(st.dictionaries(st.text(), st.recursive(st.text() | st.integers(), st.lists, max_leaves=4), max_size=3))
def test_whatever_the_claims(claims: dict[str, object]) -> None:
    """They arrive as they were, in either alphabet of base64."""
    text = json.dumps(claims, ensure_ascii=False)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(text.encode("utf-8", "surrogatepass")).decode()
        assert said(f'Bearer error="insufficient_claims", claims="{encoded}"') in {text, ""}


@given(st.text(max_size=200))
def test_no_header_upsets_it(text: str) -> None:
    """Anything is parsed or passed over."""
    said(text)
    said(f'Bearer error="insufficient_claims", claims="{text}"')


# ---------------------------------------------------------------- over the wire


@pytest.fixture
def broker(desk: Desk) -> TokenBroker:
    """The job's."""
    return TokenBroker(EntraSource(identity_of(desk.cloud), clock=utc_now), clock=utc_now)


def asked(desk: Desk) -> list[dict]:
    """The claims of each token request but for the capability."""
    found = [json.loads(each.claims)["access_token"] for each in desk.cloud.tenant.requests if each.kind == "token"]
    return [{name: value for name, value in each.items() if name != "xms_cc"} for each in found]


def key_of(desk: Desk, broker: TokenBroker):
    """A delegation key."""
    return desk.service.delegation_key(
        ACCOUNT,
        lambda: broker.get(STORAGE_AUDIENCE),
        expires=datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1),
        client_request_id="x",
        renew=broker.renew,
    )[0]


def test_one_challenge_costs_one_token(desk, broker):
    """The request is sent again under the new token, without a pause."""
    desk.cloud.proxy.challenge(json.loads(CLAIMS), times=1)
    key = key_of(desk, broker)
    assert key.token_id == broker.get(STORAGE_AUDIENCE).token_id
    assert asked(desk) == [{}, json.loads(CLAIMS)["access_token"]]
    assert [each.status for each in desk.cloud.proxy.requests] == [401, 200]
    assert desk.paused == []


def test_a_second_challenge_is_a_refusal(desk, broker):
    """Storage refuses the new token as well: that is said, with what to look at; nobody asks for a third."""
    desk.cloud.proxy.challenge(json.loads(CLAIMS))
    with pytest.raises(AccessDenied, match="refuses the new token that was got with them as well") as caught:
        key_of(desk, broker)
    known = caught.value.diagnosis
    assert (known.status, known.code, known.attempts) == (401, "InvalidAuthenticationInfo", 2)
    assert known.request_id
    assert "Conditional Access" in known.hint
    assert known.tried == f"get a user delegation key of account {ACCOUNT}"
    assert asked(desk) == [{}, json.loads(CLAIMS)["access_token"]]
    assert desk.cloud.find_leaks(everything_in(caught.value)) == []


def test_challenges_that_stay_cost_no_token_each(desk, broker):
    """While the new token is new, each further access is the same refusal, of one request; then it may be let in."""
    desk.cloud.proxy.challenge(json.loads(CLAIMS))
    for _ in range(4):
        with pytest.raises(AccessDenied, match="refuses the new token that was got with them as well") as caught:
            key_of(desk, broker)
    assert (caught.value.diagnosis.status, caught.value.diagnosis.attempts) == (401, 1)
    assert [each.status for each in desk.cloud.proxy.requests] == [401] * 5
    desk.cloud.proxy.clear_faults()
    assert key_of(desk, broker).token_id == broker.get(STORAGE_AUDIENCE).token_id
    assert len(asked(desk)) == 2


def test_a_401_without_claims_costs_no_token(desk, broker):
    """It is refused at once."""
    desk.cloud.proxy.respond(401, "InvalidAuthenticationInfo", where=matching("GetUserDelegationKey"))
    with pytest.raises(AccessDenied, match="Storage refused the access"):
        key_of(desk, broker)
    assert asked(desk) == [{}]
