"""A long-running job over the wire: its segments go on in others, and what stands is sealed while it runs."""

from __future__ import annotations

import logging
import queue
import threading
import uuid
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from beam_entra.audit.record import Denied
from beam_entra.audit.store import APPEND_BYTES
from beam_entra.audit.verify import verify, verify_running
from beam_entra.cli import main
from beam_entra.errors import AuditError, AuditUnavailable, TrailBroken
from beam_entra.session import BundleSession, PeriodicSeals, Session, StorageTrail, open_trail, seal_job
from beam_entra.session.interim import seal_job_interim
from beam_entra.storage import BlobProperties
from beam_entra.testing.storage_requests import matching
from tests.session.conftest import DATA, Job, read_blob, write_blob

SHORT = "segment_records = 100"


def records(session: Session, count: int) -> None:
    """So many records, that are durable."""
    path = str(session.scope.folder)
    for _ in range(count):
        receipt = session.record(
            Denied, path=path, permission="read", reason="no", by="manifest", request_id=None, client_request_id=None
        )
    receipt.wait(30)


def read_often(bundle: BundleSession, blob: BlobProperties) -> None:
    """Twenty accesses, one after the other."""
    for _ in range(20):
        bundle.read(blob, 0, 10)


@pytest.fixture
def manifest_file(job: Job, tmp_path: Path) -> Path:
    """The job's manifest as a file."""
    path = tmp_path / "orders.access.toml"
    path.write_text(job.text, encoding="utf-8")
    return path


# ---------------------------------------------------------------- segments


def test_a_segment_goes_on_in_another(make_job):
    """Each under a right of its own to create and append; the whole is one chain."""
    job = make_job(trail=SHORT)
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    for turn in range(3):
        assert read_blob(session, job) == DATA
        records(session, 95)
        write_blob(session, job, f"orders/{turn}.jsonl")
    segments = session.segments
    assert len(segments) >= 4
    summary = job.seal_and_verify(session)
    assert [segment.sealed.segment for segment in summary.segments] == list(segments)
    assert max(segment.sealed.records for segment in summary.segments) <= 101
    rights = [record["path"] for record in job.records("sas_issued") if record["permission"] == "append"]
    assert [path.rpartition("/")[2] for path in rights[: len(segments)]] == list(segments)


def test_a_segment_that_cannot_be_begun_lets_nothing_out(make_job):
    """When Storage takes no other file, the access fails whose record would be its first: nothing is handed on."""
    job = make_job(trail=SHORT)
    job.raw.upload("orders/a.jsonl", DATA)
    session = job.session()
    with session.bundle("read") as bundle:
        blob = bundle.properties(job.source())
        records(session, 90)
        following = f"{job.scope.folder.name}segment-{session.process}-00001.jsonl"
        job.cloud.proxy.respond(403, "AuthorizationFailure", where=matching("PutBlob", blob=following))
        with pytest.raises(AuditUnavailable):
            read_often(bundle, blob)
        assert session.broken
        with pytest.raises(AuditUnavailable):
            bundle.close()
    job.check_unsealed()
    assert len(job.records()) < 100


@pytest.mark.parametrize("before", [*range(84, 100, 2), 190])
def test_the_own_segment_becomes_full_while_it_is_sealed(make_job, before):
    """Whatever record of the sealing begins another segment, the seal has them all."""
    job = make_job(trail=SHORT)
    session = job.session()
    session.bundle("launch").close()
    records(session, before)
    summary = job.seal_and_verify(session)
    assert [segment.sealed.segment for segment in summary.segments] == sorted(set(job.trail.names()) - {"seal.jsonl"})


# ---------------------------------------------------------------- interim seals


