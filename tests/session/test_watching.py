"""Following a job by its trail while it runs: what the other processes did, by what is new of their segments."""

from __future__ import annotations

import json
import uuid
from collections import Counter

import pytest

from beam_entra.errors import AuditUnavailable, StorageError
from beam_entra.session import TrailWatch
from beam_entra.session.counts import forget, tallied, tally
from beam_entra.testing.storage_requests import matching
from tests.session.conftest import DATA, Job, read_blob, write_blob


def segment(job: Job, lines: bytes, process: str = "") -> str:
    """Put a segment of some other process into the trail; its name."""
    name = f"{job.scope.folder.name}segment-{process or uuid.uuid4()}-00000.jsonl"
    job.audit.upload(name, lines)
    return name


def read_line(path: str, start: int = 0, end: int = 10) -> bytes:
    """A record as far as a watch looks at it."""
    return json.dumps({"kind": "read", "path": path, "start": start, "end": end}).encode() + b"\n"


def ranges(job: Job) -> list[tuple[str, str]]:
    """What was asked for of which segment."""
    gets = [each for each in job.requests("GetBlob") if each.request.container == job.audit.name]
    return [(each.request.blob, each.request.headers.get("x-ms-range", "")) for each in gets]


def test_what_other_processes_did(job):
    """Tokens, bytes and blobs read, bytes staged, blobs committed; of the launcher's own doings nothing."""
    launcher, one, other = job.session(), job.session(), job.session()
    read_blob(launcher, job)
    watch = TrailWatch(launcher)
    assert watch.look() == Counter()
    for worker in (one, other):
        read_blob(worker, job)
    write_blob(one, job)
    for worker in (one, other):
        worker.settle()
    assert watch.look() == {
        "tokens_acquired": 2,
        "bytes_read": 2 * len(DATA),
        "blobs_begun": 1,  # the same
        "bytes_staged": 10,
        "blobs_committed": 1,
    }
    read_blob(other, job)
    other.settle()
    assert watch.look()["bytes_read"] == 3 * len(DATA)
    watch.close()


def test_only_what_is_new_is_asked_for(job):
    """A segment that has not grown is not read, and of one that has only what was added."""
    launcher = job.session()
    name = segment(job, read_line("a"))
    watch = TrailWatch(launcher)
    assert watch.look()["bytes_read"] == 10
    job.cloud.proxy.clear()
    assert watch.look()["bytes_read"] == 10
    assert ranges(job) == []
    job.audit.upload(name, read_line("a") + read_line("b", 5, 7))
    assert watch.look()["bytes_read"] == 12
    ((asked, where),) = ranges(job)
    assert asked == name
    assert where.startswith(f"bytes={len(read_line('a'))}-")


def test_a_line_that_is_half_there_is_waited_for(job):
    """An append may end in mid-line for who looks meanwhile; each record counts once, when it is whole."""
    whole = read_line("a") + read_line("b")
    name = segment(job, whole[:-9])
    watch = TrailWatch(job.session())
    assert watch.look()["blobs_begun"] == 1
    job.audit.upload(name, whole[:-4])
    assert watch.look()["blobs_begun"] == 1
    job.audit.upload(name, whole)
    assert watch.look() == {"bytes_read": 20, "blobs_begun": 2}


