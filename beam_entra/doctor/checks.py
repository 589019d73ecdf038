"""The checks in order, each building on those before it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain

from beam_entra.access.manifest import AccessManifest
from beam_entra.clock import Clock, utc_now
from beam_entra.doctor.finding import Finding, Mark, blocked, failed_with, warned
from beam_entra.doctor.identity import (
    check_clock,
    check_credential,
    check_keys,
    check_manifest,
    check_network,
    check_time,
)
from beam_entra.doctor.storage import (
    check_audiences,
    check_audit,
    check_grants,
    check_public_access,
    check_seal,
    check_shared_key,
)
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
    Check(name="audience", needs=("manifest",), run=check_audiences),
    Check(name="public access", needs=("manifest",), run=check_public_access),
    Check(name="shared key", needs=("manifest",), run=check_shared_key),
    Check(name="time", needs=("manifest", "token"), run=check_time),
    Check(name="seal", needs=("manifest", "audit"), run=check_seal),
)
_LOGGER = logging.getLogger("beam_entra")
_OF_THE_CLOCK = "this worker's clock"
_SO_IS = {"authority": "token", "clock": "token", "token": "audit"}  # what is lost with what


class _Overheard(logging.Handler):
    """What the session warns of meanwhile, such as a secret that is old: a line, not a log record between lines."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self._said: deque[str] = deque()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, unless it is of the clock, which has its own check."""
        text = record.getMessage()
        if not text.startswith(_OF_THE_CLOCK):
            self._said.append(text)

    def findings(self, check: str) -> Iterator[Finding]:
        """What was said while this check was run."""
        while self._said:
            found, _, fix = self._said.popleft().partition(". ")
            yield warned(check, "", found, fix[:1].lower() + fix[1:] or "see that it is meant to be so")


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
        visit, overheard = self._visit, _Overheard(level=logging.WARNING)
        _LOGGER.addHandler(overheard)
        try:
            for check in CHECKS:
                for finding in chain(self._found(check), overheard.findings(check.name)):
                    if finding.mark is Mark.FAIL:
                        visit.failures.setdefault(finding.check)
                    self.findings.append(finding)
                    yield finding
        finally:
            _LOGGER.removeHandler(overheard)
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
