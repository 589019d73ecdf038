"""Each rule of `verify` is broken alone, by an attacker who chains and seals everything again, and is named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from beam_entra.audit import lineage
from beam_entra.audit.checking import check_segments
from beam_entra.audit.record import SEAL_NAME, ZEROS
from beam_entra.audit.verify import verify
from beam_entra.errors import TrailBroken

OTHER_BUNDLE = "f0000000-0000-4000-8000-00000000000f"

Change = Callable[[Any, Any], Any]  # (trails, records or files) -> None or files


def _edit(kind: str, /, **changed: Any) -> Change:
    """Change fields of the first record of a kind."""

    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        found[at] |= changed

    return change


def _drop(kind: str) -> Change:
    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        del found[at]

    return change


def _drop_field(kind: str, field: str) -> Change:
    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        del found[at][field]

    return change


def _repeat(kind: str) -> Change:
    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        found.insert(at + 1, dict(found[at]))

    return change


def _both(first: Change, second: Change) -> Change:
    return lambda trails, records: (first(trails, records), second(trails, records))


def _name(trails: Any, process: int, number: int) -> str:
    return f"segment-{trails.PROCESSES[process]}-{number:05d}.jsonl"


def _in_second_process(**changed: Any) -> Change:
    return lambda trails, records: records[_name(trails, 1, 0)][0].update(changed)


def _in_second_process_after(field: str, **added: Any) -> Change:
    """Add to the opening of the second process's segment, in the place where the field is written."""

    def change(trails: Any, records: Any) -> None:
        opened = records[_name(trails, 1, 0)]
        at = list(opened[0]).index(field) + 1
        facts = list(opened[0].items())
        opened[0] = dict([*facts[:at], *added.items(), *facts[at:]])

    return change


def _drop_segment(process: int, number: int) -> Change:
    return lambda trails, records: records.pop(_name(trails, process, number))


def _orphan(trails: Any, records: Any) -> None:
    """The second process is said to have been continued, from nothing."""
    moved = records.pop(_name(trails, 1, 0))
    moved[0]["segment"] = _name(trails, 1, 1)
    records[_name(trails, 1, 1)] = moved


def _drop_roll(trails: Any, records: Any) -> None:
    found, at = trails.find(records, "segment_rolled")
    del found[at]


def _after_roll(trails: Any, records: Any) -> None:
    found, _ = trails.find(records, "segment_rolled")
    found.append(dict(trails.find(records, "denied")[0][-1]))


def _wrong_link(process: int, number: int) -> Change:
    """A segment says that it continues another than the one before it, or one where there is none."""
    previous = {"segment": f"segment-{OTHER_BUNDLE}-00000.jsonl", "head": "ab" * 32}
    return lambda trails, records: records[_name(trails, process, number)][0].update(forced={"previous": previous})


def _roll_to_another_process(trails: Any, records: Any) -> None:
    found, at = trails.find(records, "segment_rolled")
    last = records[_name(trails, 0, 3)]
    last.append(found[at] | {"next": _name(trails, 1, 0), "time": last[-1]["time"]})


def _name_another(trails: Any, records: Any) -> None:
    found, at = trails.find(records, "segment_rolled")
    found[at]["next"] = _name(trails, 0, 7)


def _use_of_other(kind: str) -> Change:
    """The first record of a kind presents the SAS of another, which is not for it."""

    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        listing, place = trails.find(records, "sas_issued")
        assert listing[place]["permission"] == "list"
        found[at]["sas"] = listing[place]["sas"]

    return change


def _copy_with(**same: str) -> Change:
    """The first copy presents one SAS for both sides: the key's is the value's."""

    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, "copied")
        for one, other in same.items():
            found[at][one] = found[at][other]

    return change


