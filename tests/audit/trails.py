"""Trails for tests: written by the real writer into memory, taken apart, changed, chained again, sealed again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from beam_entra.audit.interim import seal_interim
from beam_entra.audit.record import (
    SEAL_NAME,
    ZEROS,
    BundleClosed,
    BundleOpened,
    CommitIntended,
    Committed,
    Copied,
    DeadlineExtended,
    Deleted,
    DeleteIntended,
    Denied,
    KeyAcquired,
    Listed,
    Probed,
    Read,
    SasIssued,
    Staged,
    TokenAcquired,
)
from beam_entra.audit.seal import Seal, seal
from beam_entra.audit.store import INTERIM_NAME
from beam_entra.audit.trail import Receipt, SegmentFacts, SegmentWriter
from beam_entra.errors import AuditUnavailable

JOB = "orders-2030-01-31"
START = datetime(2030, 1, 31, 9, 30, tzinfo=UTC)
DEADLINE = START + timedelta(hours=2)
PROCESSES = tuple(f"{number}0000000-0000-4000-8000-00000000000{number}" for number in range(1, 4))
LAKE = "abfss://raw@contosolake.dfs.core.windows.net/"

Files = dict[str, bytes]
Records = dict[str, list[dict[str, Any]]]


class Clock:
    """Goes on by one millisecond each time it is asked, or by what it is told."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


class MemoryTrail:
    """A trail in memory: reader and store in one. Counts its appends, can be stopped, told to fail or to be slow."""

    def __init__(self, files: Files | None = None) -> None:
        self.files = dict(files or {})
        self.calls: list[tuple[str, str, bytes]] = []  # verb, name, data
        self.open = threading.Event()  # cleared: appends wait
        self.open.set()
        self.entered = threading.Event()  # an append has begun
        self.threads: list[threading.Thread] = []  # that appended
        self._one = threading.Lock()
        self.failure: BaseException | None = None  # raised by the next append, again and again

    def names(self) -> list[str]:
        return list(self.files)

    def read(self, name: str) -> bytes:
        return self.files[name]

    def sizes(self) -> dict[str, int]:
        return {name: len(data) for name, data in self.files.items()}

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        return self.files[name][start:stop]

    def create(self, name: str) -> None:
        self.calls.append(("create", name, b""))
        self.files.setdefault(name, b"")

    def append(self, name: str, offset_bytes: int, data: bytes) -> None:
        assert self._one.acquire(blocking=False), "one append at a time"
        try:
            self.threads.append(threading.current_thread())
            self.entered.set()
            assert self.open.wait(30)
            self._take(name, offset_bytes, data)
        finally:
            self._one.release()

    def _take(self, name: str, offset_bytes: int, data: bytes) -> None:
        self.calls.append(("append", name, data))
        if self.failure is not None:
            raise self.failure
        if len(self.files[name]) != offset_bytes:
            raise AuditUnavailable(f"{name} does not end at {offset_bytes}")
        self.files[name] += data

    def lines(self) -> list[bytes]:
        """All lines of all segments, in order of name."""
        return [line for name in sorted(self.files) for line in self.files[name].splitlines()]


def facts(**changed: Any) -> SegmentFacts:
    """What a worker knows of itself."""
    known: dict[str, Any] = {
        "job": JOB,
        "pipeline": "orders",
        "environment": "test",
        "tenant": "contoso.example",
        "client": "6f1f7a52-0f0a-4b5e-8a53-3a2c1c6d9e11",
        "credential": "federated_file",
        "host": "worker-1",
        "pid": 4242,
        "deadline": DEADLINE,
        "manifest_digest": "ab" * 32,
        "accounts": {"contosolake": "https://contosolake.blob.core.windows.net"},
    }
    return SegmentFacts(**(known | changed))


def request(number: int) -> dict[str, str]:
    """The two ids of an answered request."""
    return {"request_id": f"req-{number}", "client_request_id": f"creq-{number}"}


_LOOK = {"sas": None, "permission": "read", "asked": "look"}