def test_a_look_is_bounded_and_the_next_one_goes_on(job):
    """32 segments and 1 MiB of each; those that were not read longest come first."""
    process = "0" * 8 + str(uuid.uuid4())[8:]
    line = read_line("x" * 900)
    long = segment(job, line * 1500, process)
    for _ in range(35):
        segment(job, read_line("a"))
    watch = TrailWatch(job.session())
    first = watch.look()
    assert len(ranges(job)) == 32
    assert first["bytes_read"] == 10 * (31 + (1 << 20) // len(line))
    job.cloud.proxy.clear()
    assert watch.look()["bytes_read"] == 10 * (35 + 1500)
    asked = [name for name, _ in ranges(job)]
    assert asked[-1] == long
    assert len(asked) == 5


def test_a_look_is_no_data_of_the_job(job):
    """What the watch reads is the audit's, and not counted; it stands in the launcher's segment, and verifies."""
    launcher, worker = job.session(), job.session()
    read_blob(worker, job)
    worker.close()
    before = tallied(job.scope.job)
    watch = TrailWatch(launcher)
    watch.look()
    watch.look()
    watch.close()
    assert tallied(job.scope.job)["bytes_read"] == before["bytes_read"]
    summary = job.seal_and_verify(launcher)
    assert "denied" not in summary.counts
    assert summary.open_bundles == 0
    steps = [each["step"] for each in job.records("bundle_opened")]
    assert steps.count("watch the audit trail") == 1
    read = [each for each in job.records("read") if each["path"].startswith(str(job.scope.folder))]
    assert read[0]["start"] == 0
    assert read[0]["end"] > 0


def test_a_watch_reads_the_audit_alone(job):
    """It asks for nothing outside the job's folder, and its bundle's SAS are for listing and reading that."""
    launcher = job.session()
    segment(job, read_line("a"))
    watch = TrailWatch(launcher)
    job.cloud.proxy.clear()
    watch.look()
    assert job.data_requests() == []
    (bundle,) = [each["bundle"] for each in job.records("bundle_opened")]
    issued = [each for each in job.records("sas_issued") if each["bundle"] == bundle]
    assert [each["permission"] for each in issued] == ["list", "read"]
    assert all(each["path"].startswith(str(job.scope.folder)) for each in issued)


def test_a_watch_takes_no_token_and_one_sas_for_each_segment(job):
    """It is the launcher's session that looks, and looks again with what it has."""
    launcher = job.session()
    segment(job, read_line("a"))
    launcher.broker.get("https://storage.azure.com")
    job.cloud.tenant.clear()
    watch = TrailWatch(launcher)
    for _ in range(3):
        watch.look()
    watch.close()
    assert job.cloud.tenant.token_requests == 0
    issued = [each["permission"] for each in job.records("sas_issued")]
    assert Counter(issued) == {"list": 1, "read": 1, "append": 1}


def test_a_look_that_fails_tells_it_and_the_next_one_goes_on(job):
    """Nothing is lost, and nothing counts twice."""
    segment(job, read_line("a"))
    watch = TrailWatch(job.session(pause=lambda seconds: True))
    fault = job.cloud.proxy.respond(503, "ServerBusy", where=matching("ListBlobs"))
    with pytest.raises(StorageError):
        watch.look()
    fault.clear()
    assert watch.look()["bytes_read"] == 10
    assert watch.look()["bytes_read"] == 10


def test_no_look_after_the_end(job):
    """A record behind the seal would break the trail."""
    watch = TrailWatch(job.session())
    watch.look()
    watch.close()
    with pytest.raises(AuditUnavailable):
        watch.look()


def test_the_sums_of_a_process_are_one_for_each_job():
    """They are apart, a copy is given, and a job that is over leaves nothing."""
    one, other = str(uuid.uuid4()), str(uuid.uuid4())
    tally(one, "records_read", 2)
    tally(one, "records_read", 3)
    tally(other, "records_read", 7)
    seen = tallied(one)
    tally(one, "records_read", 1)
    assert (seen, tallied(one), tallied(other)) == ({"records_read": 5}, {"records_read": 6}, {"records_read": 7})
    forget(one)
    forget(other)
    assert tallied(one) == {}


def test_a_session_that_is_closed_leaves_no_sums(job):
    """What a process has counted for a job goes with the job's session."""
    session = job.session()
    read_blob(session, job)
    assert tallied(job.scope.job)["bytes_read"] == len(DATA)
    session.close()
    assert tallied(job.scope.job) == {}


def test_blobs_are_counted_in_the_memory_of_some(job):
    """As many as 65,536 to the one; of more about as many, never fewer than a moment ago; no more memory for them."""
    watch = TrailWatch(job.session())
    read = {"kind": "read", "start": 0, "end": 1}
    before = 0
    for number in range(300_000):
        watch._add(read | {"path": str(number)})
        now = watch._sums["blobs_begun"]
        assert now >= before
        before = now
        if number < 1 << 16:
            assert now == number + 1
    assert abs(now - 300_000) < 6_000
    for number in range(0, 300_000, 97):
        watch._add(read | {"path": str(number)})
    assert watch._sums["blobs_begun"] == now, "these are known"
    assert len(watch._blobs._least) == len(watch._blobs._known) == 1 << 16