def _sas_of(kind: str, **changed: Any) -> Change:
    """Change the SAS that the first record of a kind presents."""

    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        wanted = found[at]["sas"]
        for record in (record for name in sorted(records) for record in records[name]):
            if record["kind"] == "sas_issued" and record["sas"] == wanted:
                record.update(changed)

    return change


def _probe_with_a_token(trails: Any, records: Any) -> None:
    found, at = trails.find(records, "probed")
    token = next(r["token"] for of_one in records.values() for r in of_one if r["kind"] == "token_acquired")
    found[at] = {("token" if name == "sas" else name): value for name, value in found[at].items()} | {"token": token}


def _second_key_of_another_token(trails: Any, records: Any) -> None:
    found, at = trails.find(records, "token_acquired")
    found.insert(at + 1, found[at] | {"token": "other"})
    found, at = trails.find(records, "sas_issued")
    found[at]["token"] = "other"


def _seal_inside(trails: Any, records: Any) -> None:
    found, at = trails.find(records, "denied")
    envelope = {key: found[at][key] for key in ("seq", "prev", "time", "kind", "bundle")}
    found[at] = envelope | {"kind": "sealed", "job": "j", "outcome": "ok", "error": None, "segments": [], "counts": {}}


def _standing_still(kind: str) -> Change:
    """The first record of a kind has the time of the line before."""

    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        found[at]["time"] = found[at - 1]["time"]

    return change


EARLY, LATE = "2030-01-31T09:20:00.000000Z", "2030-02-28T09:30:00.000000Z"
NEVER = "9999-12-31T23:59:59.000000Z"

