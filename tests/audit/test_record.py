"""The record models: one way to write each, unknown and wrong fields refused, no secret in any string."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from types import ModuleType
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from beam_entra.audit import record as records
from beam_entra.audit.fields import Digest, Id, Model
from beam_entra.audit.record import (
    ZEROS,
    AnyRecord,
    BundleOpened,
    Denied,
    InterimSealed,
    Previous,
    Probed,
    Read,
    Record,
    Sealed,
    SealedSegment,
    SegmentOpened,
    SegmentRolled,
    TokenAcquired,
    digest_of,
    parse_line,
    segment_name,
)

PROCESS = "10000000-0000-4000-8000-000000000001"
BUNDLE = "20000000-0000-4000-8000-000000000002"
NOW = datetime(2030, 1, 31, 9, 30, tzinfo=UTC)
LINK: dict[str, Any] = {"seq": 7, "prev": "ab" * 32, "time": NOW, "bundle": BUNDLE}


def _examples(trails: ModuleType) -> dict[type[Record], dict[str, Any]]:
    opened = trails.facts()
    facts = {name: getattr(opened, name) for name in type(opened).__slots__}
    segment, previous = segment_name(PROCESS, 1), Previous(segment=segment_name(PROCESS, 0), head=ZEROS)
    entry: dict[str, Any] = {"records": 1, "bytes": 2, "head": ZEROS, "opened_bundles": 0, "closed_bundles": 0}
    examples: dict[type[Record], dict[str, Any]] = trails.valid_facts() | {
        SegmentOpened: facts | {"segment": segment, "previous": previous},
        SegmentRolled: {"next": segment},
        InterimSealed: {"job": "j", "segments": (SealedSegment(segment=segment, **entry),)},
        Sealed: {
            "job": "j",
            "outcome": "failed",
            "error": "it broke",
            "segments": (SealedSegment(segment=segment, **entry),),
            "counts": {"read": 1},
        },
    }
    return examples


def test_examples_cover_every_kind(trails: ModuleType) -> None:
    """The table below misses no model."""
    assert set(_examples(trails)) == set(typing.get_args(AnyRecord))


def test_every_kind_reads_back_as_written(trails: ModuleType) -> None:
    """A line is ASCII without spaces around, begins with the envelope, and parses to the same record."""
    for model, facts in _examples(trails).items():
        record = model(**LINK, **facts)
        line = record.line()
        assert line.startswith(b'{"seq":7,"prev":"abab')
        assert list(json.loads(line))[:5] == ["seq", "prev", "time", "kind", "bundle"]
        assert b"\n" not in line
        assert line.isascii()
        assert parse_line(line) == record


def test_documents_every_field() -> None:
    """The docstrings are the reviewer's reference: each field of each model stands in one."""
    for model in (*typing.get_args(AnyRecord), Record, Previous, SealedSegment):
        own = set(model.model_fields) - (set(Record.model_fields) if model is not Record else set())
        for field in own - {"kind"}:
            assert f"\n    {field}: " in (inspect.getdoc(model) or ""), f"{model.__name__}.{field}"


def test_times_are_utc_with_microseconds(trails: ModuleType) -> None:
    """An aware time is written in UTC, with six digits also when they are zeros; a naive one is refused."""
    facts = trails.valid_facts()[Read]
    east = NOW.astimezone(timezone(timedelta(hours=5)))
    assert b'"time":"2030-01-31T09:30:00.000000Z"' in Read(**(LINK | {"time": east}), **facts).line()
    with pytest.raises(ValidationError, match="needs its zone"):
        Read(**(LINK | {"time": NOW.replace(tzinfo=None)}), **facts)


