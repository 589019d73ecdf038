"""`ScopedPipeline`: a pipeline whose job has a scope when it is built, and a sealed audit trail when it has ended."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from beam_entra.access import AccessManifest
from beam_entra.audit.guard import looks_like_secret
from beam_entra.audit.interim import Interims
from beam_entra.audit.seal import Seal
from beam_entra.clock import utc_now
from beam_entra.errors import (
    AuditUnavailable,
    BeamEntraError,
    ConfigError,
    Diagnosis,
    FormatError,
    IdentityError,
    find_rendered_error,
)
from beam_entra.io.dofn import METRICS_NAMESPACE
from beam_entra.io.filesystem import BEAM_PLUGIN
from beam_entra.io.options import EntraOptions
from beam_entra.launch.command_line import find_interrupt, find_ours
from beam_entra.launch.job_server import LaunchedJob, leaves_job
from beam_entra.launch.preflight import check_before_launch
from beam_entra.launch.progress import shown_progress
from beam_entra.launch.sampling import sample_often
from beam_entra.session import (
    JobScope,
    PeriodicSeals,
    Session,
    close_session,
    has_ended,
    open_session,
    seal_job,
)

__all__ = ["JobReport", "ScopedPipeline"]

_LOGGER = logging.getLogger(__name__)
_GIVE_UP_LAUNCH_S = 5.0  # for a token that a pipeline which could not be built has no use for
_LONGEST_REMARK = 2000  # what a seal keeps of it
_WHERE = re.compile(r"the record at byte (?P<byte>\d+) of (?P<path>abfss://.*?) (?:cannot be decoded|is longer than)")
_ISSUED = {"token_acquired": "token", "key_acquired": "delegation key"}
_ENDED_WELL = (PipelineState.DONE, PipelineState.UPDATED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobReport:
    """How a job ended. Printed, it is a summary for people.

    Attributes:
        job: Its id.
        outcome: `ok`, `failed` or `interrupted`.
        error: What it failed with, as the seal has it: a type, and a message where that holds nothing of the data.
        audit: Where the trail is, canonical.
        seal: The seal that closes it. Keep its digest somewhere that the job cannot write to.
        records: Audit records by kind, in all segments.
        sources: Credential source, such as `federated:gcp`, to how many of the job's tokens it gave.
        metrics: Beam's committed counters of the namespace `beam_entra`, by name; empty where the runner has none.
        wall_s: Seconds from launch to end, sealing left out.
        caution: What was wider in this job than in others; empty when nothing was.
    """

    job: str
    outcome: str
    error: str | None
    audit: str
    seal: Seal
    records: Mapping[str, int]
    sources: Mapping[str, int]
    metrics: Mapping[str, int]
    wall_s: float
    caution: str = ""

    def as_dict(self) -> dict[str, Any]:
        """What `--job_report` writes."""
        return {
            "job": self.job,
            "outcome": self.outcome,
            "error": self.error,
            "audit": self.audit,
            "seal_digest": self.seal.digest,
            "records": dict(self.records),
            "sources": dict(self.sources),
            "metrics": dict(self.metrics),
            "wall_s": round(self.wall_s, 3),
            **({"caution": self.caution} if self.caution else {}),
        }

    def __str__(self) -> str:
        audited, counted = Counter(self.records), Counter(self.metrics)
        lines = [f"Job {self.job} ended after {self.wall_s:.1f} s: {self.outcome}"]
        if self.metrics:
            lines += [
                f"    read      {counted['records_read']:,} records, {counted['bytes_read'] / 1e6:,.1f} MB"
                + (f"; {counted['records_bad']:,} could not be decoded" if counted["records_bad"] else ""),
                f"    written   {counted['records_written']:,} records, {counted['bytes_staged'] / 1e6:,.1f} MB",
            ]
        issued = ", ".join(_how_many(audited[kind], what) for kind, what in _ISSUED.items())
        if self.sources:
            by = ", ".join(f"{source} ({_how_many(tokens, 'token')})" for source, tokens in self.sources.items())
            lines.append(f"    identity  {by}")
        lines += [
            f"    access    {issued}, {audited['sas_issued']:,} SAS; {_how_many(audited['denied'], 'denial')}",
            *([f"    caution   {self.caution}"] if self.caution else []),
            f"    audit     {audited.total():,} records, sealed, in {self.audit}",
            f"    seal      {self.seal.digest}",
        ]
        return "\n".join(lines)


class ScopedPipeline(beam.Pipeline):  # type: ignore[misc]  # Beam's Pipeline is not fully typed
    """A `beam.Pipeline` that runs as the job of an access manifest. Use it with `with`:

        with ScopedPipeline(options=EntraOptions()) as p:
            p | ReadFromBlob(...) | ...

    1. When made, it loads the manifest and makes the job scope; nothing is sent.
    2. While it is built, each source and sink is held against the grants. Meanwhile it gets the job's token and begins
       its audit trail.
    3. At the end of the block, only if the job has got a token and its audit could be written, it runs. With
       `--preflight` all the checks of `beam-entra doctor` come first, and the token after them. Where standard error is
       a terminal, a line on it says meanwhile how the job stands; not with `--no_progress`.
    4. While the job runs, it seals now and then what there is of the audit trail: `[audit] seal_every`.
    5. When the job has ended, however it ended, it seals the trail for good. `report` then says how it went.

    A worker's error is raised as the error it was, where the runner carries its text.

    Args:
        runner: As for `beam.Pipeline`.
        options: Pipeline options; `EntraOptions` or any others parsed from a command line with its flags.
        argv: Flags, in place of options.
        access_manifest: In place of the flag `--access_manifest`.

    Raises:
        ConfigError: The manifest does not hold together, or the runner is known to lose data.
    """

    def __init__(
        self,
        runner: Any = None,
        options: PipelineOptions | None = None,
        argv: Sequence[str] | None = None,
        *,
        access_manifest: AccessManifest | None = None,
    ) -> None:
        chosen = options if options is not None else EntraOptions(list(argv or []))
        entra = chosen.view_as(EntraOptions)
        _check_runner(runner or chosen.view_as(StandardOptions).runner)
        manifest = access_manifest or entra.load_manifest()
        self.scope = JobScope.launch(manifest, now=utc_now())
        self.report: JobReport | None = None
        self.result: Any = None
        self._report_file = _writable(entra.job_report)
        self._preflight = bool(entra.preflight)
        self._started = time.monotonic()
        self._launch_recorded = False
        self._launch: Future[None] | None = None
        self._refused_launch: BeamEntraError | None = None
        self._interim_seals: PeriodicSeals | None = None
        self._job: LaunchedJob | None = None  # once the runner may have it
        super().__init__(runner=runner, options=chosen)
        own = self.options  # a copy: the caller's may serve another job
        own.view_as(EntraOptions).entra_job_scope = self.scope.to_json()
        setup = own.view_as(SetupOptions)
        setup.beam_plugins = [*dict.fromkeys([*(setup.beam_plugins or ()), BEAM_PLUGIN])]
        self._own_workers = chosen.view_as(DirectOptions).direct_running_mode == "multi_processing"
        self._wait = not chosen.view_as(StandardOptions).no_wait_until_finish
        self._shows_progress = self._wait and not entra.no_progress

    @property
    def session(self) -> Session:
        """The launcher's own session."""
        return open_session(self.scope)

    def run(self, test_runner_api: Any = "AUTO") -> PipelineResult:
        """Run the job. The `with` statement does this, waits and seals; whoever calls it alone calls `seal` at the end.

        Raises:
            ConfigError: The job has ended.
            IdentityError: The job gets no token. Nothing has run.
            PreflightFailed: With `--preflight`: a check failed. Nothing has run.
            AuditUnavailable: Its audit cannot be written. Nothing has run.
        """
        if has_ended(self.scope.job):  # a record behind the seal would break the trail
            raise ConfigError(
                f"job {self.scope.job} has ended, and its audit with it",
                Diagnosis(hint="a pipeline runs once: make another ScopedPipeline for another job"),
            )
        if self._preflight:
            check_before_launch(self.scope.manifest)
        if self.scope.caution:
            _LOGGER.warning("job %s: %s", self.scope.job, self.scope.caution)
        launch = self._launch or self._begin_launch()
        try:
            launch.result()
        except (IdentityError, ConfigError) as refused:
            self._refused_launch = refused
            raise
        finally:
            self._give_up_launch(launch)  # if this thread was interrupted
        self._interim_seals = PeriodicSeals(lambda: self.session, every=self.scope.manifest.trail.seal_every)
        sample_often()  # if the job's worker is in this process
        self._job = LaunchedJob(self.runner, self._options)
        with self._job.handing_over():
            return self._hand_over(test_runner_api)

    def _hand_over(self, test_runner_api: Any) -> PipelineResult:
        if not self._own_workers:
            return super().run(test_runner_api)
        from beam_entra.launch.direct import lost_worker  # noqa: PLC0415  # other runners need nothing of it

        try:
            return super().run(test_runner_api)
        except Exception as failure:
            lost = lost_worker(self.scope.job)
            if lost is None or find_interrupt(failure) is not None:
                raise
            raise lost from failure

    def __enter__(self) -> ScopedPipeline:
        if not self._preflight:
            self._launch = self._begin_launch()
        return super().__enter__()  # type: ignore[no-any-return]  # Beam's is untyped

    def _begin_launch(self) -> Future[None]:
        """Prove, in the background, that the job gets a token and can write its audit."""
        launch: Future[None] = Future()
        session = self.session
        session.ends_before_seal = self._wait
        threading.Thread(target=self._prove, args=(session, launch), name="beam-entra-launch", daemon=True).start()
        return launch

    def _prove(self, session: Session, launch: Future[None]) -> None:
        try:
            with session.bundle("launch"):
                pass
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self._launch_recorded = session.started
            launch.set_exception(error)
        else:
            self._launch_recorded = session.started
            launch.set_result(None)

    def _give_up_launch(self, launch: Future[None], patience_s: float = 0) -> None:
        """Wait until it has ended, without its pauses; a request under way ends by its own time limit."""
        if wait([launch], patience_s).not_done:
            self.session.interrupt()
            wait([launch])  # nothing is recorded behind the seal

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failure = error
        try:
            try:
                if self._launch is not None and error is not None:
                    self._give_up_launch(self._launch, _GIVE_UP_LAUNCH_S)
            finally:
                with self._progress() if error is None else nullcontext():
                    super().__exit__(kind, error, trace)
            if failure is None and self._wait:
                failure = _failed_state(self.result)
        except BaseException as raised:  # noqa: BLE001 - raised below, after the trail is sealed
            failure = raised
        told = _as_ours(failure)
        if not self._wait and told is None:
            _LOGGER.warning("the job runs on; its audit trail is not sealed: call seal() when it has ended")
            return
        self._end(told)
        if told is not None and told is not error:
            raise told from (None if told is failure else failure)

    def _progress(self) -> AbstractContextManager[None]:
        return shown_progress(self.scope, lambda: self.result) if self._shows_progress else nullcontext()

    def seal(self, outcome: str = "ok", error: str | None = None) -> JobReport:
        """Seal the audit trail of a job that has ended, and close the launcher's session.

        Args:
            error: What it failed with. It stays in the trail for good, so it should hold nothing of the data; one that
                looks like it holds a secret is cut to what stands before the first colon, or left out.

        Raises:
            TrailBroken: The trail does not verify.
            AuditUnavailable: It cannot be read, or the seal not be written.
        """
        wall_s = time.monotonic() - self._started
        error = None if error is None else _sealable(error)
        known = self._end_interim_seals()
        session = self.session
        try:
            sealed = seal_job(session, outcome=outcome, error=error, known=known)
        finally:
            with suppress(AuditUnavailable):
                session.close()
            with suppress(AuditUnavailable):
                close_session(self.scope.job)
        self.report = JobReport(
            job=self.scope.job,
            outcome=outcome,
            error=error,
            audit=str(self.scope.folder),
            seal=sealed,
            records=sealed.record.counts,
            sources=sealed.sources,
            metrics=_metrics(self.result),
            wall_s=wall_s,
            caution=self.scope.caution,
        )
        if self._report_file is not None:
            self._report_file.write_text(json.dumps(self.report.as_dict(), indent=2) + "\n", encoding="utf-8")
        return self.report

    def _end_interim_seals(self) -> Interims | None:
        return None if self._interim_seals is None else self._interim_seals.stop()

    def _end(self, failure: BaseException | None) -> None:
        left = self._stop_job(failure)  # first of all: an interim seal may take its time
        self._end_interim_seals()
        if failure is None:
            self.seal()
            return
        if not self._any_record or failure is self._refused_launch:
            if self._any_record:
                failure.add_note(f"the audit trail {self.scope.folder} is not sealed")
            with suppress(AuditUnavailable):
                close_session(self.scope.job)
            return
        if left:
            failure.add_note(
                f"{left}; the audit trail {self.scope.folder} is not sealed: when no worker of the job is left,"
                " `beam-entra audit seal` does it"
            )
            with suppress(AuditUnavailable):
                close_session(self.scope.job)
            return
        interrupted = isinstance(failure, (KeyboardInterrupt, SystemExit))
        try:
            report = self.seal("interrupted" if interrupted else "failed", _remark(failure))
            failure.add_note(f"{'audit:':<9} {report.audit}, sealed, digest {report.seal.digest}")
        except Exception as unsealed:  # noqa: BLE001 - the job's own error is the one to raise
            why = unsealed.message if isinstance(unsealed, BeamEntraError) else type(unsealed).__name__
            failure.add_note(f"and the audit trail {self.scope.folder} could not be sealed: {why}")

    def _stop_job(self, failure: BaseException | None) -> str:
        """Where workers may still be at work though the launcher ends, what is known of it; else empty."""
        if self._job is None or failure is None or not leaves_job(failure):
            return ""
        try:
            left = self._job.stop(self.result, failure)
        except (KeyboardInterrupt, SystemExit):
            return "it was not waited for the job's end: there was another interrupt"
        except Exception as unstopped:  # noqa: BLE001 - why the launcher ends is the error to raise
            return f"the job could not be stopped ({type(unstopped).__name__})"
        if self._own_workers and not left:
            from beam_entra.launch.direct import workers_at_work  # noqa: PLC0415  # as above

            left = f"{workers} worker processes have not ended" if (workers := workers_at_work(self.scope.job)) else ""
        return left

    @property
    def _any_record(self) -> bool:
        """Whether the launcher recorded anything; its session is another one once a trail could not be written."""
        return self._launch_recorded or self.session.started