SEMANTIC: dict[str, tuple[int, Change]] = {
    "a segment that does not begin with segment_opened": (5, _drop("segment_opened")),
    "a segment under another name": (5, _edit("segment_opened", segment="segment-" + OTHER_BUNDLE + "-00000.jsonl")),
    "a segment opened twice": (5, _repeat("segment_opened")),
    "a segment of another job": (5, _in_second_process(job="invoices")),
    "a segment of another pipeline": (5, _in_second_process(pipeline="invoices")),
    "a segment of another environment": (5, _in_second_process(environment="prod")),
    "a segment of another tenant": (5, _in_second_process(tenant="fabrikam.example")),
    "a segment of another client": (5, _in_second_process(client="somebody")),
    "a segment of another credential": (5, _in_second_process(credential="secret")),
    "a segment of another scoping": (5, _in_second_process_after("credential", scoping="sas")),
    "a segment of a rolling life": (5, _in_second_process_after("deadline", rolling_s=60)),
    "a segment with another deadline": (5, _in_second_process(deadline=LATE)),
    "a segment under another manifest": (5, _in_second_process(manifest_digest="cd" * 32)),
    "a seal inside a segment": (5, _seal_inside),
    "a continued segment that is missing": (6, _drop_segment(0, 1)),
    "a last segment that is missing, before another process's": (6, _drop_segment(0, 3)),
    "a last segment that is missing, after all others": (
        6,
        lambda trails, records: (_drop_segment(0, 3)(trails, records), _drop_segment(1, 0)(trails, records)),
    ),
    "a continuation that is missing its start": (6, _drop_segment(0, 0)),
    "a continuation of nothing": (6, _orphan),
    "a roll that is not recorded": (6, _drop_roll),
    "a record after the roll": (6, _after_roll),
    "a second roll": (6, _repeat("segment_rolled")),
    "a roll to another segment": (6, _name_another),
    "a roll to another process's segment": (6, _roll_to_another_process),
    "a continuation that names another segment": (6, _wrong_link(0, 1)),
    "a first segment that says it continues one": (6, _wrong_link(1, 0)),
    "a time that runs backwards": (7, _edit("denied", time=EARLY)),
    "a time before the calendar": (2, _edit("denied", time="0001-01-01T00:00:00+23:59")),
    "a token id given twice": (8, _repeat("token_acquired")),
    "a key id given twice": (8, _repeat("key_acquired")),
    "a SAS id given twice": (8, _repeat("sas_issued")),
    "a bundle that was not opened": (9, _drop("bundle_opened")),
    "a bundle opened twice": (9, _repeat("bundle_opened")),
    "a bundle opened without id": (9, _edit("bundle_opened", bundle=None)),
    "a bundle closed twice": (9, _repeat("bundle_closed")),
    "a bundle closed without id": (9, _edit("bundle_closed", bundle=None)),
    "a bundle closed and never opened": (9, _edit("bundle_closed", bundle=OTHER_BUNDLE)),
    "a refusal for a bundle never opened": (9, _edit("denied", bundle=OTHER_BUNDLE)),
    "a bundle with an unknown token": (9, _edit("bundle_opened", token="t99")),
    "a key without its token": (10, _drop("token_acquired")),
    "a key of an expired token": (10, _edit("token_acquired", expires=EARLY)),
    "a SAS without its key": (11, _drop("key_acquired")),
    "a SAS with another token than its key's": (11, _second_key_of_another_token),
    "a SAS of another account": (
        11,
        _edit("sas_issued", path="abfss://raw@fabrikamlake.dfs.core.windows.net/orders/"),
    ),
    "a SAS that was never valid": (11, _edit("sas_issued", expires=EARLY)),
    "a SAS that was never valid, where the time stands still": (
        11,
        _both(_edit("sas_issued", expires="2030-01-31T09:18:59.000000Z"), _standing_still("sas_issued")),
    ),
    "a SAS that outlives its key": (11, _edit("key_acquired", expires="2030-01-31T09:59:59.000000Z")),
    "a SAS that outlives the job": (
        11,
        lambda trails, records: [found[0].update(deadline="2030-01-31T09:59:59.000000Z") for found in records.values()],
    ),
    "a SAS with another bundle's id": (11, _edit("sas_issued", correlation=OTHER_BUNDLE)),
    "a read without its SAS": (12, _edit("read", sas="s99")),
    "a read with a SAS for listing": (12, _use_of_other("read")),
    "a block with a SAS for listing": (12, _use_of_other("staged")),
    "an intent with a SAS for listing": (12, _use_of_other("commit_intended")),
    "a commit with a SAS for listing": (12, _use_of_other("committed")),
    "a listing with a SAS for reading": (12, _sas_of("listed", permission="read")),
    "a write with a SAS for appending": (12, _sas_of("staged", permission="append")),
    "a read of another blob": (12, _edit("read", path="abfss://raw@contosolake.dfs.core.windows.net/hr/x")),
    "a read below the SAS's blob": (
        12,
        lambda trails, records: (
            _sas_of("read", path=trails.LAKE + "orders/")(trails, records),
            _edit("read", path=trails.LAKE + "orders/1.jsonl")(trails, records),
        ),
    ),
    "a listing above the SAS's prefix": (12, _edit("listed", path="abfss://raw@contosolake.dfs.core.windows.net/")),
    "a listing beside the SAS's prefix": (
        12,
        _edit("listed", path="abfss://raw@contosolake.dfs.core.windows.net/orders-secret/"),
    ),
    "a read for another bundle": (12, _edit("read", bundle=None)),
    "a probe without its SAS": (12, _edit("probed", sas="s99")),
    "a probe that says another permission": (2, _edit("probed", permission="append")),
    "a probe with another permission": (12, _edit("probed", permission="append", asked="change")),
    "a probe for more than a look, with nothing": (2, _drop_field("probed", "sas")),
    "a look with a SAS": (2, _edit("probed", permission="read", asked="look")),
    "a probe of another blob": (12, _edit("probed", path="abfss://raw@contosolake.dfs.core.windows.net/hr/x")),
    "a probe with a token, of a job scoped by SAS": (12, _probe_with_a_token),
    "a read after the SAS's end": (12, _sas_of("read", expires="2030-01-31T09:30:00.500000Z")),
    "a commit without an intent": (13, _drop("commit_intended")),
    "a commit found without an intent": (13, _both(_drop("commit_intended"), _edit("committed", confirmed=True))),
    "a copy with the reader's SAS on both sides": (12, _copy_with(sas="source_sas")),
    "a copy with the writer's SAS on both sides": (12, _copy_with(source_sas="sas")),
    "a copy of another blob": (12, _edit("copied", source="abfss://raw@contosolake.dfs.core.windows.net/hr/x")),
    "a copy to another blob": (12, _edit("copied", path="abfss://raw@contosolake.dfs.core.windows.net/hr/x")),
    "a copy without the reader's SAS": (12, _edit("copied", source_sas="s99")),
    "a deletion with a SAS for writing": (12, _sas_of("deleted", permission="write")),
    "a deletion of another blob": (12, _edit("deleted", path="abfss://raw@contosolake.dfs.core.windows.net/hr/x")),
    "a deletion without an intent": (13, _drop("delete_intended")),
    "a deletion of another version": (13, _edit("deleted", etag='"0x99"')),
    "a deletion of whatever is there": (13, _edit("deleted", etag=None)),
    "a commit of another id": (13, _edit("committed", commit="c99")),
    "a commit of another size": (13, _edit("committed", size=11)),
    "a commit with other rows": (13, _edit("committed", rows=None)),
}