@pytest.mark.parametrize("scoping", ["sas", "bearer"])
def test_a_job_is_sealed_while_it_runs(make_job, scoping):
    """The launcher seals what its workers have written; they go on, and the final seal closes the chain."""
    job = make_job(scoping=scoping)
    job.raw.upload("orders/a.jsonl", DATA)
    launcher, worker = job.session(), job.session()
    launcher.bundle("launch").close()
    read_blob(worker, job)
    first = seal_job_interim(launcher)
    running = verify_running(job.trail)
    assert (running.interim_seals, running.interim_digest) == (1, first.last)
    held = {name: stood.records for name, stood in first.stands.items()}
    assert {name[8:44] for name in held} == {launcher.process, worker.process}
    write_blob(worker, job)
    second = seal_job_interim(launcher, first)
    assert sum(stood.records for stood in second.stands.values()) > sum(held.values())
    worker.close()
    summary = job.seal_and_verify(launcher)
    assert (summary.interim_seals, summary.seal.seq) == (2, 2)
    assert verify(job.trail, seal_digest=running.interim_digest).held_by == "seal-000000.jsonl"


def test_the_sealer_may_create_and_append_and_nothing_else(job):
    """One SAS for each interim seal, for nothing but appending, and each use of the trail is in the trail."""
    session = job.session()
    session.bundle("launch").close()
    job.cloud.proxy.requests.clear()
    seal_job_interim(session)
    session.settle()
    issued = {
        (record["path"].rpartition("/")[2], record["permission"])
        for record in job.records("sas_issued")
        if record["path"].endswith(("seal-000000.jsonl", f"{session.process}-00000.jsonl", "/"))
    }
    segment = f"segment-{session.process}-00000.jsonl"
    wanted = {("seal-000000.jsonl", "append"), ("seal-000000.jsonl", "read"), (segment, "append"), (segment, "read")}
    assert issued == wanted | {("", "list")}
    about_seal = [each for each in job.requests() if each.request.blob.endswith("seal-000000.jsonl")]
    assert [each.operation for each in about_seal] == ["PutBlob", "AppendBlock", "GetBlob"]
    others = [each.operation for each in job.requests() if not each.operation.startswith(("Put", "Append"))]
    assert others == ["ListBlobs", "GetBlob", "GetBlob"], "it reads what is new, and the seal again"
    job.check_unsealed()


def test_a_change_below_an_interim_seal_is_found(job):
    """By `verify` at once, and by the launcher at the end: no final seal goes over it."""
    launcher, worker = job.session(), job.session()
    launcher.bundle("launch").close()
    read_blob(worker, job)
    worker.close()
    seal_job_interim(launcher)
    name = next(name for name in job.trail.names() if worker.process in name)
    blob = job.audit.admin.client("contosolake").get_blob_client(job.audit.name, job.scope.folder.name + name)
    lines = job.trail.read(name).splitlines(keepends=True)
    blob.delete_blob()
    blob.upload_blob(b"".join(lines[:-1]), blob_type="AppendBlob")
    job.check_unsealed()
    with pytest.raises(TrailBroken, match="rule 19"):
        verify_running(job.trail)
    with pytest.raises(TrailBroken, match="rule 19"):
        seal_job(launcher, outcome="ok", error=None)
    assert "seal.jsonl" not in job.trail.names()


def test_while_a_worker_writes_all_the_time(make_job, tmp_path):
    """Its segment grows and goes on in others between any two requests: interim seals and auditors see it whole."""
    job = make_job(trail=SHORT)
    manifest = tmp_path / "orders.access.toml"
    manifest.write_text(job.text, encoding="utf-8")
    launcher, worker = job.session(), job.session()
    launcher.bundle("launch").close()
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            records(worker, 20)

    writing = threading.Thread(target=write)
    writing.start()
    known = None
    try:
        trail = open_trail(str(job.scope.folder), manifest, job.cloud.endpoints_file)
        while len(worker.segments) < 4:
            known = seal_job_interim(launcher, known)
            assert verify_running(trail).interim_seals == known.count
    finally:
        done.set()
        writing.join(30)
    worker.close()
    assert job.seal_and_verify(launcher).interim_seals == known.count


