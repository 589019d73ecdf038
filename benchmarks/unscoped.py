"""What the package never does: a job that shares one static SAS for whole containers and records nothing.

It exists to say what scoping and audit cost, and lives here since the package has no switch for it. It is everything
else that the package is: the same reading, writing, retries and commits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, cast

from beam_entra.access import Permission, SasSpec
from beam_entra.audit import Receipt
from beam_entra.audit.record import Record
from beam_entra.clock import utc_now
from beam_entra.identity import AccessToken
from beam_entra.launch.pipeline import JobReport, ScopedPipeline
from beam_entra.paths import BlobPath
from beam_entra.secret import Secret
from beam_entra.session import Session, adopt_session, close_session
from beam_entra.session.scope import JobScope
from beam_entra.storage import Sas

__all__ = ["UnscopedPipeline", "UnscopedSession"]

_LIFE = timedelta(hours=2)


class _NothingToWaitFor:
    durable = True

    def wait(self, timeout: float | None = None) -> None:
        """Nothing was recorded."""


class _NoToken:
    token_id = "none"  # noqa: S105 - the name of a token that there is not


class _NoBroker:
    def get(self, audience: str) -> AccessToken:
        return cast("AccessToken", _NoToken())

    def close(self) -> None:
        """There is nothing to forget."""


class UnscopedSession(Session):
    """A session whose SAS come from the environment, one a container, and whose trail is nowhere."""

    def __init__(self, scope: JobScope) -> None:
        super().__init__(scope, clock=utc_now)
        self.broker = cast("Any", _NoBroker())
        self._receipt = cast("Receipt", _NothingToWaitFor())
        ends = utc_now() + _LIFE
        self._static = {
            container: Sas(
                sas_id=f"static-{container}",
                key_id="static",
                spec=cast("SasSpec", None),
                query=Secret(os.environ[variable], what="SAS"),
                expires=ends,
                renew_at=ends,
            )
            for container, variable in (("raw", "BENCH_RAW_SAS"), ("curated", "BENCH_CURATED_SAS"))
        }

    def record(
        self, model: type[Record], *, bundle: str | None = None, prompt: bool = True, **facts: Any
    ) -> Receipt:
        return self._receipt

    def issue(
        self,
        spec_for: Callable[[datetime | None], SasSpec],
        *,
        path: BlobPath,
        permission: Permission,
        bundle: str | None,
    ) -> Sas:
        return self._static[path.container]


class UnscopedPipeline(ScopedPipeline):
    """A pipeline whose workers, in this process, use such a session; nothing is sealed."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        adopt_session(UnscopedSession(self.scope))

    def seal(self, outcome: str = "ok", error: str | None = None) -> JobReport:
        close_session(self.scope.job)
        self.report = cast("JobReport", f"unscoped: {outcome}")
        return self.report