def valid_facts() -> dict[type[Any], dict[str, Any]]:
    """For each kind that callers append, valid fields; together and in this order they make a valid segment."""
    until = START + timedelta(minutes=30)
    blob, out = LAKE + "orders/a.jsonl", LAKE + "clean/a.jsonl"
    token = {"audience": "https://storage.azure.com", "uti": "bUWm-x1", "oid": "o", "appid": "a", "tenant": "t"}
    sas = {"sas": "s1", "key": "k1", "token": "t1", "resource": "blob", "expires": until, "correlation": None}
    commit = {"path": out, "commit": "c1", "size": 10, "rows": 2}
    copied = {"source_sas": "s1", "source": blob, "source_etag": '"0x8D"', "start": 0, "end": 10}
    return {
        TokenAcquired: {"token": "t1", **token, "expires": DEADLINE, "attempts": 1, "source": "federated_file"},
        DeadlineExtended: {"token": "t1", "deadline": DEADLINE},
        KeyAcquired: {"key": "k1", "account": "contosolake", "token": "t1", "expires": DEADLINE, **request(1)},
        BundleOpened: {"step": "Read/ParDo(Split)", "token": "t1"},
        SasIssued: {**sas, "path": blob, "permission": "read"},
        Listed: {"sas": "s1", "path": LAKE + "orders/", "blobs": 3, **request(2)},
        Read: {"sas": "s1", "path": blob, "etag": '"0x8D"', "start": 0, "end": 10, **request(3)},
        Staged: {"sas": "s2", "path": out, "block": "00001-b", "size": 10, **request(4)},
        Copied: {"sas": "s2", "path": out, "block": "00001-c", **copied, **request(6)},
        CommitIntended: {"sas": "s2", **commit, "blocks": 1},
        Committed: {"sas": "s2", **commit, "etag": '"0x8E"', "confirmed": False, **request(5)},
        DeleteIntended: {"sas": "s3", "path": out, "etag": '"0x8E"'},
        Deleted: {"sas": "s3", "path": out, "etag": '"0x8E"', "missing": False, **request(7)},
        Probed: {
            "sas": "s2",
            "path": out,
            "permission": "write",
            "asked": "write",
            "answer": "412 ConditionNotMet",
            **request(8),
        },
        Denied: {
            "path": LAKE + "hr/x",
            "permission": "read",
            "reason": "no grant covers it",
            "by": "manifest",
            "request_id": None,
            "client_request_id": None,
        },
        BundleClosed: {"outcome": "ok"},
    }