def test_a_listing_that_takes_its_time(make_job, tmp_path):
    """It sees a segment before its end, and the one that continues it when that has begun: the end is looked up."""
    job = make_job(trail=SHORT)
    manifest = tmp_path / "orders.access.toml"
    manifest.write_text(job.text, encoding="utf-8")
    worker = job.session()
    records(worker, 50)

    class Slow(StorageTrail):
        """Between the first page of a listing and the second the worker has begun another segment."""

        listings = 0
        early: dict[str, BlobProperties]

        def _list(self) -> dict[str, BlobProperties]:
            self.listings += 1
            if self.listings == 1:
                self.early = super()._list()
                records(worker, 100)
            return super()._list() | (self.early if self.listings % 2 else {})

    fast = open_trail(str(job.scope.folder), manifest, job.cloud.endpoints_file)
    slow = Slow(fast._bundle, job.scope.folder)
    first = worker.segments[0]
    assert slow.sizes()[first] == len(job.trail.read(first))
    found = verify_running(slow)
    assert found.records >= 100
    worker.close()


def test_a_listing_that_takes_its_time_and_misses_one(make_job, tmp_path):
    """A worker has begun two segments while it was listed: where the first of them stands was looked at before."""
    job = make_job(trail=SHORT)
    manifest = tmp_path / "orders.access.toml"
    manifest.write_text(job.text, encoding="utf-8")
    worker = job.session()
    records(worker, 50)

    class Slow(StorageTrail):
        """The first of any two listings saw the first segment early, and not the second."""

        listings = 0
        early: dict[str, BlobProperties]

        def _list(self) -> dict[str, BlobProperties]:
            self.listings += 1
            if self.listings == 1:
                self.early = super()._list()
                records(worker, 200)
            found = super()._list()
            return found if self.listings % 2 == 0 else {max(found): found[max(found)]} | self.early

    slow = Slow(open_trail(str(job.scope.folder), manifest, job.cloud.endpoints_file)._bundle, job.scope.folder)
    assert set(slow.sizes()) == set(worker.segments)
    assert len(worker.segments) == 3
    assert verify_running(slow).records >= 250
    worker.close()


def test_what_was_listed_is_read_though_more_was_written(job, manifest_file):
    """An auditor of a running job reads as much as it saw; a version is not asked for, since it will be another."""
    worker = job.session()
    read_blob(worker, job)
    trail = open_trail(str(job.scope.folder), manifest_file, job.cloud.endpoints_file)
    ((name, size),) = trail.sizes().items()
    read_blob(worker, job)
    whole = job.trail.read(name)
    assert len(whole) > size
    assert trail.read(name) == whole[:size]
    assert trail.read_range(name, 10, size + 1) == whole[10 : size + 1]


def test_two_launchers_at_once(job):
    """The second one's seal continues the first one's, whether it knew of it or not."""
    one, two = job.session(), job.session()
    for launcher in (one, two):
        launcher.bundle("launch").close()
    known = seal_job_interim(two)
    seal_job_interim(one)
    assert seal_job_interim(two, known).count == 3
    one.close()
    assert job.seal_and_verify(two).interim_seals == 3


# ---------------------------------------------------------------- now and then


class Ticks:
    """A wait that ends when the test says so."""

    def __init__(self) -> None:
        self._ticks: queue.Queue[bool] = queue.Queue()
        self.waiting = threading.Semaphore(0)

    def __call__(self, seconds: float) -> bool:
        self.waiting.release()
        return self._ticks.get(timeout=60)

    def tick(self) -> None:
        """Let one interval pass, and wait until what comes of it is done."""
        assert self.waiting.acquire(timeout=30)
        self._ticks.put(False)
        assert self.waiting.acquire(timeout=30)
        self.waiting.release()

    def end(self) -> None:
        """No more."""
        self._ticks.put(True)


