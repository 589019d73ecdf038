"""Retry-After in both of its forms."""

from __future__ import annotations

import pytest

from beam_entra.clock import utc_now
from beam_entra.errors import IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.identity.http import retry_after_s
from tests.identity.test_sources import federated

NOON = "Sun, 01 Mar 2026 12:00:00 GMT"
ASKED = {
    "seconds": ({"Retry-After": "17"}, 17),
    "a time": ({"Retry-After": "Sun, 01 Mar 2026 12:02:00 GMT", "Date": NOON}, 120),
    "a time that is over": ({"retry-after": "Sun, 01 Mar 2026 11:00:00 GMT", "date": NOON}, 0),
    "a time, and nobody knows what time it is": ({"Retry-After": NOON}, None),
    "something": ({"Retry-After": "soon", "Date": NOON}, None),
    "digits of another script": ({"Retry-After": "\u0661"}, None),
    "a negative number": ({"Retry-After": "-3", "Date": NOON}, None),
    "nothing": ({}, None),
}


@pytest.mark.parametrize(("headers", "seconds"), ASKED.values(), ids=ASKED)
def test_how_long_to_wait(headers, seconds):
    """Of a time, what lies between it and the answer's own Date: the worker's clock need not be right."""
    assert retry_after_s(headers) == seconds


def test_entras_wish_is_in_the_error(beam_entra_cloud):
    """The broker reads it there."""
    beam_entra_cloud.tenant.throttle(13, times=1)
    with pytest.raises(IdentityUnavailable) as caught:
        EntraSource(federated(beam_entra_cloud), clock=utc_now).acquire(STORAGE_AUDIENCE)
    assert caught.value.diagnosis.retry_after_s == 13