def _check_runner(runner: Any) -> None:
    name = runner if isinstance(runner, str) else type(runner).__name__
    if name.rpartition(".")[2].lower() in {"dask", "daskrunner"}:
        raise ConfigError(
            "the Dask runner leaves out a branch of a pipeline that has two sinks, and says nothing of it",
            Diagnosis(tried="launch the job", hint="run it on another: docs/runners.md has those that were tried"),
        )


def _how_many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _writable(report_file: str | None) -> Path | None:
    if not report_file:
        return None
    path = Path(report_file)
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(
            f"no report can be written to {path}", Diagnosis(hint="name a file in a folder that exists")
        )
    return path


def _failed_state(result: Any) -> BaseException | None:
    state = getattr(result, "state", None)
    if state is None or state in _ENDED_WELL:
        return None
    return RuntimeError(f"the runner reports the job as {state}")


def _as_ours(failure: BaseException | None) -> BaseException | None:
    """The error that a worker raised, or the Ctrl-C, found in what the runner made of it."""
    if failure is None or isinstance(failure, BeamEntraError) or not isinstance(failure, Exception):
        return failure
    return find_interrupt(failure) or find_ours(failure) or find_rendered_error(str(failure)) or failure


def _remark(failure: BaseException) -> str:
    """What the seal says of a failure: its type, and the message if it is ours, but no word of a decoder."""
    kind = type(failure).__name__
    if isinstance(failure, FormatError):  # its message may quote the record
        found = _WHERE.match(failure.message)
        return f"{kind}: byte {found['byte']} of {found['path']}" if found else kind
    if isinstance(failure, BeamEntraError):
        return f"{kind}: {failure.message.partition(chr(10))[0]}"
    return kind


def _sealable(remark: str) -> str:
    """The remark, or as much of it as may stand in an audit record: a seal never fails because of it."""
    text = remark.encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates are no text for a record
    for candidate in (text[:_LONGEST_REMARK], text.partition(":")[0][:_LONGEST_REMARK]):
        if not looks_like_secret(candidate):
            return candidate
    return "an error"


def _metrics(result: Any) -> dict[str, int]:
    if result is None:
        return {}
    try:
        counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(METRICS_NAMESPACE))["counters"]
    except Exception:  # noqa: BLE001 - a runner has none, or is gone; the seal stands
        return {}
    totals: dict[str, int] = {}
    for counter in counters:
        value = counter.committed if counter.committed is not None else counter.attempted
        totals[counter.key.metric.name] = totals.get(counter.key.metric.name, 0) + (value or 0)
    return totals
