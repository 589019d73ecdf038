"""What is left when a job ends, and for how long: docs/security.md's table, held against runs by a clock of their own.

Storage's part is played by a server that goes by that clock, too; Azurite goes by the machine's.
"""

from __future__ import annotations

import base64
import math
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from beam_entra.access import AccessManifest
from beam_entra.access.downscope import Permission
from beam_entra.errors import AuditUnavailable, Diagnosis, IdentityError, IdentityRejected
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session
from beam_entra.session.bundle import BundleSession
from beam_entra.testing.clock import FakeClock
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from tests.session.conftest import LAKE, Job

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
TICK = timedelta(seconds=15)
TOKEN_LIFE = 90 * MINUTE  # the page's assumption
JOB_LIFE = 2 * HOUR  # likewise
LONGEST_KEY = timedelta(days=7)  # Storage's limit
ROLE_REMOVED = 10 * MINUTE  # Azure's own word for how long that takes


class StorageByItsOwnClock:
    """Gives delegation keys as they are asked for, and takes whatever is appended."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def answer(self, request: Request) -> Answer:
        headers = {"Date": format_datetime(self._clock(), usegmt=True), "x-ms-request-id": str(uuid.uuid4())}
        if request.query.get("comp") != "userdelegationkey":
            return Answer(status=201, headers=headers)
        asked = ElementTree.fromstring(request.body)  # noqa: S314 - of our own
        fields = {
            "SignedOid": str(uuid.uuid4()),
            "SignedTid": str(uuid.uuid4()),
            "SignedStart": asked.findtext("Start"),
            "SignedExpiry": asked.findtext("Expiry"),
            "SignedService": "b",
            "SignedVersion": "2025-07-05",
            "Value": base64.b64encode(uuid.uuid4().bytes).decode(),
        }
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
        return Answer(headers=headers, body=f"<UserDelegationKey>{inner}</UserDelegationKey>".encode())


class Revocable:
    """A source of tokens that says no from some moment on."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.revoked = False

    def acquire(self, audience: str, *, claims: str = "") -> AccessToken:
        if self.revoked:
            raise IdentityRejected("Entra refused the job's identity", Diagnosis(code="AADSTS7000112"))
        now = self._clock()
        return AccessToken.issued(
            str(uuid.uuid4()),
            token_id=f"token-{uuid.uuid4().hex[:12]}",
            audience=audience,
            acquired=now,
            expires_on=int((now + TOKEN_LIFE).timestamp()),
            refresh_on=None,
        )


@dataclass(kw_only=True)
class Run:
    """A job in one process, in the middle of a long bundle."""

    clock: FakeClock
    source: Revocable
    session: Session
    bundle: BundleSession
    path: BlobPath


@contextmanager
def running(job: Job, *, life: timedelta = JOB_LIFE) -> Iterator[Run]:
    """It has just got its token. Its SAS live as long as a manifest has them that does not say."""
    clock = FakeClock(datetime(2030, 1, 1, tzinfo=UTC))
    text = re.sub(r'^ *token = "15m"$', "", job.text, count=1, flags=re.MULTILINE)
    assert text != job.text
    with HttpsServer(
        job.cloud.certificates.server_context(), ServiceHandler, StorageByItsOwnClock(clock), name="storage"
    ) as storage:
        document = AccessManifest.parse(text, file="orders.access.toml").to_dict()
        document["accounts"][LAKE] |= {"endpoint": storage.url, "ca_file": str(job.cloud.ca_file)}
        document["lifetime"]["job"] = f"{int(life.total_seconds())}s"
        scope = JobScope.launch(AccessManifest.from_dict(document), now=clock())
        source = Revocable(clock)
        session = Session(scope, clock=clock, source=source)
        job.sessions.append(session)
        bundle = session.bundle("long")
        yield Run(clock=clock, source=source, session=session, bundle=bundle, path=job.source())
        job.close()


def minutes_until_the_end(run: Run, present: Callable[[], object]) -> int:
    """How long something can be presented still, in whole minutes."""
    began = last = run.clock()
    while run.clock() < began + timedelta(days=1):
        try:
            present()
        except (IdentityError, AuditUnavailable):
            break
        last = run.clock()
        run.clock.advance(TICK)
    return in_minutes(last - began)


def in_minutes(span: timedelta) -> int:
    """Rounded up."""
    return math.ceil(span / MINUTE)