@pytest.fixture
def sealed_now_and_then(job: Job) -> Any:
    """A launcher's session, and the ticks at which it seals."""
    session, ticks = job.session(pause=lambda seconds: None), Ticks()
    session.bundle("launch").close()
    seals = PeriodicSeals(lambda: session, every=timedelta(minutes=15), wait=ticks)
    yield session, ticks, seals
    ticks.end()
    seals.stop()


def test_it_is_sealed_again_and_again(job, sealed_now_and_then):
    """At each interval, until it is stopped; then the job is sealed for good."""
    session, ticks, seals = sealed_now_and_then
    for count in (1, 2, 3):
        read_blob(session, job)
        ticks.tick()
        assert verify_running(job.trail).interim_seals == count
    ticks.end()
    seals.stop()
    assert job.seal_and_verify(session).interim_seals == 3


def test_one_that_fails_is_made_up_for(job, sealed_now_and_then, caplog):
    """A store that is away for an interval costs one interim seal and nothing else; it is said."""
    _, ticks, _ = sealed_now_and_then
    seal_blob = f"{job.scope.folder.name}seal-000000.jsonl"
    trouble = job.cloud.proxy.respond(403, "AuthorizationFailure", where=matching("AppendBlock", blob=seal_blob))
    with caplog.at_level(logging.WARNING, "beam_entra.session.interim"):
        ticks.tick()
    assert "was not sealed so far, the next time will do" in caplog.text
    trouble.clear()
    ticks.tick()
    assert verify_running(job.trail).interim_seals == 1


def test_whatever_happens_there_is_a_next_one(job, caplog):
    """An error that nobody foresaw ends nothing: it is said, without a word of what it says, and the next is made."""
    session, ticks = job.session(), Ticks()
    session.bundle("launch").close()
    secret = str(uuid.uuid4())
    trouble = [RuntimeError(secret), MemoryError()]

    def troubled() -> Session:
        if trouble:
            raise trouble.pop()
        return session

    seals = PeriodicSeals(troubled, every=timedelta(minutes=15), wait=ticks)
    try:
        ticks.tick()
        ticks.tick()
        said = [record for record in caplog.records if record.name == "beam_entra.session.interim"]
        assert [record.levelno for record in said] == [logging.ERROR, logging.ERROR]
        assert "MemoryError at " in said[0].getMessage()
        assert f"RuntimeError at {__file__} line " in said[1].getMessage()
        assert secret not in caplog.text
        ticks.tick()
        assert verify_running(job.trail).interim_seals == 1
    finally:
        ticks.end()
        seals.stop()


def test_when_the_time_of_the_job_is_over_it_says_so_and_ends(make_job, caplog):
    """No other could be made; the final seal does not need the job's time."""
    job = make_job(lasts=timedelta(0))
    session = job.session()
    with caplog.at_level(logging.WARNING, "beam_entra.session.interim"):
        seals = PeriodicSeals(lambda: session, every=timedelta(0), wait=lambda seconds: False)
        seals._thread.join(30)
    assert not seals._thread.is_alive()
    assert "the job's time is over" in caplog.text


def test_tampering_is_said_while_the_job_runs(job, sealed_now_and_then, caplog):
    """A launcher that finds a segment shorter than it was says so, as an error, and goes on looking."""
    _, ticks, _ = sealed_now_and_then
    worker = job.session()
    read_blob(worker, job)
    worker.close()
    ticks.tick()
    name = next(name for name in job.trail.names() if worker.process in name)
    job.audit.admin.client("contosolake").get_blob_client(job.audit.name, job.scope.folder.name + name).delete_blob()
    ticks.tick()
    (said,) = [record for record in caplog.records if record.name == "beam_entra.session.interim"]
    assert said.levelno == logging.ERROR
    assert f"{name} line 1: rule 19" in said.getMessage()