WRONG: dict[str, dict[str, Any]] = {
    "an unknown field": {"colour": "red"},
    "a negative offset": {"start": -1},
    "an end before the start": {"start": 5, "end": 4},
    "a number as text": {"end": "10"},
    "a float": {"end": 10.0},
    "true for a number": {"end": True},
    "a path of another scheme": {"path": "https://contosolake.blob.core.windows.net/raw/a"},
    "a path on another host": {"path": "abfss://raw@contosolake.dfs.example/a"},
    "a bundle that is no UUID": {"bundle": "b1"},
    "an upper-case UUID": {"bundle": BUNDLE.upper().replace("0", "A")},
    "a short digest": {"prev": "ab"},
    "an empty id": {"sas": ""},
    "an id with a space": {"sas": "s 1"},
    "an id that ends in a newline": {"sas": "s1\n"},
    "an empty request id": {"request_id": ""},
    "a lone surrogate": {"etag": "\ud800"},
    "a negative seq": {"seq": -1},
    "another kind": {"kind": "listed"},
}


@pytest.mark.parametrize("name", WRONG)
def test_refuses(trails: ModuleType, name: str) -> None:
    """A wrong field is an error, never coerced."""
    with pytest.raises(ValidationError):
        Read(**(LINK | trails.valid_facts()[Read] | WRONG[name]))


def test_is_frozen(trails: ModuleType) -> None:
    """A record cannot be changed after it was made."""
    record = Read(**LINK, **trails.valid_facts()[Read])
    with pytest.raises(ValidationError, match="frozen"):
        record.end = 11  # type: ignore[misc,unused-ignore]  # that is the point


SECRETS = {
    "SAS": "sv=1&sig=c2lnbmF0dXJl",
    "JWT": "eyJhbGciOiJub25lIn0.eyJzdWIiOiJub2JvZHkifQ.c2lnbmF0dXJlLXRlc3Q",
    "key": "ZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXp7fH1+f4CBgoM=",
}


@pytest.mark.parametrize("shape", SECRETS)
def test_no_string_field_takes_a_secret(trails: ModuleType, shape: str) -> None:
    """Whichever string field of whichever kind it is put into, alone or at the end of a value: refused, not quoted."""
    secret, tried = SECRETS[shape], 0
    for model, facts in _examples(trails).items():
        given_facts = LINK | facts
        for field, value in given_facts.items():
            if shape == "key" and field in model._named:
                continue  # a name may look like a key
            for bad in _with_secret(value, secret):
                with pytest.raises(ValidationError) as caught:
                    model(**(given_facts | {field: bad}))
                assert secret not in records.explain(caught.value)
                assert isinstance(bad, dict) or secret not in str(caught.value)  # pydantic itself names a mapping's key
                tried += 1
    assert tried > 150


def _with_secret(value: object, secret: str) -> list[object]:
    if isinstance(value, str):
        return [secret, f"{value} {secret}", value + "?" + secret]
    if isinstance(value, dict):
        return [value | {"a": secret}, value | {secret: 1}, value | {secret: "a"}]
    return []


class _Nested(Model):
    """Texts within others: no kind of record has them yet."""

    several: tuple[str, ...] = ()
    by_name: dict[str, tuple[str, ...]] | None = None
    perhaps: Annotated[Digest | Id, "one of two"] | None = None


@pytest.mark.parametrize("shape", SECRETS)
@pytest.mark.parametrize("field", ["several", "by_name", "perhaps"])
def test_no_text_within_another_is_a_secret(field: str, shape: str) -> None:
    """Wherever a field has room for text, it is searched."""
    nested = {"several": ("a", SECRETS[shape]), "by_name": {"a": (SECRETS[shape],)}, "perhaps": SECRETS[shape]}
    with pytest.raises(ValidationError):
        _Nested(**{field: nested[field]})


@pytest.mark.parametrize("name", [SECRETS["key"].rstrip("="), "sig=4/a", "Q1Jx8Kp9LmT3RqW7Zx9Qw8Er7Ty6Ui5Op4As3Df2Gh1"])
def test_a_blobs_name_may_look_like_a_key(trails: ModuleType, name: str) -> None:
    """Its access is audited, and so is its refusal, whose reason quotes the path."""
    path = f"abfss://raw@contosolake.dfs.core.windows.net/orders/{name}"
    assert parse_line(Read(**(LINK | trails.valid_facts()[Read] | {"path": path})).line())
    facts = trails.valid_facts()[Denied] | {"path": path, "reason": f"no grant to read {path}; nothing was sent"}
    assert parse_line(Denied(**LINK, **facts).line())
    with pytest.raises(ValidationError, match="reason holds what looks like a base64 key"):
        Denied(**LINK, **(facts | {"reason": f"{path} and {SECRETS['key']}"}))


