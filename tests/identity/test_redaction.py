"""Other people's error texts: what is shown of them, and what is not."""

from __future__ import annotations

import secrets
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_entra.identity.redaction import redacted

GUID = "11111111-2222-4333-8444-555555555555"
SHOWN = [
    "Identity not found",
    "No User Assigned or Delegated Managed Identity found for specified ClientId/ResourceId/PrincipalId.",
    f"client {GUID} is not known",
    "invalid_scope",
    "connect to 10.0.0.7:443 timed out",
]


@pytest.mark.parametrize("text", SHOWN)
def test_an_error_stays_readable(text):
    """What says something is left."""
    assert redacted(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "password: {}",
        "client_secret={}",
        '"access_token": "{}"',
        "SAS token {}",
        "Authorization: Bearer {}",
        "tried bearer {} in vain",
        "?sig={}&sv=1",
    ],
)
def test_what_is_named_as_a_secret_is_taken_out(text):
    """Even a short one, without a digit."""
    assert "hunter" not in redacted(text.format("hunter"))


@pytest.mark.parametrize(
    "text",
    [
        f"Ensure the secret being sent in the request is the client secret value, for a secret added to app '{GUID}'.",
        "AADSTS7000215: Invalid client secret provided. It is not the client secret ID",
        "AADSTS700027: Client assertion failed signature validation.",
        "AADSTS700024: Client assertion is not within its valid time range. Current time: 2030-01-31T09:30:02.1234567Z",
        "A secret with (name/id) orders was not found in this key vault",
    ],
)
def test_a_sentence_about_secrets_stays_a_sentence(text):
    """Entra and Key Vault name no secret's value; who reads them at night needs each word."""
    assert redacted(text, prose=True) == text


@pytest.mark.parametrize("text", ["secret={}", "the secret {}", "assertion: {}", "secret Bearer {}", '"token": "{}"'])
@pytest.mark.parametrize("value", ["hunter2", "s~x", "abcdefghijklmnopqrstuvwx"])
def test_a_sentence_gives_no_secret_away(text, value):
    """What is assigned, or is no plain word, goes from sentences too."""
    assert value not in redacted(text.format(value), prose=True)


@given(st.integers(12, 60))
def test_a_random_run_is_taken_out(size):
    """A key, a token or an assertion in the middle of a sentence, whatever it is called."""
    text = secrets.token_urlsafe(size) + "a1"
    assert text not in redacted(f"asked with {text} and failed")


def test_what_is_known_is_taken_out():
    """The longer first, so that no tail is left of it."""
    assert redacted("it was correct-horse or correct", "correct", "correct-horse") == "it was [redacted] or [redacted]"


@pytest.mark.parametrize("unit", ["a-", "token ", "bearer ", "key=", "x" * 15 + " ", "-", "a1"])
def test_a_long_text_takes_no_time(unit):
    """What a command or a provider may say is long, and may be made to be slow to search."""
    began = time.process_time()
    redacted(unit * (256 * 1024 // len(unit)))
    assert time.process_time() - began < 1


@given(st.text(max_size=2000))
def test_it_is_one_bounded_line(text):
    """Nothing a terminal would act on is left, and not more than a line."""
    shown = redacted(text)
    assert shown.isprintable()
    assert len(shown) <= 303
