"""A trail for people: all of it in order of time, or the story of one blob.

Shows what can be read even when the trail does not verify, and says so on top. What a record holds is text from
elsewhere: characters that a terminal would act on are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import get_args

from rich.console import Console
from rich.text import Text

from beam_entra.audit.ahead import read_ahead, sizes_of
from beam_entra.audit.record import (
    SEAL_NAME,
    AnyRecord,
    BundleClosed,
    BundleOpened,
    CommitIntended,
    Committed,
    Copied,
    DeadlineExtended,
    Deleted,
    DeleteIntended,
    Denied,
    InterimSealed,
    KeyAcquired,
    Listed,
    Probed,
    Read,
    SasIssued,
    Sealed,
    SegmentOpened,
    SegmentRolled,
    Staged,
    TokenAcquired,
    parse_line,
)
from beam_entra.audit.store import INTERIM_NAME, TrailReader
from beam_entra.audit.verify import verify, verify_running
from beam_entra.errors import TrailBroken, printable
from beam_entra.paths import BlobPath, BlobPattern

__all__ = ["Story", "describe", "show_blob", "show_trail"]

_SHORT = 16  # characters; a UUID is longer and shown by its first 8
_OfABlob = Read | Staged | Copied | CommitIntended | Committed | DeleteIntended | Deleted | Probed | Denied
_OF_A_BLOB = get_args(_OfABlob)
_STYLES = {
    "denied": "bold red",
    "committed": "green",
    "deleted": "yellow",
    "token_acquired": "magenta",
    "deadline_extended": "dim",
    "key_acquired": "magenta",
    "sas_issued": "cyan",
    "segment_opened": "dim",
    "segment_rolled": "dim",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What could be read of a trail.

    Attributes:
        segments: File name to its records, sorted by name.
        unreadable: Lines that are no records.
        seal: The seal's record, if there is a readable one.
        interim: The last interim seal that can be read.
        broken: Why the trail does not verify; None when it does, or is merely not sealed yet.
    """

    segments: dict[str, list[AnyRecord]]
    unreadable: int
    seal: Sealed | None
    interim: InterimSealed | None
    broken: TrailBroken | None

    @classmethod
    def read(cls, reader: TrailReader) -> Story:
        """Read what can be read; a trail without a seal is checked by the rules that need none."""
        sizes, unreadable = dict(sorted(sizes_of(reader).items())), 0
        found: dict[str, list[AnyRecord]] = {}
        for name, data in read_ahead(reader.read, sizes.items()):
            records = found[name] = []
            for line in data.splitlines():
                try:
                    records.append(parse_line(line))
                except ValueError:
                    unreadable += 1
        broken = None
        try:
            _ = verify(reader) if SEAL_NAME in sizes else verify_running(reader)
        except TrailBroken as error:
            broken = error
        seal = next((record for record in found.pop(SEAL_NAME, []) if isinstance(record, Sealed)), None)
        interims = [record for name in sizes if INTERIM_NAME.fullmatch(name) for record in found.pop(name)]
        interim = next((record for record in reversed(interims) if isinstance(record, InterimSealed)), None)
        return cls(segments=found, unreadable=unreadable, seal=seal, interim=interim, broken=broken)


def show_trail(story: Story, console: Console) -> None:
    """Print who the job was, then each segment's records in order of time."""
    _show_header(story, console)
    for name, records in story.segments.items():
        opened = next((record for record in records if isinstance(record, SegmentOpened)), None)
        where = f"   host {opened.host}, pid {opened.pid}" if opened else ""
        console.print()
        _print(console, Text(printable(name), "bold"), Text(printable(f"{where}   {len(records)} records"), "dim"))
        rows = [
            (_clock(record.time), record.kind, _short(record.bundle or "-"), *describe(record)) for record in records
        ]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(5)]
        for time, kind, bundle, subject, path, detail in rows:
            cells = (time, kind, bundle, subject, path)
            padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=True)]
            style = _STYLES.get(kind, "")
            _print(
                console, f"  {padded[0]}  ", Text(padded[1], style), f"  {'  '.join(padded[2:])}  ", Text(detail, "dim")
            )