@pytest.mark.parametrize("name", SEMANTIC)
def test_rule(trails: ModuleType, name: str) -> None:
    """Chained and sealed again, so that no other rule is broken: this one still is."""
    rule, change = SEMANTIC[name]
    files = trails.sample()[0].files
    if name == "a read after the SAS's end":  # time passes, as it would have to
        assert lineage.IN_FLIGHT.total_seconds() == 120
        change = _both(change, _later("read", "2030-01-31T09:33:00.000000Z"))
    with pytest.raises(TrailBroken, match=rf"^\S+ line \d+: rule {rule}: "):
        verify(trails.MemoryTrail(trails.rewritten(files, lambda records: change(trails, records))))


def _every(kind: str, /, **changed: Any) -> Change:
    """Change fields of all records of a kind."""
    return lambda trails, records: [r.update(changed) for found in records.values() for r in found if r["kind"] == kind]


def _presenting(kind: str, credential: str, /, *, as_: str) -> Change:
    """Let the first record of a kind present something else, as a SAS or as a token."""

    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        old = "sas" if "sas" in found[at] else "token"
        found[at] = {(as_ if k == old else k): (credential if k == old else v) for k, v in found[at].items()}

    return change


def _key_after_token(trails: Any, records: Any) -> None:
    found, at = trails.find(records, "token_acquired")
    envelope = {key: found[at][key] for key in ("seq", "prev", "time")}
    key = {"key": "k1", "account": "contosolake", "token": "t1", "expires": found[at]["expires"]}
    found.insert(at + 1, envelope | {"kind": "key_acquired", "bundle": None} | trails.request(1) | key)


def _extension_of_second(**changed: Any) -> Change:
    """Change the second extension of the deadline."""

    def change(trails: Any, records: Any) -> None:
        (found,) = records.values()
        [r for r in found if r["kind"] == "deadline_extended"][1].update(changed)

    return change


def _token(identifier: str, /, **changed: Any) -> Change:
    def change(trails: Any, records: Any) -> None:
        (found,) = records.values()
        next(r for r in found if r["kind"] == "token_acquired" and r["token"] == identifier).update(changed)

    return change