def test_an_interim_seal_that_is_gone_is_said_while_the_job_runs(job, sealed_now_and_then, caplog):
    """The launcher knows which it has made: it is missed at the next one, though all that is left is consistent."""
    session, ticks, _ = sealed_now_and_then
    read_blob(session, job)
    ticks.tick()
    client = job.audit.admin.client("contosolake")
    client.get_blob_client(job.audit.name, f"{job.scope.folder.name}seal-000000.jsonl").delete_blob()
    ticks.tick()
    (said,) = [record for record in caplog.records if record.name == "beam_entra.session.interim"]
    assert said.levelno == logging.ERROR
    assert "seal-000000.jsonl line 1: rule 18" in said.getMessage()
    assert "seal-000000.jsonl" not in job.trail.names(), "and nothing is put in its place"


# ---------------------------------------------------------------- from outside


def run(job: Job, manifest_file: Path, *arguments: str) -> Result:
    """`beam-entra audit`, as the job's identity."""
    flags = [f"--access_manifest={manifest_file}", f"--access_endpoints={job.cloud.endpoints_file}"]
    return CliRunner().invoke(main, ["audit", *arguments, *flags])


def test_from_the_command_line(job, manifest_file):
    """A job whose launcher has gone is sealed by somebody else, and verified as far as it goes; neither is recorded."""
    worker = job.session()
    read_blob(worker, job)
    folder, above = str(job.scope.folder), str(job.manifest.audit)
    before = run(job, manifest_file, "verify", folder, "--running")
    assert before.exit_code == 0, before.output
    assert "no interim seal yet" in before.stdout
    made = run(job, manifest_file, "seal", "--interim", above)
    assert made.exit_code == 0, made.output
    name, digest = made.stdout.split()
    assert name == job.scope.job
    write_blob(worker, job)
    running = run(job, manifest_file, "verify", folder, "--running", f"--seal-digest={digest}")
    assert running.exit_code == 0, running.output
    assert f"running   {job.scope.job}  " in running.stdout
    assert "held by interim seals, the last of 20" in running.stdout
    assert "after it, which no seal holds yet, in 1 segment" in running.stdout
    assert f"interim seal digest {digest}" in running.stdout
    strict = run(job, manifest_file, "verify", folder)
    assert strict.exit_code == 1
    assert "rule 14: not sealed; seal-000000.jsonl of" in strict.stderr
    shown = run(job, manifest_file, "show", folder)
    assert shown.exit_code == 0, shown.output
    assert "by an interim seal" in shown.stdout
    again = run(job, manifest_file, "seal", "--interim", folder)
    assert again.stdout.split()[1] != digest
    assert run(job, manifest_file, "seal", "--interim", folder).stdout == again.stdout, "nothing was added"
    worker.close()
    assert run(job, manifest_file, "seal", folder).exit_code == 0
    ended = run(job, manifest_file, "verify", folder, "--running", f"--seal-digest={digest}")
    assert ended.exit_code == 0, ended.output
    assert "the digest is that of seal-000000.jsonl: what came later it does not hold" in ended.stdout
    done = run(job, manifest_file, "seal", "--interim", above)
    assert (done.exit_code, done.output) == (0, ""), "it has its seal"


@pytest.mark.parametrize("gone", [False, True])
def test_one_broken_trail_does_not_keep_others_from_their_seal(job, manifest_file, gone):
    """Each job of a folder is sealed for itself; what is wrong is said, with exit code 1; so is what is gone by now."""
    with closing(job.session()) as worker:
        read_blob(worker, job)
    segment = "trails/orders-broken/segment-f0000000-0000-4000-8000-00000000000f-00000.jsonl"
    job.audit.upload(segment, b"no record\n")
    if gone:
        job.cloud.proxy.respond(404, "BlobNotFound", where=matching("GetBlob", blob=segment))
    made = run(job, manifest_file, "seal", "--interim", str(job.manifest.audit))
    assert made.exit_code == 1
    assert made.stdout.split()[0] == job.scope.job
    assert "NOT SEALED  orders-broken: " in made.stderr
    assert "segment-f0000000" in made.stderr


