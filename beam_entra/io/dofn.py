"""`ScopedDoFn`: a DoFn that acts as the job, and nobody else. The base of every connector here, and of yours."""

from __future__ import annotations

import copy
from contextlib import suppress
from functools import cache
from typing import Any, ClassVar, TypeVar

import apache_beam as beam
from apache_beam.metrics import Metrics

from beam_entra.errors import AuditError, ConfigError, Diagnosis
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken
from beam_entra.io.options import EntraOptions
from beam_entra.session import BundleSession, JobScope, Session, has_ended, open_session, tally

__all__ = ["METRICS_NAMESPACE", "Scoped", "ScopedDoFn", "count", "scope_of"]

METRICS_NAMESPACE = "beam_entra"

SomeScopedDoFn = TypeVar("SomeScopedDoFn", bound="ScopedDoFn")


def scope_of(pipeline: beam.Pipeline) -> JobScope:
    """The job scope of a pipeline that is being built.

    Raises:
        ConfigError: It is no `ScopedPipeline`.
    """
    options: EntraOptions = pipeline.options.view_as(EntraOptions)
    return options.job_scope()


def count(job: str, name: str, by: int = 1) -> None:
    """Add to one of Beam's counters, and to what this process knows of the job while it runs.

    For many things at a time: it costs some microseconds.
    """
    _counter(name).inc(by)
    tally(job, name, by)


@cache
def _counter(name: str) -> Any:
    return Metrics.counter(METRICS_NAMESPACE, name)


class ScopedDoFn(beam.DoFn):  # type: ignore[misc]  # Beam's DoFn is untyped
    """A DoFn with a bundle session: refreshed tokens, audit and metrics.

    In `process`, `self.bundle()` is the bundle session and `self.token()` a live token. Both open at their first use in
    a bundle; a bundle that uses neither leaves no record. What `process` yields may depend only on what the bundle
    session gave: then nothing leaves the bundle before its record is durable. (They are methods since Beam looks at
    every attribute of a DoFn when a pipeline is built.)

    Override `setup`, `start_bundle`, `finish_bundle` and `teardown` only together with a call to `super()`.

    Attributes:
        audience: The resource whose tokens `token()` gives. It must stand under `[grants] token` of the manifest.
    """

    audience: ClassVar[str] = STORAGE_AUDIENCE

    scope: JobScope | None = None
    step: str = ""
    _session: Session | None = None
    _bundle: BundleSession | None = None

    def scoped(self: SomeScopedDoFn, scope: JobScope, step: str) -> SomeScopedDoFn:
        """Tie the DoFn to a job; `Scoped` does it when the pipeline is built.

        Args:
            step: Its name in the audit trail.
        """
        self.scope, self.step = scope, step
        return self

    def bundle(self) -> BundleSession:
        """This bundle's session."""
        if self._bundle is None:
            self._bundle = self.session().bundle(self.step or type(self).__name__, audience=self.audience)
        return self._bundle

    def session(self) -> Session:
        """This process's session of the job."""
        if self._session is None:
            if self.scope is None:
                raise ConfigError(
                    f"{type(self).__name__} has no job scope",
                    Diagnosis(hint=f"apply it as beam_entra.Scoped({type(self).__name__}(...)) in place of beam.ParDo"),
                )
            if has_ended(self.scope.job):
                raise ConfigError(
                    f"job {self.scope.job} has ended in this process, and its audit with it",
                    Diagnosis(hint="its runner goes on with it: see that it ends the job"),
                )
            self._session = open_session(self.scope)
        return self._session

    def token(self, *, refused: AccessToken | None = None, claims: str = "") -> AccessToken:
        """A live access token for `audience`. Put `.secret.reveal()` into the request's header and keep it nowhere.

        Args:
            refused: The token that the service has answered with a claims challenge: another one is got in its place.
            claims: What the challenge said, decoded: JSON.
        """
        return self.bundle().access_token(self.audience, refused=refused, claims=claims)

    def start_bundle(self) -> None:
        self._abandon()  # the runner gave up on the bundle before
        if self._session is not None and self._session.broken:
            self._session = None

    def finish_bundle(self) -> Any:
        self._close("ok")
        if self._session is not None:
            for name, by in self._session.take_counts().items():
                Metrics.counter(METRICS_NAMESPACE, name).inc(by)

    def teardown(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        with suppress(AuditError):  # its outputs are lost in any case; without the record it ends without closing
            self._close("abandoned")

    def _close(self, outcome: Any) -> None:
        bundle, self._bundle = self._bundle, None
        if bundle is not None:
            bundle.close(outcome)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_session", "_bundle")}


class Scoped(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """ParDo for a `ScopedDoFn`: `rows | "Look up" >> Scoped(LookUp())`.

    Args:
        fn: The DoFn. A copy of it gets the pipeline's job scope; it may be applied in several pipelines.
        side_inputs: As for ParDo.
    """

    def __init__(self, fn: ScopedDoFn, *side_inputs: Any, **keyword_side_inputs: Any) -> None:
        super().__init__()
        self._fn = fn
        self._side_inputs = side_inputs, keyword_side_inputs

    def expand(self, rows: beam.PCollection[Any]) -> beam.PCollection[Any]:
        positional, keyword = self._side_inputs
        step = rows.pipeline._current_transform().full_label or self.label
        fn = copy.copy(self._fn).scoped(scope_of(rows.pipeline), step)
        return rows | "Scoped" >> beam.ParDo(fn, *positional, **keyword)