def show_blob(story: Story, console: Console, blob: BlobPattern) -> bool:
    """Print who touched a blob, under which SAS, key and token.

    Returns:
        Whether anybody did; nothing is printed otherwise.
    """
    lines = [line for process in _processes(story) for line in _blob_lines(process, blob)]
    if not lines:
        return False
    _show_header(story, console)
    for depth, record, line in lines:
        style = _STYLES.get(record.kind, "") if record else "bold"
        _print(console, "  " * depth + ("└ " if depth else ""), Text(line, style))
    return True


def describe(record: AnyRecord) -> tuple[str, str, str]:
    """A record in three cells: its id, what it is about, the rest. Safe to print."""
    subject, about, *rest = _describe(record)
    return printable(_short(subject)), printable(about), printable("  ".join(part for part in rest if part))


def _describe(record: AnyRecord) -> tuple[str, ...]:
    match record:
        case SegmentOpened():
            after = f"continues {record.previous.segment}" if record.previous else ""
            return "", f"job {record.job}", f"until {_instant(record.deadline)}", after
        case TokenAcquired():
            attempts = f"{record.attempts} attempts" if record.attempts > 1 else ""
            by = f"by {record.source}" if record.source else ""
            return record.token, record.audience, f"uti {record.uti or '-'}", _until(record.expires), by, attempts
        case DeadlineExtended():
            return record.token, f"until {_instant(record.deadline)}"
        case KeyAcquired():
            return record.key, record.account, f"with {_short(record.token)}", _until(record.expires), _request(record)
        case SasIssued():
            width = "" if record.resource == "blob" else f"({record.resource} SAS)"
            rest = f"{record.permission}{width and ' ' + width}", f"by {_short(record.key)}", _until(record.expires)
            return record.sas, record.path, *rest
        case BundleOpened():
            return "", record.step
        case BundleClosed():
            return "", record.outcome
        case Denied():
            asked = f"request {record.request_id}" if record.request_id else ""
            return "", record.path, f"{record.permission} refused by {record.by}: {record.reason}", asked
        case SegmentRolled():
            return "", record.next
        case InterimSealed():
            return "", f"{len(record.segments)} segments"
        case Sealed():
            return "", record.outcome
        case _:
            return _describe_access(record)


def _describe_access(
    record: Listed | Read | Staged | Copied | CommitIntended | Committed | DeleteIntended | Deleted | Probed,
) -> tuple[str, ...]:
    match record:
        case Listed():
            return record.credential, record.path, f"{record.blobs:,} blobs", _request(record)
        case Read():
            span = f"bytes [{record.start}, {record.end})"
            return record.credential, record.path, span, record.etag, _request(record)
        case Staged():
            return record.credential, record.path, f"block {record.block}, {record.size:,} bytes", _request(record)
        case Copied():
            copied = f"bytes [{record.start}, {record.end}) of {record.source}"
            return record.credential, record.path, copied, record.source_etag, f"block {record.block}", _request(record)
        case DeleteIntended():
            return record.credential, record.path, record.etag or "any version"
        case Deleted():
            found = "was not there" if record.missing else ""
            return record.credential, record.path, record.etag or "any version", found, _request(record)
        case Probed():
            return record.credential, record.path, f"would it {record.asked}? {record.answer}", _request(record)
        case CommitIntended():
            return record.credential, record.path, f"{record.blocks} blocks", _amount(record), f"commit {record.commit}"
        case Committed():
            found = "found committed" if record.confirmed else ""
            return (
                record.credential,
                record.path,
                _amount(record),
                record.etag,
                f"commit {record.commit}",
                found,
                _request(record),
            )