class Worker:
    """Plays one worker process on a real writer."""

    def __init__(
        self, rng: random.Random, store: MemoryTrail, process: str, clock: Clock, *, max_bytes: int, **job: Any
    ) -> None:
        self.rng, self.process, self.job = rng, process, job
        opened = facts(pid=rng.randint(1, 9), **job)
        self.writer = SegmentWriter(store, opened, clock, process=process, max_bytes=max_bytes)
        self.number = self.ends_s = 0

    def id(self, letter: str) -> str:
        self.number += 1
        return f"{letter}{self.number}"

    def add(self, model: type[Any], bundle: str | None = None, /, **changed: Any) -> Receipt:
        return self.writer.append(model, bundle=bundle, **(valid_facts()[model] | changed))

    def key(self) -> tuple[str, str]:
        token, key = self.id("t"), self.id("k")
        self.ends_s += 1
        self.add(TokenAcquired, token=token, expires=DEADLINE + timedelta(seconds=self.ends_s))
        if self.job.get("rolling_s"):
            self.add(DeadlineExtended, token=token)
        if self.job.get("scoping") != "bearer":
            self.add(KeyAcquired, key=key, token=token, **request(self.number))
        return key, token

    def present(self, bundle: str | None, key: tuple[str, str], path: str, permission: str) -> dict[str, str | None]:
        """What an access presents, by the name of its field: a SAS of its own, or the job's token."""
        if self.job.get("scoping") == "bearer":
            return {"sas": None, "token": key[1]}
        return {"sas": self.sas(bundle, key, path, permission)}

    def sas(self, bundle: str | None, key: tuple[str, str], path: str, permission: str) -> str:
        sas = self.id("s")
        wide = "container" if permission == "list" else "blob"
        about = {"path": path, "permission": permission, "resource": wide, "correlation": bundle}
        self.add(SasIssued, bundle, sas=sas, key=key[0], token=key[1], **about)
        return sas

    def read(self, bundle: str | None, key: tuple[str, str]) -> None:
        if self.rng.random() < 0.5:
            listing = self.present(bundle, key, LAKE + "orders/", "list")
            self.add(Listed, bundle, **listing, blobs=self.rng.randint(0, 9), **request(self.number))
        path = f"{LAKE}orders/{self.rng.randint(0, 3)}.jsonl"
        shown = self.present(bundle, key, path, "read")
        for part in range(self.rng.randint(1, 3)):
            self.add(
                Read, bundle, **shown, path=path, start=part * 10, end=part * 10 + 10, **request(self.number + part)
            )

    def write(self, bundle: str | None, key: tuple[str, str]) -> None:
        commit = self.id("c")
        path, size = f"{LAKE}clean/{commit}.jsonl", self.rng.randint(0, 99)
        shown = self.present(bundle, key, path, "write")
        if self.rng.random() < 0.3:
            self.add(Probed, bundle, **self.rng.choice([_LOOK, shown]), path=path, **request(self.number))
        self.add(Staged, bundle, **shown, path=path, size=size, **request(self.number))
        about = {**shown, "path": path, "commit": commit, "size": size, "rows": self.rng.choice([None, size])}
        self.add(CommitIntended, bundle, **about)
        if self.rng.random() < 0.8:
            self.add(Committed, bundle, **about, confirmed=self.rng.random() < 0.2, **request(self.number))

    def move(self, bundle: str | None, key: tuple[str, str]) -> None:
        """Copy a blob and delete it, as a rename does."""
        name = self.id("m")
        source, target = f"{LAKE}from/{name}", f"{LAKE}to/{name}"
        reading = self.present(bundle, key, source, "read")
        shown = {f"source_{what}": identifier for what, identifier in reading.items()}
        shown |= self.present(bundle, key, target, "write")
        self.add(Copied, bundle, **shown, path=target, source=source, **request(self.number))
        about = {**self.present(bundle, key, source, "delete"), "path": source}
        self.add(DeleteIntended, bundle, **about)
        if self.rng.random() < 0.8:
            self.add(Deleted, bundle, **about, **request(self.number))

    def bundle(self, key: tuple[str, str]) -> Receipt:
        """A bundle that does something; the receipt of its last record."""
        bundle = str(uuid.uuid5(uuid.NAMESPACE_OID, self.id(self.process)))  # hypothesis likes equal random numbers
        self.add(BundleOpened, bundle, token=self.rng.choice([None, key[1]]))
        for deed in self.rng.choices([self.read, self.write, self.move], k=self.rng.randint(0, 2)):
            deed(bundle, key)
        if self.rng.random() < 0.2:
            self.add(Denied, bundle)
        if self.rng.random() < 0.8:
            return self.add(BundleClosed, bundle, outcome=self.rng.choice(["ok", "failed", "abandoned"]))
        return self.add(Denied, bundle)