BEARER: dict[str, tuple[int, Change]] = {
    "an access with a token, of a job scoped by SAS": (12, _edit("segment_opened", scoping="sas")),
    "an access with a token, of a job from before it could be scoped": (12, _drop_field("segment_opened", "scoping")),
    "a token that was not acquired": (12, _edit("read", token="t99")),
    "a listing with a token that was not acquired": (12, _edit("listed", token="t99")),
    "a block with a token that was not acquired": (12, _edit("staged", token="t99")),
    "a copy with a token that was not acquired": (12, _edit("copied", token="t99")),
    "a copy from a blob with a token that was not acquired": (12, _edit("copied", source_token="t99")),
    "an intent with a token that was not acquired": (12, _edit("commit_intended", token="t99")),
    "a commit with a token that was not acquired": (12, _edit("committed", token="t99")),
    "an intended deletion with a token that was not acquired": (12, _edit("delete_intended", token="t99")),
    "a deletion with a token that was not acquired": (12, _edit("deleted", token="t99")),
    "a token that came later": (12, _edit("read", token="t2")),
    "a token for another service": (12, _edit("read", token="g1")),
    "a token that had expired": (12, _both(_token("t1", expires=EARLY), _edit("listed", token="t1"))),
    "an access of no bundle": (12, _edit("read", bundle=None)),
    "a SAS in a job scoped by bearer": (12, _presenting("read", "s1", as_="sas")),
    "a key in a job scoped by bearer": (10, _key_after_token),
    "an access after the deadline": (
        12,
        _both(_every("deadline_extended", deadline="2030-01-31T09:40:00.000000Z"), _edit("segment_opened")),
    ),
    "a deadline that is extended where it is fixed": (17, _drop_field("segment_opened", "rolling_s")),
    "a rolling life that is longer than a manifest's": (2, _edit("segment_opened", rolling_s=10**30)),
    "a deadline that is extended by too much": (17, _edit("deadline_extended", deadline="2030-01-31T10:33:00.000000Z")),
    "a deadline that is extended by a token that was not acquired": (17, _edit("deadline_extended", token="t99")),
    "a deadline that is extended by a token for another service": (17, _extension_of_second(token="g2")),
    "a deadline that is extended by the same token": (17, _extension_of_second(token="t1")),
    "a deadline that is extended by a token from a cache": (17, _token("t2", expires="2030-01-31T10:20:00.000000Z")),
    "a commit without an intent": (13, _drop("commit_intended")),
}


@pytest.mark.parametrize("name", BEARER)
def test_rule_of_a_job_that_presents_its_token(trails: ModuleType, name: str) -> None:
    """Scoped by bearer, with a rolling life: chained and sealed again, and found."""
    rule, change = BEARER[name]
    files = trails.bearer_sample().files
    with pytest.raises(TrailBroken, match=rf"^\S+ line \d+: rule {rule}: "):
        verify(trails.MemoryTrail(trails.rewritten(files, lambda records: change(trails, records))))


def test_a_job_that_presents_its_token_verifies(trails: ModuleType) -> None:
    """Each access with a live token of its process; the deadline moves on with each fresh one, past the first."""
    summary = verify(trails.bearer_sample())
    assert (summary.scoping, summary.counts["deadline_extended"]) == ("bearer", 2)
    assert verify(trails.sample()[0]).scoping == "sas", "a trail from before it could be chosen"


def test_a_token_that_never_ends_is_no_riddle(trails: ModuleType) -> None:
    """An instant at the calendar's end is compared like any other."""
    never = _every("token_acquired", expires=NEVER)
    files = trails.rewritten(trails.sample()[0].files, lambda records: never(trails, records))
    assert verify(trails.MemoryTrail(files)).counts["token_acquired"]


def _later(kind: str, time: str) -> Change:
    """Let the first record of a kind and all that the process did after it happen at a later time."""

    def change(trails: Any, records: Any) -> None:
        found, at = trails.find(records, kind)
        process = found[0]["segment"][:45]
        begun = False
        for name in sorted(records):
            if name[:45] == process:
                for record in records[name]:
                    begun = begun or record is found[at]
                    if begun:
                        record["time"] = time

    return change


