"""The checks in order, each building on those before it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from beam_entra.access.manifest import AccessManifest
from beam_entra.clock import Clock, utc_now
from beam_entra.doctor.finding import Finding, Mark, blocked, failed_with
from beam_entra.doctor.identity import (
    check_clock,
    check_credential,
    check_keys,
    check_manifest,
    check_network,
    check_time,
)
from beam_entra.doctor.storage import check_audit, check_grants, check_public_access, check_seal, check_shared_key
from beam_entra.doctor.visit import Check, Visit
from beam_entra.errors import BeamEntraError

__all__ = ["CHECKS", "Examination"]

CHECKS = (
    Check(name="manifest", needs=(), run=check_manifest),
    Check(name="network", needs=("manifest",), run=check_network),
    Check(name="clock", needs=("manifest",), run=check_clock),
    Check(name="credential", needs=("manifest", "authority", "clock"), run=check_credential),
    Check(name="delegation key", needs=("manifest", "token"), run=check_keys),
    Check(name="audit", needs=("manifest", "token"), run=check_audit),
    Check(name="grants", needs=("manifest",), run=check_grants),
    Check(name="public access", needs=("manifest",), run=check_public_access),
    Check(name="shared key", needs=("manifest",), run=check_shared_key),
    Check(name="time", needs=("manifest", "token"), run=check_time),
    Check(name="seal", needs=("manifest", "audit"), run=check_seal),
)
_SO_IS = {"authority": "token", "clock": "token", "token": "audit"}  # what is lost with what


class Examination:
    """All checks, run once, one finding after the other as they come.

        examination = Examination(load)
        for finding in examination.run(): ...
        examination.failures                     # ("token", "write")

    Reads no data and writes nothing but an audit trail of its own, sealed at the end.

    Args:
        load: Gives the manifest, endpoints included; raises ConfigError.
        clock: This machine's.
        pause: Waits so many seconds between attempts at Storage.
    """

    def __init__(
        self,
        load: Callable[[], AccessManifest],
        *,
        clock: Clock = utc_now,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self.findings: list[Finding] = []
        self._visit = Visit(load=load, clock=clock, pause=pause)

    def run(self) -> Iterator[Finding]:
        """The findings, in the order of the checks."""
        visit = self._visit
        try:
            for check in CHECKS:
                for finding in self._found(check):
                    if finding.mark is Mark.FAIL:
                        visit.failures.setdefault(finding.check)
                    self.findings.append(finding)
                    yield finding
        finally:
            visit.close()

    @property
    def failures(self) -> tuple[str, ...]:
        """The checks that failed, each once."""
        return tuple(self._visit.failures)

    @property
    def job(self) -> str:
        """The id that the examination went by; empty when the manifest did not load."""
        return self._visit.scope.job if self._visit.scope else ""

    @property
    def trail(self) -> str:
        """The folder of its audit trail; empty when nothing could be recorded."""
        return str(self._visit.job.folder) if self._visit.bundle else ""

    @property
    def seal_digest(self) -> str:
        """Digest of its seal; empty when there is none."""
        return self._visit.seal.digest if self._visit.seal else ""

    def _found(self, check: Check) -> Iterator[Finding]:
        visit = self._visit
        for lost, with_it in _SO_IS.items():
            if lost in visit.lost:
                visit.lost.setdefault(with_it, visit.lost[lost])
        if why := visit.why_not(*check.needs):
            yield blocked(check.name, "", why)
            return
        try:
            yield from check.run(visit)
        except BeamEntraError as error:
            yield failed_with(check.name, "", error)