def random_trail(rng: random.Random, *, processes: int | None = None) -> tuple[MemoryTrail, Seal]:
    """A valid sealed trail of one to three processes, of any kind of job: rolled, empty, unclosed, interim-sealed."""
    store, clock = MemoryTrail(), Clock()
    kinds = {}, {"scoping": "sas"}, {"scoping": "bearer"}, {"scoping": "bearer", "rolling_s": 7200}
    job: dict[str, Any] = rng.choice(kinds)
    for process in PROCESSES[: processes or rng.randint(1, 3)]:
        worker = Worker(rng, store, process, clock, max_bytes=rng.choice([1500, 4000, 1_000_000]), **job)
        with contextlib.closing(worker.writer):  # hypothesis may stop in the middle
            key = worker.key()
            for _ in range(rng.randint(0, 3)):
                last = worker.bundle(key)
                if rng.random() < 0.3:
                    last.wait(10)
                    seal_interim(store, store, job=JOB, clock=clock)
                if rng.random() < 0.3:
                    key = worker.key()
    if rng.random() < 0.2:
        store.create("segment-e0000000-0000-4000-8000-00000000000e-00000.jsonl")
    return store, seal(store, store, job=JOB, outcome="ok", error=None, clock=clock)


def refused() -> MemoryTrail:
    """A sealed trail of a job that was refused what it asked for."""
    store, clock = MemoryTrail(), Clock()
    worker = Worker(random.Random(0), store, PROCESSES[2], clock, max_bytes=100_000)  # noqa: S311  no secret is made from it
    worker.add(Denied)
    worker.writer.close()
    seal(store, store, job=JOB, outcome="failed", error="refused", clock=clock)
    return store


def bearer_sample() -> MemoryTrail:
    """The same sealed trail each time, of a job whose scoping is bearer and whose life is a rolling one of an hour."""
    store, clock, rng = MemoryTrail(), Clock(), random.Random(0)  # noqa: S311  no secret is made from it
    life = timedelta(hours=1)
    worker = Worker(rng, store, PROCESSES[0], clock, max_bytes=100_000, scoping="bearer", rolling_s=3600)
    for number in (1, 2):
        bundle, token = str(uuid.UUID(int=number, version=4)), f"t{number}"
        worker.add(TokenAcquired, token=token, expires=clock.now + timedelta(minutes=50))
        worker.add(TokenAcquired, token=f"g{number}", audience="https://graph.microsoft.com")
        worker.add(DeadlineExtended, token=token, deadline=clock.now + life)
        worker.add(BundleOpened, bundle, token=token)
        source, target = f"{LAKE}orders/{number}.jsonl", f"{LAKE}clean/{number}.jsonl"
        shown = {"sas": None, "token": token}
        worker.add(Listed, bundle, **shown)
        worker.add(Read, bundle, **shown, path=source)
        worker.add(Staged, bundle, **shown, path=target)
        worker.add(Copied, bundle, **shown, path=target, source_sas=None, source_token=token, source=source)
        worker.add(CommitIntended, bundle, **shown, path=target)
        worker.add(Committed, bundle, **shown, path=target)
        worker.add(DeleteIntended, bundle, **shown, path=source)
        worker.add(Deleted, bundle, **shown, path=source)
        worker.add(BundleClosed, bundle)
        clock.now += timedelta(minutes=40)
    worker.writer.close()
    seal(store, store, job=JOB, outcome="ok", error=None, clock=clock)
    return store


def sample() -> tuple[MemoryTrail, Seal]:
    """The same trail each time: 1 rolls, reads, lists, writes; process 2 moves a blob and leaves a bundle open."""
    store, clock, rng = MemoryTrail(), Clock(), random.Random(0)  # noqa: S311  no secret is made from it
    first = Worker(rng, store, PROCESSES[0], clock, max_bytes=3000)
    key = first.key()
    for number in (1, 2):
        bundle = str(uuid.UUID(int=number, version=4))
        first.add(BundleOpened, bundle)
        listing = first.sas(bundle, key, LAKE + "orders/", "list")
        first.add(Listed, bundle, sas=listing)
        path, out = f"{LAKE}orders/{number}.jsonl", f"{LAKE}clean/{number}.jsonl"
        first.add(Read, bundle, sas=first.sas(bundle, key, path, "read"), path=path)
        about = {"sas": first.sas(bundle, key, out, "write"), "path": out}
        first.add(Staged, bundle, **about)
        first.add(CommitIntended, bundle, **about, commit=f"c{number}")
        first.add(Committed, bundle, **about, commit=f"c{number}")
        first.add(Probed, bundle, **about)
        first.add(BundleClosed, bundle)
    first.add(Denied, None)
    first.writer.close()
    second = Worker(rng, store, PROCESSES[1], clock, max_bytes=100_000)
    key, bundle = second.key(), str(uuid.UUID(int=3, version=4))
    second.add(BundleOpened, bundle)
    source, target = LAKE + "moved/3.jsonl", LAKE + "archive/3.jsonl"
    reading, writing = second.sas(bundle, key, source, "read"), second.sas(bundle, key, target, "write")
    second.add(Copied, bundle, sas=writing, path=target, source_sas=reading, source=source)
    about = {"sas": second.sas(bundle, key, source, "delete"), "path": source}
    second.add(DeleteIntended, bundle, **about)
    second.add(Deleted, bundle, **about)
    second.writer.close()
    return store, seal(store, store, job=JOB, outcome="ok", error=None, clock=clock)