def _grown(trails: Any, files: dict[str, bytes], name: str) -> Any:
    records = trails.parsed(files)
    records[name].append(dict(trails.find(records, "denied")[0][-1]) | {"time": records[name][-1]["time"]})
    return trails.rechained(records) | {SEAL_NAME: files[SEAL_NAME]}


def _entries(trails: Any, files: dict[str, bytes]) -> list[Any]:
    return [segment.sealed.model_dump() for segment in verify(trails.MemoryTrail(files)).segments]


def _listed_twice(trails: Any, files: dict[str, bytes]) -> Any:
    entries = _entries(trails, files)
    return trails.resealed(files, segments=[entries[0], *entries])


def _listed_backwards(trails: Any, files: dict[str, bytes]) -> Any:
    return trails.resealed(files, segments=_entries(trails, files)[::-1])


BYTES: dict[str, tuple[int, Callable[[Any, dict[str, bytes]], Any]]] = {
    "a file that is no segment": (1, lambda trails, files: {**files, "notes.txt": b"x"}),
    "a file in a folder below": (1, lambda trails, files: {**files, "old/" + SEAL_NAME: files[SEAL_NAME]}),
    "an upper-case segment": (1, lambda trails, files: {**files, _name(trails, 1, 0).upper(): b""}),
    "a line that is no JSON": (
        2,
        lambda trails, files: _replace(files, _name(trails, 1, 0), b'{"seq":1', b'{"seq":1,'),
    ),
    "an empty line": (2, lambda trails, files: _replace(files, _name(trails, 1, 0), b'\n{"seq":1', b'\n\n{"seq":1')),
    "no newline at the end": (2, lambda trails, files: files | {_name(trails, 1, 0): files[_name(trails, 1, 0)][:-1]}),
    "a count that skips": (3, lambda trails, files: _replace(files, _name(trails, 1, 0), b'{"seq":1', b'{"seq":2')),
    "a digest of something else": (
        4,
        lambda trails, files: _replace(files, _name(trails, 1, 0), b'{"seq":0,"prev":"00', b'{"seq":0,"prev":"11'),
    ),
    "a line that was changed": (4, lambda trails, files: _replace(files, _name(trails, 1, 0), b'"pid":', b'"pid":1')),
    "no seal": (14, lambda trails, files: {name: data for name, data in files.items() if name != SEAL_NAME}),
    "an empty seal": (14, lambda trails, files: files | {SEAL_NAME: b""}),
    "a seal cut short": (14, lambda trails, files: files | {SEAL_NAME: files[SEAL_NAME][:-1]}),
    "two seals": (14, lambda trails, files: files | {SEAL_NAME: files[SEAL_NAME] * 2}),
    "a seal that is no JSON": (14, lambda trails, files: files | {SEAL_NAME: b"sealed\n"}),
    "another record as the seal": (
        14,
        lambda trails, files: files | {SEAL_NAME: files[_name(trails, 1, 0)].splitlines(keepends=True)[0]},
    ),
    "a seal of another job": (14, lambda trails, files: trails.resealed(files, job="invoices")),
    "a seal with another place in the chain": (14, lambda trails, files: trails.resealed(files, seq=1)),
    "a seal that lists nothing": (15, lambda trails, files: trails.resealed(files, segments=[])),
    "a seal with other counts": (15, lambda trails, files: trails.resealed(files, counts={"read": 1})),
    "a segment that was removed": (
        15,
        lambda trails, files: {k: v for k, v in files.items() if k != _name(trails, 1, 0)},
    ),
    "an empty segment that was removed": (
        15,
        lambda trails, files: files | _seal_of(trails.resealed({**files, _name(trails, 2, 0): b""})),
    ),
    "a segment that was added": (15, lambda trails, files: {**files, _name(trails, 2, 0): b""}),
    "a segment that was emptied": (15, lambda trails, files: files | {_name(trails, 1, 0): b""}),
    "a segment that lost its last line": (15, lambda trails, files: _cut(files, _name(trails, 1, 0))),
    "a segment that grew after sealing": (15, lambda trails, files: _grown(trails, files, _name(trails, 1, 0))),
    "a last line that was changed": (
        15,
        lambda trails, files: _replace(files, _name(trails, 1, 0), b'"missing":false', b'"missing":true'),
    ),
    "a seal that lists a segment twice": (15, _listed_twice),
    "a seal in another order": (15, _listed_backwards),
}