@pytest.mark.parametrize("stray", ["JOB/notes/readme.txt", "JOB/readme.txt", "notes/old/readme.txt", "readme.txt"])
def test_a_stray_file_keeps_no_other_trail_from_its_seal(job, manifest_file, stray):
    """It is named, with exit code 1. A trail that holds it gets no seal, on the way or in the end; all others do."""
    other = Session(replace(job.scope, job="orders-other"))
    for session in (job.session(), other):
        with closing(session):
            session.bundle("launch").close()
    where = stray.replace("JOB", job.scope.job)
    job.audit.upload(f"trails/{where}", b"hello")
    made = run(job, manifest_file, "seal", "--interim", str(job.manifest.audit))
    assert made.exit_code == 1
    within = stray.startswith("JOB")
    sealed = {line.split()[0] for line in made.stdout.splitlines()}
    assert sealed == {"orders-other"} | (set() if within else {job.scope.job})
    assert made.stderr.count("NOT SEALED") == 1
    assert f"NOT SEALED  {where.partition('/')[0]}: " in made.stderr
    if within:
        said = f"'{stray.removeprefix('JOB/')}' line 1: rule 1: neither a segment nor a seal"
        assert said in made.stderr
        final = run(job, manifest_file, "seal", str(job.scope.folder))
        assert (final.exit_code, said in " ".join(final.output.split())) == (1, True)


@pytest.mark.parametrize("fails", [False, True])
def test_a_final_seal_that_was_not_ended_is_named(job, manifest_file, fails):
    """One of more than an append, whose launcher was killed on the way, is no seal; one that was ended is."""
    with closing(job.session()) as worker:
        read_blob(worker, job)
    for name, end in (("orders-begun", b" "), ("orders-ended", b"\n")):
        admin = job.audit.admin.client("contosolake")
        seal = admin.get_blob_client(job.audit.name, f"trails/{name}/seal.jsonl")
        seal.upload_blob(b"{" + b" " * (APPEND_BYTES - 2) + end, blob_type="AppendBlob")
    if fails:
        unreadable = matching("GetBlob", blob="trails/orders-begun/seal.jsonl")
        job.cloud.proxy.respond(404, "BlobNotFound", where=unreadable)
    made = run(job, manifest_file, "seal", "--interim", str(job.manifest.audit))
    assert made.exit_code == 1
    assert [line.split()[0] for line in made.stdout.splitlines()] == [job.scope.job]
    assert made.stderr.count("NOT SEALED") == 1
    assert "NOT SEALED  orders-begun: " in made.stderr
    if not fails:
        assert f"beam-entra audit seal {job.manifest.audit}orders-begun/" in made.stderr


@pytest.mark.parametrize("below", ["", "nothing/", "a/b/"])
def test_where_no_job_is(job, manifest_file, below):
    """Neither an empty folder nor one within a job's is sealed."""
    job.audit.upload("trails/a/b/segment-f0000000-0000-4000-8000-00000000000f-00000.jsonl", b"x")
    made = run(job, manifest_file, "seal", "--interim", f"{job.manifest.audit}{below}")
    assert made.exit_code == 1
    assert "no trail of a job at" in made.stderr + made.stdout


def test_a_job_cannot_seal_another(job):
    """The right to append, to a seal too, is for the job's own folder."""
    session = job.session()
    other = job.manifest.audit.child("orders-20300101T000000Z-abcdef/")
    with pytest.raises(PermissionError):
        session._authorise_append(other.child("seal-000000.jsonl"))
    seal_job(session, outcome="ok", error=None)
    late = job.session()
    with pytest.raises(AuditError, match="sealed already"):
        seal_job_interim(late)