def test_a_long_step_is_cut(trails: ModuleType) -> None:
    """Labels of nested transforms grow long, and must not keep a bundle from being opened."""
    facts = trails.valid_facts()[BundleOpened] | {"step": "Outer/" * 200}
    record = BundleOpened(**LINK, **facts)
    assert len(record.step) == 500
    assert parse_line(record.line()) == record


def test_a_refusal_says_what_to_do(trails: ModuleType) -> None:
    """Who has a blob of such a name learns which field it is, and the fix."""
    path = f"abfss://raw@contosolake.dfs.core.windows.net/orders/{SECRETS['JWT']}"
    with pytest.raises(ValidationError, match=r"path holds what looks like a JWT.*rename the blob"):
        Read(**(LINK | trails.valid_facts()[Read] | {"path": path}))


def test_says_which_field_holds_what(trails: ModuleType) -> None:
    """The message of a refused secret is enough to find it."""
    facts = trails.valid_facts()[Denied] | {"reason": f"refused {SECRETS['JWT']}"}
    with pytest.raises(ValidationError, match="reason holds what looks like a JWT"):
        Denied(**LINK, **facts)


def test_half_a_surrogate_pair_in_a_reason_can_be_read_back(trails: ModuleType) -> None:
    """A file's name that is no text may stand in an error: the refusal is recorded, and its line verifies."""
    reason = "no \udcff\ud83d \ud83d\ude00 \U0001f600\ud83d"
    record = Denied(**LINK, **(trails.valid_facts()[Denied] | {"reason": reason}))
    assert record.reason == "no \ufffd\ufffd \U0001f600 \U0001f600\ufffd"
    assert parse_line(record.line()) == record


def test_cuts_a_long_reason(trails: ModuleType) -> None:
    """A long error must not keep a denial from being audited."""
    facts = trails.valid_facts()[Denied] | {"reason": "no " * 10_000}
    assert len(Denied(**LINK, **facts).reason) == 2000