def table() -> dict[str, list[int | None]]:
    """The page's: by how it ends, the number in each cell, if there is one."""
    section = PAGE.read_text(encoding="utf-8").partition("### What is left, and for how long")[2]
    rows = [line.strip("|").split("|") for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return {name.strip(): [_number(cell) for cell in cells] for name, *cells in rows[2:]}


def _number(cell: str) -> int | None:
    found = re.match(r"\s*(\d+)\b", cell)
    return int(found.group(1)) if found else None


def column(index: int, but_for: str = "stolen") -> set[int | None]:
    """The different numbers in a column, but for thefts and the removal of the role."""
    return {cells[index] for name, cells in table().items() if but_for not in name and "role" not in name}


def test_a_copied_sas(make_job) -> None:
    """It lives as long as a SAS does, from the moment it is issued."""
    with running(make_job()) as run:
        assert in_minutes(run.bundle.sas(run.path, Permission.READ).expires - run.clock()) == 15
    assert column(1, but_for="access token") == {15}


def test_a_copied_delegation_key(make_job) -> None:
    """It lives until the job's deadline; of a job that is longer than Storage allows, no longer than that."""
    with running(make_job()) as run:
        assert run.session.key(LAKE).expires == run.session.deadline == run.clock() + JOB_LIFE
    assert column(2) == {in_minutes(JOB_LIFE)}
    with running(make_job(), life=LONGEST_KEY) as run:
        assert run.session.key(LAKE).expires - run.clock() <= LONGEST_KEY


def test_a_copied_token(make_job) -> None:
    """It is Entra's to end; what it gets from Storage lives for as long as Storage allows."""
    with running(make_job()) as run:
        assert run.session.broker.get(STORAGE_AUDIENCE).expires == run.clock() + TOKEN_LIFE
    assert column(3) == {in_minutes(TOKEN_LIFE)}
    stolen = in_minutes(TOKEN_LIFE + LONGEST_KEY)
    assert table()["an access token is stolen"] == [None, None, stolen, in_minutes(TOKEN_LIFE)]
    assert f"{stolen} in all" in PAGE.read_text(encoding="utf-8")
    assert table()["a SAS is stolen"] == [None, 15, None, None]


def test_a_principal_that_is_revoked(make_job) -> None:
    """Right after a token has come: its life, then that of the last SAS. Nothing is issued without a live token."""
    with running(make_job(), life=12 * HOUR) as run:
        run.source.revoked = True
        ends: list[datetime] = []
        began = run.clock()

        def open_another() -> None:
            blob = replace(run.path, name=f"orders/{len(ends)}")
            ends.append(run.bundle.sas(blob, Permission.READ).expires)

        took = minutes_until_the_end(run, open_another)
        assert took <= in_minutes(TOKEN_LIFE)
        left = in_minutes(max(ends) - began)
    rows = table()
    assert rows["the principal is revoked, or deleted"][0] == 105
    assert rows["its federated credential is removed, its secret or certificate ends"][0] == 105
    assert 100 < left <= 105


def test_a_principal_that_is_revoked_under_bearer(make_job) -> None:
    """The token's life, and no more."""
    with running(make_job(scoping="bearer"), life=12 * HOUR) as run:
        run.source.revoked = True
        left = minutes_until_the_end(run, lambda: run.bundle._authorise(run.path, Permission.READ))
    assert 85 < left <= 90
    assert "read the columns for the job (90 for 105)" in PAGE.read_text(encoding="utf-8")


def test_the_launcher_is_gone(make_job) -> None:
    """A worker that goes on without it stops at the deadline, by itself."""
    with running(make_job()) as run:
        left = minutes_until_the_end(run, lambda: run.bundle.sas(run.path, Permission.READ))
        assert run.clock() >= run.session.deadline
    assert table()["SIGKILL of the launcher"][0] == left == in_minutes(JOB_LIFE)


def test_an_end_in_order(make_job) -> None:
    """At once, whatever it had: the rows of ends that a process lives to see say 0."""
    with running(make_job()) as run:
        run.bundle.sas(run.path, Permission.READ)
        run.bundle.close()
        run.session.close()
        with pytest.raises(AuditUnavailable):
            run.bundle.sas(run.path, Permission.READ)
        with pytest.raises((IdentityError, AuditUnavailable)):
            run.session.bundle("another")
    ends = ["normal end", "failure", "Ctrl-C or SIGTERM of the launcher", "SIGKILL of a worker"]
    assert [table()[name][0] for name in ends] == [0] * 4


def test_the_rows_that_are_azures() -> None:
    """The removal of a role is looked up for each request, and every row has been held against something."""
    rows = table()
    assert rows["its role is removed"] == [in_minutes(ROLE_REMOVED)] * 4
    assert len(rows) == 10
    page = PAGE.read_text(encoding="utf-8")
    day = in_minutes(24 * HOUR)
    assert f"for those read {day}, and {day + 15} for 105" in page