def _show_header(story: Story, console: Console) -> None:
    opened = next((r for records in story.segments.values() for r in records if isinstance(r, SegmentOpened)), None)
    rows = []
    if opened:
        rows = [
            ("job", opened.job),
            ("pipeline", f"{opened.pipeline} ({opened.environment})"),
            ("identity", f"client {opened.client} of tenant {opened.tenant}, by {opened.credential}"),
            ("deadline", _rolling(opened.rolling_s) if opened.rolling_s else _instant(opened.deadline)),
            ("manifest", f"sha256 {opened.manifest_digest}"),
        ]
        if opened.scoping == "bearer":
            rows.append(("scoping", "bearer: the access token itself opened the blobs, no SAS held it to one of them"))
    so_far = f"; up to {_instant(story.interim.time)} by an interim seal" if story.interim else ""
    ended = f"{story.seal.outcome}, {_instant(story.seal.time)}" if story.seal else f"not yet{so_far}"
    rows.append(("sealed", ended))
    if story.seal and story.seal.error:
        rows.append(("error", story.seal.error))
    if story.unreadable:
        rows.append(("unreadable", f"{story.unreadable} lines"))
    for label, text in rows:
        _print(console, Text(f"{label:<10} ", "dim"), printable(text))
    if story.broken:
        _print(console, Text(f"{'BROKEN':<10} {printable(story.broken.message)}", "bold red"))


def _processes(story: Story) -> Iterator[list[AnyRecord]]:
    """The records of each process, over all its segments."""
    processes: dict[str, list[AnyRecord]] = {}
    for name, records in story.segments.items():
        processes.setdefault(name[: -len("-00000.jsonl")], []).extend(records)
    yield from processes.values()


def _blob_lines(records: list[AnyRecord], blob: BlobPattern) -> Iterator[tuple[int, AnyRecord | None, str]]:
    """Depth, record and text of the story of a blob in one process: token, key, SAS, access."""
    touched = [r for r in records if isinstance(r, _OF_A_BLOB) and any(_is(path, blob) for path in _paths(r))]
    if not touched:
        return
    tokens = {r.token: r for r in records if isinstance(r, TokenAcquired)}
    keys = {r.key: r for r in records if isinstance(r, KeyAcquired)}
    issued = {r.sas: r for r in records if isinstance(r, SasIssued)}
    steps = {r.bundle: r.step for r in records if isinstance(r, BundleOpened)}
    opened = next((r for r in records if isinstance(r, SegmentOpened)), None)
    yield 0, None, printable(f"host {opened.host}, pid {opened.pid}" if opened else "unknown process")
    said: set[int] = set()
    for access in sorted(touched, key=_presented):  # stable: time within a SAS
        sas = issued.get(_presented(access))
        key = keys.get(sas.key) if sas else None
        chain = [tokens.get(key.token if key else _presented(access)), key, sas]
        for depth, link in enumerate(chain):
            if link is not None and id(link) not in said:
                said.add(id(link))
                step = f"  in {steps.get(sas.bundle, '?')}" if sas and link is sas and sas.bundle else ""
                yield depth + 1, link, _line(link) + printable(step)
        yield 1 + sum(link is not None for link in chain), access, _line(access)


def _presented(record: _OfABlob) -> str:
    return "" if isinstance(record, Denied) else record.credential


def _paths(record: _OfABlob) -> tuple[str, ...]:
    return (record.path, record.source) if isinstance(record, Copied) else (record.path,)


def _is(path: str, blob: BlobPattern) -> bool:
    try:
        parsed = BlobPath.parse(path)
    except ValueError:
        return False
    same = (parsed.account, parsed.container) == (blob.prefix.account, blob.prefix.container)
    return same and blob.matches(parsed.name)


def _line(record: AnyRecord) -> str:
    return "  ".join(part for part in (_instant(record.time), record.kind, *describe(record)) if part)


def _print(console: Console, *parts: str | Text) -> None:
    line = Text.assemble(*parts)
    line.rstrip()
    console.print(line, soft_wrap=True)


def _short(identifier: str) -> str:
    return identifier if len(identifier) <= _SHORT else identifier[:8]


def _clock(time: datetime) -> str:
    return f"{time:%H:%M:%S.%f}"


def _instant(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _rolling(seconds: int) -> str:
    return f"rolling, {timedelta(seconds=seconds)} after the last fresh token of each process"


def _until(time: datetime) -> str:
    return f"until {_instant(time)}"


def _request(record: KeyAcquired | Listed | Read | Staged | Copied | Committed | Deleted | Probed) -> str:
    return f"request {record.request_id}"


def _amount(record: CommitIntended | Committed) -> str:
    return f"{record.size:,} bytes" + ("" if record.rows is None else f", {record.rows:,} rows")