NOT_CANONICAL: dict[str, Callable[[bytes], bytes]] = {
    "a space": lambda line: line.replace(b",", b", ", 1),
    "a space at the end": lambda line: line + b" ",
    "a carriage return": lambda line: line + b"\r",
    "a repeated key": lambda line: line[:-1] + b',"end":10}',
    "a key that is repeated with another value": lambda line: line.replace(b'"end":10', b'"end":99,"end":10'),
    "another order": lambda line: line.replace(b'"start":0,"end":10', b'"end":10,"start":0'),
    "an escaped letter": lambda line: line.replace(b'"kind":"read"', b'"kind":"\\u0072ead"'),
    "a time in another zone": lambda line: line.replace(b"T09:30:00.000000Z", b"T10:30:00.000000+01:00"),
    "a time without microseconds": lambda line: line.replace(b".000000Z", b"Z"),
    "a time in seconds": lambda line: line.replace(b'"2030-01-31T09:30:00.000000Z"', b"1896082200"),
    "an exponent": lambda line: line.replace(b'"end":10', b'"end":1e1'),
    "a byte order mark": lambda line: b"\xef\xbb\xbf" + line,
    "bytes that are no UTF-8": lambda line: line.replace(b"orders", b"\xff\xfe"),
    "an unknown kind": lambda line: line.replace(b'"kind":"read"', b'"kind":"rsad"'),
    "no kind": lambda line: line.replace(b'"kind":"read",', b""),
    "a missing field": lambda line: line.replace(b',"end":10', b""),
    "nothing": lambda line: b"",
    "a list": lambda line: b"[" + line + b"]",
    "half of it": lambda line: line[: len(line) // 2],
}


@pytest.mark.parametrize("name", NOT_CANONICAL)
def test_parse_refuses(trails: ModuleType, name: str) -> None:
    """A line that says the same in other bytes is no line of ours."""
    line = Read(**LINK, **trails.valid_facts()[Read]).line()
    changed = NOT_CANONICAL[name](line)
    assert changed != line
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the table says why; the message must not quote
        parse_line(changed)
    assert "orders" not in str(caught.value)


@given(name=st.text(min_size=1, max_size=50))
def test_any_text_survives(trails: ModuleType, name: str) -> None:
    """A step's name of any characters is written in ASCII and reads back the same, or is refused."""
    facts = trails.valid_facts()[records.BundleOpened] | {"step": name}
    try:
        record = records.BundleOpened(**LINK, **facts)
    except ValidationError:
        assert any(0xD800 <= ord(c) <= 0xDFFF for c in name)
        return
    assert record.line().isascii()
    assert parse_line(record.line()) == record


def test_a_line_from_before_a_token_had_a_source(trails: ModuleType) -> None:
    """An older trail verifies: the field is left out where nobody said, and that is the one way to write it."""
    facts = {name: fact for name, fact in trails.valid_facts()[TokenAcquired].items() if name != "source"}
    line = TokenAcquired(**LINK, **facts).line()
    assert b"source" not in line
    assert parse_line(line) == TokenAcquired(**LINK, **facts, source=None)
    with pytest.raises(ValueError, match="canonical"):
        parse_line(line[:-1] + b',"source":null}')


PRESENTED: dict[str, dict[str, str | None]] = {
    "nothing": {"sas": None},
    "both": {"token": "t1"},
}


@pytest.mark.parametrize("name", PRESENTED)
@pytest.mark.parametrize("model", [Read, records.Copied, records.CommitIntended, records.Deleted])
def test_an_access_presents_one_thing(trails: ModuleType, model: type[Record], name: str) -> None:
    """A SAS or a token, never both and never neither."""
    with pytest.raises(ValidationError, match="presents a SAS or a token"):
        model(**(LINK | trails.valid_facts()[model] | PRESENTED[name]))


def test_what_was_not_presented_is_not_written(trails: ModuleType) -> None:
    """The line of an access names a SAS or a token, in one place; so older lines verify as they are."""
    facts = trails.valid_facts()[Read]
    with_sas = Read(**LINK, **facts).line()
    with_token = Read(**LINK, **(facts | {"sas": None, "token": "s1"})).line()
    assert with_token == with_sas.replace(b'"sas":"s1"', b'"token":"s1"')
    assert b"token" not in with_sas
    assert parse_line(with_token).line() == with_token
    with pytest.raises(ValueError, match="canonical"):
        parse_line(with_token.replace(b'"token"', b'"sas":null,"token"'))


@pytest.mark.parametrize("both", [True, False])
def test_a_probe_presents_one_thing_or_nothing(trails: ModuleType, both: bool) -> None:
    """Not a SAS and a token; and what is not there is not written."""
    facts = trails.valid_facts()[Probed] | LINK
    if both:
        with pytest.raises(ValidationError, match="a SAS, or a token, or nothing"):
            Probed(**(facts | {"token": "t1"}))
    else:
        look = Probed(**(facts | {"sas": None, "permission": "read", "asked": "look"}))
        assert b'"sas"' not in look.line()
        assert parse_line(look.line()) == look


@pytest.mark.parametrize("changed", [{"source_sas": None}, {"source_token": "t1"}, {"sas": None, "token": "t1"}])
def test_a_copy_presents_two_of_a_kind(trails: ModuleType, changed: dict[str, str | None]) -> None:
    """Two SAS or two tokens: a job has one scoping."""
    with pytest.raises(ValidationError, match="two SAS or two tokens"):
        records.Copied(**(LINK | trails.valid_facts()[records.Copied] | changed))


def test_digest_is_of_the_line() -> None:
    """The chain's digest can be made with sha256sum."""
    assert digest_of(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