def _seal_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {SEAL_NAME: files[SEAL_NAME]}


def _replace(files: dict[str, bytes], name: str, old: bytes, new: bytes) -> dict[str, bytes]:
    assert old in files[name]
    return files | {name: files[name].replace(old, new, 1)}


def _cut(files: dict[str, bytes], name: str) -> dict[str, bytes]:
    return files | {name: b"".join(files[name].splitlines(keepends=True)[:-1])}


@pytest.mark.parametrize("name", BYTES)
def test_rule_of_files(trails: ModuleType, name: str) -> None:
    """Files added, removed, cut, or changed without chaining again."""
    rule, change = BYTES[name]
    files = trails.sample()[0].files
    with pytest.raises(TrailBroken, match=rf"^\S+ line \d+: rule {rule}: "):
        verify(trails.MemoryTrail(change(trails, files)))


def test_tables_break_every_rule() -> None:
    """The docstring's rules and the tables above are the same set; rule 16 is below, 18 and 19 in test_interim.py."""
    import beam_entra.audit.verify as module  # noqa: PLC0415  for its docstring only

    documented = set(map(int, re.findall(r"^ +(\d+)  \S", module.__doc__ or "", re.MULTILINE)))
    assert documented == set(range(1, 20))
    assert {rule for rule, _ in (*SEMANTIC.values(), *BYTES.values(), *BEARER.values())} == documented - {16, 18, 19}


def test_seal_digest(trails: ModuleType) -> None:
    """Rule 16: who can rewrite every file can make a trail that verifies; only the digest kept elsewhere finds it."""
    store, seal = trails.sample()
    assert verify(store, seal_digest=seal.digest).seal_digest == seal.digest
    assert verify(store, seal_digest=seal.digest.upper() + "\n").seal == seal.record
    forged = trails.MemoryTrail(
        trails.rewritten(store.files, lambda records: _edit("denied", reason="none")(trails, records))
    )
    assert verify(forged).counts["denied"] == 1, "without the digest, nobody can know"
    with pytest.raises(TrailBroken, match=rf"{SEAL_NAME} line 1: rule 16: "):
        verify(forged, seal_digest=seal.digest)


def test_names_segment_and_line(trails: ModuleType) -> None:
    """The message names the file and the 1-based line, the rule, and what to do."""
    store, _ = trails.sample()
    name = _name(trails, 1, 0)
    changed = _replace(store.files, name, b'"kind":"token_acquired"', b'"kind":"token_required"')
    with pytest.raises(TrailBroken, match=f"^{name} line 2: rule 2: unknown kind of record") as caught:
        verify(trails.MemoryTrail(changed))
    assert "compare it" in caught.value.hint


def test_names_where_a_segment_was_cut_or_grew(trails: ModuleType) -> None:
    """The first record that is missing, or too many, is pointed at; so is a segment that is gone."""
    store, _ = trails.sample()
    name = _name(trails, 1, 0)
    cut, grown = _cut(store.files, name), _grown(trails, store.files, name)
    gone = {other: data for other, data in store.files.items() if other != name}
    for files, message in (
        (cut, f"^{name} line 10: rule 15: it ends after 9 of 10 records"),
        (grown, f"^{name} line 11: rule 15: it was sealed with 10 records and has 11"),
        (gone, f"^{name} line 1: rule 15: sealed, and missing"),
    ):
        with pytest.raises(TrailBroken, match=message):
            verify(trails.MemoryTrail(files))