def dump(record: dict[str, Any]) -> bytes:
    """A line, as the writer would write it, without the newline."""
    return json.dumps(record, separators=(",", ":")).encode()


def parsed(files: Files) -> Records:
    """Every segment's records, as plain dicts to change."""
    return {name: [json.loads(line) for line in data.splitlines()] for name, data in files.items() if not is_seal(name)}


def is_seal(name: str) -> bool:
    """Whether a file is a seal, of the end or interim."""
    return name == SEAL_NAME or INTERIM_NAME.fullmatch(name) is not None


def rechained(records: Records) -> Files:
    """What an attacker makes of changed records: right numbers, right digests, right links between segments."""
    files: Files = {}
    head, before = ZEROS, ""
    for name in sorted(records):
        continues = before[:45] == name[:45] and bool(before)
        prev = head if continues else ZEROS
        lines = []
        for seq, record in enumerate(records[name]):
            link = {"seq": seq, "prev": prev}
            if record.get("kind") == "segment_opened" and seq == 0:
                link["previous"] = {"segment": before, "head": head} if continues else None
            link |= record.pop("forced", {})  # what a test wants to be wrong
            lines.append(dump(record | link))
            prev = hashlib.sha256(lines[-1]).hexdigest()
        files[name] = b"".join(line + b"\n" for line in lines)
        head, before = prev, name
    return files


def resealed(files: Files, **changed: Any) -> Files:
    """What an attacker makes of changed segments: a seal that fits them, and no interim seal."""
    records, entries = parsed(files), []
    counts: Counter[str] = Counter()
    for name in sorted(records):
        kinds = Counter(str(record.get("kind")) for record in records[name])
        lines = files[name].splitlines()
        entry = {"segment": name, "records": len(lines), "bytes": len(files[name])}
        entry["head"] = hashlib.sha256(lines[-1]).hexdigest() if lines else ZEROS
        entries.append(entry | {"opened_bundles": kinds["bundle_opened"], "closed_bundles": kinds["bundle_closed"]})
        counts += kinds
    line = {
        "seq": 0,
        "prev": ZEROS,
        "time": "2030-01-31T12:00:00.000000Z",
        "kind": "sealed",
        "bundle": None,
        "job": JOB,
    }
    line |= {"outcome": "ok", "error": None, "segments": entries, "counts": dict(sorted(counts.items()))}
    return {name: data for name, data in files.items() if not is_seal(name)} | {SEAL_NAME: dump(line | changed) + b"\n"}


def rewritten(files: Files, change: Callable[[Records], object]) -> Files:
    """Records changed, everything chained again and sealed again."""
    records = parsed(files)
    change(records)
    return resealed(rechained(records))


def find(records: Records, kind: str) -> tuple[list[dict[str, Any]], int]:
    """The first record of a kind: its segment's list and its place there."""
    places: Iterable[tuple[list[dict[str, Any]], int]] = (
        (found, at) for _, found in sorted(records.items()) for at, record in enumerate(found) if record["kind"] == kind
    )
    return next(iter(places))
