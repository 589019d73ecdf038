"""What the checks of one examination share: what is known so far, and what of it could not be had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from beam_entra.access.manifest import AccessManifest
from beam_entra.audit.seal import Seal
from beam_entra.clock import Clock
from beam_entra.doctor.finding import Finding
from beam_entra.errors import AuditUnavailable
from beam_entra.identity import AccessToken
from beam_entra.paths import BlobPath
from beam_entra.session import BundleSession, JobScope, Session
from beam_entra.session.probing import Prober

__all__ = ["Check", "Visit"]


@dataclass(slots=True)
class Visit:
    """One examination on its way.

    Attributes:
        load: Gives the manifest, endpoints included.
        clock: This machine's.
        pause: Waits so many seconds between attempts at Storage.
        lost: What could not be had, as `authority` or `account contosolake`, to the reason.
        ahead: By service, by how much this machine's clock is ahead.
        blobs: By container, a blob that is there.
        missing: Containers that are not there.
        failures: Checks that failed so far, each once.
    """

    load: Callable[[], AccessManifest]
    clock: Clock
    pause: Callable[[float], object]
    lost: dict[str, str] = field(default_factory=dict)
    ahead: dict[str, timedelta] = field(default_factory=dict)
    blobs: dict[str, BlobPath] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    failures: dict[str, None] = field(default_factory=dict)
    scope: JobScope | None = None
    session: Session | None = None
    bundle: BundleSession | None = None
    token: AccessToken | None = None
    seal: Seal | None = None

    @property
    def manifest(self) -> AccessManifest:
        """The manifest; loaded."""
        return self.job.manifest

    @property
    def job(self) -> JobScope:
        """The scope under which all is asked."""
        assert self.scope is not None  # noqa: S101 - the checks that use it need the manifest
        return self.scope

    @property
    def live(self) -> Session:
        """The session in which all is asked."""
        assert self.session is not None  # noqa: S101 - likewise
        return self.session

    @property
    def asking(self) -> BundleSession:
        """The bundle in which all is asked; the audit can be written."""
        assert self.bundle is not None  # noqa: S101 - likewise
        return self.bundle

    @property
    def prober(self) -> Prober:
        """Asks Storage in it."""
        return Prober(self.asking)

    def why_not(self, *needs: str) -> str:
        """Why the first of these that is lost is; empty when none is."""
        return next((self.lost[need] for need in needs if need in self.lost), "")

    def close(self) -> None:
        """Forget every credential. What is recorded stays."""
        if self.session is not None:
            with suppress(AuditUnavailable):
                self.session.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, or one for each of several things.

    Attributes:
        name: As in its findings.
        needs: What must not be lost for it to make sense.
        run: Yields the findings; what fails says in `lost` what nobody can build on any more.
    """

    name: str
    needs: tuple[str, ...]
    run: Callable[[Visit], Iterator[Finding]]