def test_summary(trails: ModuleType) -> None:
    """A sound trail is summed up; bundles that ended without closing are reported where they were opened, no error."""
    store, seal = trails.sample()
    summary = verify(store)
    assert summary.job == trails.JOB
    assert summary.seal.outcome == "ok"
    assert summary.records == len(store.lines()) - 1
    assert summary.counts["committed"] == 2
    assert (summary.bundles, summary.open_bundles) == (3, 1)
    assert [len(segment.open_bundles) for segment in summary.segments][-1] == 1
    assert len(summary.segments) > 2, "the sample has a rolled segment"
    for segment in summary.segments:
        data = store.files[segment.sealed.segment]
        lines = data.splitlines()
        assert (segment.sealed.bytes, segment.sealed.records) == (len(data), len(lines))
        assert segment.sealed.head == hashlib.sha256(lines[-1]).hexdigest()
        assert segment.opened is not None
    assert summary.seal_digest == seal.digest == hashlib.sha256(store.files[SEAL_NAME].strip()).hexdigest()


def test_bundle_closed_in_a_later_segment(trails: ModuleType) -> None:
    """A bundle opened before a roll and closed after it is closed."""
    store, _ = trails.sample()
    summary = verify(store)
    opened = [segment.sealed.opened_bundles for segment in summary.segments]
    closed = [segment.sealed.closed_bundles for segment in summary.segments]
    assert opened[0] > closed[0]
    assert summary.segments[0].open_bundles == ()


def test_an_empty_segment_is_no_error(trails: ModuleType) -> None:
    """A process that died before its first record leaves an empty file, sealed as such; nothing may appear there."""
    store, _ = trails.sample()
    empty = _name(trails, 2, 0)
    files = trails.resealed({**store.files, empty: b""})
    last = verify(trails.MemoryTrail(files)).segments[-1]
    assert (last.opened, last.sealed.records, last.sealed.head) == (None, 0, ZEROS)
    with pytest.raises(TrailBroken, match=f"{empty} line 1: rule 2"):
        verify(trails.MemoryTrail(files | {empty: b"x"}))


def test_died_while_rolling(trails: ModuleType) -> None:
    """A process that died between making the next file and writing to it leaves a sound trail, at either moment."""
    store, _ = trails.sample()
    records = trails.parsed(store.files)
    first, second = _name(trails, 0, 0), _name(trails, 0, 1)
    for number in range(1, 9):
        records.pop(_name(trails, 0, number), None)
    rolled = trails.rechained(records) | {second: b""}
    assert check_segments(trails.MemoryTrail(rolled)).counts["segment_rolled"] == 1
    records[first].pop()
    not_yet = trails.rechained(records) | {second: b""}
    assert "segment_rolled" not in check_segments(trails.MemoryTrail(not_yet)).counts


def test_in_flight(trails: ModuleType) -> None:
    """An answer may be recorded shortly after the SAS's end: Storage looks at the end when the request arrives."""
    store, _ = trails.sample()
    change = _both(
        _sas_of("read", expires="2030-01-31T09:30:00.500000Z"), _later("read", "2030-01-31T09:32:00.000000Z")
    )
    verify(trails.MemoryTrail(trails.rewritten(store.files, lambda records: change(trails, records))))


def test_listing_below_the_prefix(trails: ModuleType) -> None:
    """A SAS to list a prefix lists what is below it."""
    store, _ = trails.sample()
    change = _edit("listed", path=trails.LAKE + "orders/2030/")
    verify(trails.MemoryTrail(trails.rewritten(store.files, lambda records: change(trails, records))))


def test_confirmed_commit_may_differ(trails: ModuleType) -> None:
    """What an earlier attempt committed has its own size and rows."""
    store, _ = trails.sample()
    change = _edit("committed", confirmed=True, size=11, rows=None)
    verify(trails.MemoryTrail(trails.rewritten(store.files, lambda records: change(trails, records))))
