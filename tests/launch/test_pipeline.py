"""`ScopedPipeline` and `command_line`: how jobs end, what is told of it, and when one does not begin."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import apache_beam as beam
import grpc
import pytest
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc
from apache_beam.runners.portability.portable_runner import PipelineResult
from apache_beam.runners.runner import PipelineRunner

from beam_entra import EntraOptions, JsonLines, ReadFromBlob, ScopedPipeline, WriteToBlob, command_line
from beam_entra.clock import utc_now
from beam_entra.errors import (
    AuditUnavailable,
    BeamEntraError,
    BlobNotFound,
    ConfigError,
    FormatError,
    IdentityExpired,
    IdentityRejected,
    IdentityUnavailable,
    NotGranted,
    TrailBroken,
)
from beam_entra.launch.command_line import TRACEBACK_VARIABLE
from beam_entra.launch.job_server import LaunchedJob
from beam_entra.session import JobScope, Session, adopt_session
from beam_entra.testing.storage_requests import matching


def copy_orders(lake: Any, p: Any) -> None:
    """Read everything, write it."""
    orders = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
    orders | WriteToBlob(lake.curated.url("out/"), JsonLines())


def touched(lake: Any) -> int:
    """Requests to the containers with data."""
    names = {lake.raw.name, lake.curated.name}
    return int(lake.cloud.proxy.count(lambda request: request.container in names))


# How a job ends


def test_a_job_that_ends_well_is_sealed_and_reported(lake: Any) -> None:
    """The report says where the trail is, what is in it, and what was counted."""
    lake.upload_json("in/a.jsonl", [{"id": 1}, {"id": 2}])
    pipeline = lake.pipeline()
    assert pipeline.report is None
    with pipeline as p:
        copy_orders(lake, p)
    report = pipeline.report
    assert (report.job, report.outcome) == (pipeline.scope.job, "ok")
    assert report.audit == lake.audit.url(f"audit/{report.job}/")
    summary = lake.trail(report.job).verify()
    assert (summary.seal_digest, dict(summary.counts)) == (report.seal.digest, dict(report.records))
    assert summary.open_bundles == 0
    assert report.records["committed"] == 3
    assert report.metrics["records_written"] == 2
    assert dict(report.sources) == {"federated_file": report.records["token_acquired"]}
    assert "    identity  federated_file (" in str(report)
    assert report.wall_s > 0


def test_a_job_that_has_ended_does_not_run_again(lake: Any) -> None:
    """What it did would come behind its seal; nothing is sent, and the trail verifies as before."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    with lake.pipeline() as p:
        copy_orders(lake, p)
    before = touched(lake)
    with pytest.raises(ConfigError, match="has ended") as caught:
        p.run()
    assert "another ScopedPipeline" in caught.value.hint
    assert touched(lake) == before
    lake.only_trail().verify()


class Elsewhere(PipelineRunner):  # type: ignore[misc]  # Beam's is untyped
    """Has given a job to a job server that answers no more; or Ctrl-C comes while its state is waited for."""

    def __init__(self, channel: grpc.Channel, *, interrupted: bool = True) -> None:
        self._stub = beam_job_api_pb2_grpc.JobServiceStub(channel)
        self._interrupted = interrupted

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        """The job's, whose states are asked for."""
        return PipelineResult(self._stub, "job", iter(()), self._states())

    def _states(self) -> Iterator[Any]:
        if self._interrupted:
            raise KeyboardInterrupt
        yield from self._stub.GetStateStream(beam_job_api_pb2.GetJobStateRequest(job_id="job"))


def interrupt(lake: Any, runner: Elsewhere, *flags: str) -> tuple[ScopedPipeline, str]:
    """A job of the runner's that Ctrl-C ends: the pipeline, and what was noted last."""
    pipeline = ScopedPipeline(runner, EntraOptions([*flags]), access_manifest=lake.manifest())
    with pytest.raises(KeyboardInterrupt) as caught, pipeline as p:
        p | beam.Create([1])
    return pipeline, caught.value.__notes__[-1]


def test_an_interrupted_job_whose_workers_end_with_its_launcher_is_sealed(lake: Any) -> None:
    """Also where the job server is gone already: there are no metrics then, and a seal."""
    channel = grpc.insecure_channel("127.0.0.1:1")
    channel.close()
    pipeline, noted = interrupt(lake, Elsewhere(channel), "--environment_type=LOOPBACK")
    assert "sealed, digest" in noted
    assert (pipeline.report.outcome, dict(pipeline.report.metrics)) == ("interrupted", {})
    assert lake.only_trail().verify().seal.outcome == "interrupted"


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "lost"])
def test_an_interrupted_job_that_may_run_on_is_not_sealed(lake: Any, closed: bool) -> None:
    """Its job server is elsewhere and does not answer: a worker's record behind a seal would break the trail."""
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        if closed:
            channel.close()
        _, noted = interrupt(lake, Elsewhere(channel))
    assert ("could not cancel the job (ValueError)" if closed else "UNAVAILABLE") in noted
    assert "`beam-entra audit seal`" in noted
    with pytest.raises(TrailBroken, match="not sealed"):
        lake.only_trail().verify()


@pytest.mark.parametrize(
    "refused", [NotImplementedError(), OSError("no such thing")], ids=lambda error: type(error).__name__
)
def test_a_runner_that_cannot_cancel_does_not_hide_the_interrupt(
    lake: Any, monkeypatch: pytest.MonkeyPatch, refused: Exception
) -> None:
    """Each has errors of its own for it; the trail is left open."""

    def refuse(_: object) -> None:
        raise refused

    monkeypatch.setattr(PipelineResult, "cancel", refuse)
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        _, noted = interrupt(lake, Elsewhere(channel))
    assert f"could not cancel the job ({type(refused).__name__})" in noted
    with pytest.raises(TrailBroken, match="not sealed"):
        lake.only_trail().verify()


def test_an_interrupt_before_the_runner_may_have_the_job_is_sealed(lake: Any) -> None:
    """There is nothing to cancel, whatever its workers would have been."""
    pipeline = ScopedPipeline(
        "PrismRunner", EntraOptions(["--environment_type=DOCKER"]), access_manifest=lake.manifest()
    )
    with pytest.raises(KeyboardInterrupt) as caught, pipeline:
        raise KeyboardInterrupt
    assert "sealed, digest" in caught.value.__notes__[-1]
    lake.only_trail().verify()


class OnItsWay(PipelineRunner):  # type: ignore[misc]  # likewise
    """Is interrupted while it hands the job over."""

    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        """It has been sent, perhaps."""
        raise KeyboardInterrupt


def test_an_interrupt_while_the_job_is_handed_over_leaves_its_trail_open(lake: Any) -> None:
    """Whether it runs is not known."""
    pipeline = ScopedPipeline(OnItsWay(), EntraOptions([]), access_manifest=lake.manifest())
    with pytest.raises(KeyboardInterrupt) as caught, pipeline as p:
        p | beam.Create([1])
    assert "the job was on its way to its runner; the audit trail" in caught.value.__notes__[-1]
    with pytest.raises(TrailBroken, match="not sealed"):
        lake.only_trail().verify()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (KeyboardInterrupt(), "there was another interrupt"),
        (SystemExit(), "there was another interrupt"),
        (MemoryError(), "could not be stopped (MemoryError)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_happens_while_a_job_is_stopped_its_trail_is_left_open_and_said_to_be(
    lake: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    """Why the launcher ends is the error to raise."""

    def stop(*_: Any) -> str:
        raise error

    monkeypatch.setattr(LaunchedJob, "stop", stop)
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        _, noted = interrupt(lake, Elsewhere(channel))
    assert says in noted
    assert "is not sealed" in noted


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_that_leaves_worker_processes_of_its_own_leaves_the_trail_open(
    lake: Any, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """The first interrupt waits for them, another does not."""
    monkeypatch.setattr(LaunchedJob, "stop", lambda *_: "")
    monkeypatch.setattr("beam_entra.launch.direct.workers_at_work", lambda job: workers)
    options = EntraOptions(["--direct_running_mode=multi_processing"])
    pipeline = ScopedPipeline(OnItsWay(), options, access_manifest=lake.manifest())
    with pytest.raises(KeyboardInterrupt) as caught, pipeline as p:
        p | beam.Create([1])
    assert ("2 worker processes have not ended" in caught.value.__notes__[-1]) is bool(workers)
    assert ("is not sealed" in caught.value.__notes__[-1]) is bool(workers)


def test_a_job_whose_job_server_is_lost_is_not_sealed(lake: Any) -> None:
    """The workers may go on without it, as Flink's do; the error is that of the connection."""
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        runner = Elsewhere(channel, interrupted=False)
        pipeline = ScopedPipeline(runner, EntraOptions([]), access_manifest=lake.manifest())
        with pytest.raises(grpc.RpcError) as caught, pipeline as p:
            p | beam.Create([1])
    assert "`beam-entra audit seal`" in caught.value.__notes__[-1]
    with pytest.raises(TrailBroken, match="not sealed"):
        lake.only_trail().verify()


def test_an_error_while_the_pipeline_is_built_is_on_record(lake: Any) -> None:
    """The error is the user's own, no data was touched, and the token that was on its way is accounted for."""
    with pytest.raises(ZeroDivisionError), lake.pipeline():
        raise ZeroDivisionError
    seal = lake.only_trail().verify().seal
    assert (seal.outcome, seal.error) == ("failed", "ZeroDivisionError")
    assert lake.only_trail().records("token_acquired")
    assert lake.only_trail().records("read") == []


def test_an_error_while_the_pipeline_is_built_does_not_wait_for_a_token(lake: Any) -> None:
    """The token endpoint throttles: the user's error is raised as soon as the pauses have been ended."""
    throttled = lake.cloud.tenant.throttle(100)
    started = time.monotonic()
    try:
        with pytest.raises(ZeroDivisionError), lake.pipeline():
            raise ZeroDivisionError
    finally:
        throttled.clear()
    assert time.monotonic() - started < 60
    assert lake.jobs() == []


def test_a_pipeline_that_is_never_entered_sends_nothing(lake: Any) -> None:
    """What makes a pipeline for its graph alone gets no token."""
    lake.cloud.tenant.clear()
    pipeline = lake.pipeline()
    pipeline | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
    assert lake.cloud.tenant.token_requests == 0
    assert lake.jobs() == []


def test_an_error_of_the_user_after_an_access_is_sealed_as_failed(lake: Any) -> None:
    """The error arrives as it is; the seal names its type and not its text, which might hold anything."""
    pipeline = lake.pipeline()
    with pytest.raises(ValueError, match="hush"), pipeline as p, p.session.bundle("look"):
        raise ValueError("hush")
    seal = lake.only_trail().verify().seal
    assert (seal.outcome, seal.error) == ("failed", "ValueError")


def test_an_error_of_the_users_in_a_worker_is_sealed_as_failed(lake: Any) -> None:
    """And arrives with its text."""
    lake.upload_json("in/a.jsonl", [{"id": 0}])

    def divide(order: dict[str, int]) -> float:
        return 1 / order["id"]

    with pytest.raises(Exception, match="division by zero"), lake.pipeline() as p:
        p | ReadFromBlob(lake.raw.url("in/*"), JsonLines()) | beam.Map(divide)
    assert lake.only_trail().verify().seal.outcome == "failed"


def test_an_error_of_ours_in_a_worker_arrives_as_what_it_was(lake: Any) -> None:
    """Type, message and fix, whatever the runner made of it on the way; the seal has the message."""
    with pytest.raises(BlobNotFound, match="no blob matches") as caught, lake.pipeline() as p:
        copy_orders(lake, p)
    assert "allow_empty" in str(caught.value)
    assert "no blob matches" in str(lake.only_trail().verify().seal.error)


def test_no_content_of_a_record_is_sealed(lake: Any) -> None:
    """A seal stays for good: of a record that cannot be decoded it has the place, and none of a decoder's words."""
    lake.raw.upload("in/a.jsonl", b'{"id": 1}\n{"id": "Erika Mustermann"}\n')

    def parse(value: Any) -> int:
        return int(value["id"])

    pipeline = lake.pipeline()
    with pytest.raises(FormatError, match="Erika Mustermann"), pipeline as p:
        p | ReadFromBlob(lake.raw.url("in/*"), JsonLines(parse))
    seal = lake.only_trail().verify().seal
    assert (seal.outcome, seal.error) == ("failed", f"FormatError: byte 10 of {lake.raw.url('in/a.jsonl')}")
    assert pipeline.report.error == seal.error


@pytest.mark.parametrize(
    ("failure", "sealed"),
    [
        (FormatError("a format of the user's: Erika Mustermann"), "FormatError"),
        (ValueError("a parser's: Erika Mustermann"), "ValueError"),
        (ConfigError("https://lake/a?sv=1&sig=abc is no path"), "ConfigError"),
        (ConfigError("a name with a \udc80"), "ConfigError: a name with a \\udc80"),
        (ConfigError("x" * 5000), f"ConfigError: {'x' * 1987}"),
        (type("sig=abc", (ValueError,), {})(), "an error"),
    ],
    ids=["a format's words", "a parser's words", "a signature", "no text", "long", "a name like a secret"],
)
def test_a_seal_never_fails_because_of_its_remark(lake: Any, failure: Exception, sealed: str) -> None:
    """What may not stand in a record is left out of it, and the trail is sealed."""
    with pytest.raises(type(failure)), lake.pipeline() as p, p.session.bundle("look"):
        raise failure
    seal = lake.only_trail().verify().seal
    assert (seal.outcome, seal.error) == ("failed", sealed)


@pytest.mark.parametrize("kind", [IdentityRejected, IdentityUnavailable, AuditUnavailable])
def test_an_identity_error_of_something_else_is_sealed(lake: Any, kind: type[BeamEntraError]) -> None:
    """A connector's trouble is not Storage's: the trail can be sealed, so it is."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])

    def ask(order: Any) -> Any:
        raise kind("some other service")

    with pytest.raises(kind, match="some other service"), lake.pipeline() as p:
        p | ReadFromBlob(lake.raw.url("in/*"), JsonLines()) | beam.Map(ask)
    seal = lake.only_trail().verify().seal
    assert seal.outcome == "failed"
    assert str(seal.error).startswith(f"{kind.__name__}: some other service")


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_job_is_sealed_as_interrupted(lake: Any, interrupt: type[BaseException]) -> None:
    """Ctrl-C and exits pass through, and are on record."""
    pipeline = lake.pipeline()
    with pytest.raises(interrupt), pipeline as p, p.session.bundle("look"):
        raise interrupt
    assert lake.only_trail().verify().seal.outcome == "interrupted"
    assert pipeline.report.outcome == "interrupted"


CLOCKS: dict[str, Any] = {}


def out_of_time(pipeline: ScopedPipeline, clock: Any) -> Callable[[Any], Any]:
    """A step at which the job's time runs out. Workers of this process have the clock in their session."""
    adopt_session(Session(pipeline.scope, clock=clock))
    scope = pipeline.scope
    CLOCKS[scope.job] = clock

    def step(element: Any) -> Any:
        end(scope)
        return element

    return step


def end(scope: JobScope) -> None:
    """Move the job's clock past its deadline. Found by name: a clock is not pickled."""
    now = CLOCKS[scope.job]
    if now() < scope.deadline:
        now.advance(timedelta(minutes=2, seconds=1))


def test_a_deadline_that_passes_ends_every_access_and_the_trail_is_sealed(lake: Any, beam_entra_clock: Any) -> None:
    """In the middle of the job its time is over: a clear error with the fix, nothing visible, and a seal."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    pipeline = lake.pipeline(manifest=lake.manifest(job="2m", sas="1m"))
    step = out_of_time(pipeline, beam_entra_clock)
    read, write = ReadFromBlob(lake.raw.url("in/*"), JsonLines()), WriteToBlob(lake.curated.url("out/"), JsonLines())
    with pytest.raises(IdentityExpired, match="time ended") as caught, pipeline as p:
        p | read | beam.Map(step) | write
    assert "give the job more time" in str(caught.value)
    assert lake.curated.list() == []
    seal = lake.only_trail().verify().seal
    assert seal.outcome == "failed"
    assert "time ended" in str(seal.error)


def test_a_deadline_that_passes_before_a_record_is_durable_is_sealed_too(lake: Any, beam_entra_clock: Any) -> None:
    """Then it is the audit that cannot be written any more; the launcher still can seal what there is."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    pipeline = lake.pipeline(manifest=lake.manifest(job="2m", sas="1m"))
    adopt_session(Session(pipeline.scope, clock=beam_entra_clock))
    held = lake.cloud.proxy.hold(answer=True, where=matching("ListBlobs", container=lake.raw.name), times=1)
    raised: list[BaseException] = []

    def run() -> None:
        try:
            with pipeline as p:
                copy_orders(lake, p)
        except BeamEntraError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    held.gate.wait_for_arrivals()
    beam_entra_clock.advance(timedelta(minutes=2, seconds=1))
    held.gate.open()
    thread.join()
    assert len(raised) == 1
    assert "time ended" in str(raised[0])
    assert "give the job more time" in str(raised[0])
    assert lake.curated.list() == []
    assert lake.only_trail().verify().seal.outcome == "failed"


def test_a_job_with_a_rolling_life(lake: Any) -> None:
    """It runs as any other does; that its identity is alive is in the trail."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    pipeline = lake.pipeline(manifest=lake.manifest(job="2h", rolling=True))
    with pipeline as p:
        copy_orders(lake, p)
    assert lake.only_trail().verify().counts["deadline_extended"] == 1
    assert pipeline.report.outcome == "ok"


def test_ctrl_c_does_not_wait_for_a_token(lake: Any) -> None:
    """The token endpoint throttles, and the launch waits for it: whoever interrupts it does not."""
    lake.cloud.tenant.clear()
    throttled = lake.cloud.tenant.throttle(100)
    endpoints = f"--access_endpoints={lake.cloud.endpoints_file}"
    flags = [f"--access_manifest={lake.write_manifest()}", endpoints, "--runner=DirectRunner"]
    launch = "from beam_entra import EntraOptions, ScopedPipeline\nwith ScopedPipeline(options=EntraOptions()): pass"
    running = subprocess.Popen(
        [sys.executable, "-c", launch, *flags], env=lake.environment(), stderr=subprocess.PIPE, text=True
    )
    try:
        lake.cloud.tenant.wait_for(lambda seen: any(each.kind == "token" for each in seen), timeout_s=40)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=50)
    finally:
        throttled.clear()
        running.kill()
    assert "KeyboardInterrupt" in said
    assert lake.jobs() == []


# When a job does not begin


def test_a_job_without_a_sound_identity_runs_nothing(lake: Any) -> None:
    """A client that Entra does not know: refused before any bundle, with Entra's code; no data was touched."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    unknown = lake.manifest(client="00000000-0000-4000-8000-000000000000")
    pipeline = lake.pipeline(manifest=unknown)
    with pytest.raises(IdentityRejected, match="AADSTS700016"), pipeline as p:
        copy_orders(lake, p)
    assert pipeline.result is None, "no runner was asked to run anything"
    assert touched(lake) == 0


def test_a_job_whose_rolling_life_tokens_outlive_runs_nothing(lake: Any) -> None:
    """It would end between two tokens, though its identity is alive; the launch says what to change."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    pipeline = lake.pipeline(manifest=lake.manifest(job="30m", rolling=True))
    with pytest.raises(ConfigError, match="a rolling life of 0:30:00 is shorter than that of") as caught, pipeline as p:
        copy_orders(lake, p)
    assert "could not be sealed" not in "".join(caught.value.__notes__), "nobody tried: there is nothing to seal"
    assert pipeline.result is None, "no runner was asked to run anything"
    assert touched(lake) == 0


def test_a_job_whose_audit_has_no_container_runs_nothing(lake: Any) -> None:
    """Audited or it did not happen: without a place for the trail there is no access."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    nowhere = f"abfss://nowhere@{lake.audit.account}.dfs.core.windows.net/audit/"
    pipeline = lake.pipeline(manifest=lake.manifest(audit=nowhere))
    with pytest.raises(AuditUnavailable) as caught, pipeline as p:
        copy_orders(lake, p)
    assert pipeline.result is None, "no runner was asked to run anything"
    assert "container" in str(caught.value)
    assert touched(lake) == 0


def test_a_job_without_a_role_to_issue_sas_runs_nothing(lake: Any) -> None:
    """The missing role is named."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    lake.cloud.proxy.without_role()
    with pytest.raises(AuditUnavailable, match="refused") as caught, lake.pipeline() as p:
        copy_orders(lake, p)
    assert "Storage Blob Delegator" in str(caught.value)
    assert touched(lake) == 0


def test_a_pipeline_without_a_manifest_is_refused() -> None:
    """With the flag that is missing."""
    with pytest.raises(ConfigError) as caught:
        ScopedPipeline(options=PipelineOptions(["--runner=DirectRunner"]))
    assert "--access_manifest" in caught.value.hint


def test_a_job_leaves_the_callers_options_as_they_were(lake: Any) -> None:
    """One that watches is a streaming job; the next one with the same options is none, and no part of it."""
    options = EntraOptions(["--runner=DirectRunner", "--prism_location=none", "--beam_plugins=some.other"])
    before = json.dumps(options.get_all_options(), default=str)
    lake.raw.upload("in/a", b"1\n")
    first = ScopedPipeline(options=options, access_manifest=lake.manifest())
    first | ReadFromBlob(lake.raw.url("in/*"), watch=10)
    assert first.options.view_as(StandardOptions).streaming
    first.seal()
    assert json.dumps(options.get_all_options(), default=str) == before
    with ScopedPipeline(options=options, access_manifest=lake.manifest()) as second:
        second | ReadFromBlob(lake.raw.url("in/*"))
    assert not second.options.view_as(StandardOptions).streaming
    assert second.scope.job != first.scope.job


@pytest.mark.parametrize("flags", [[], ["--no_wait_until_finish"]], ids=["waits", "does not"])
def test_a_launcher_that_waits_ends_its_session_before_it_seals(lake: Any, flags: list[str]) -> None:
    """So the ends of bundles in its process need not be waited for; whoever seals another trail may be anybody."""
    lake.raw.upload("in/a", b"1\n")
    with ScopedPipeline(options=EntraOptions(["--runner=FnApiRunner", *flags]), access_manifest=lake.manifest()) as p:
        p | ReadFromBlob(lake.raw.url("in/*"))
        session = p.session
    assert session.ends_before_seal is not bool(flags)
    if flags:
        p.seal()
    (opened, closed) = (lake.trail(p.scope.job).records(kind) for kind in ("bundle_opened", "bundle_closed"))
    assert len(opened) == len(closed) > 2


def test_a_view_of_the_options_is_made_once_and_shows_what_all_show() -> None:
    """Whoever sets an option; a copy has views of its own, and nothing that is pickled has any."""
    options = EntraOptions(["--no_progress", "--job_name=orders"])
    assert options.view_as(GoogleCloudOptions) is options.view_as(GoogleCloudOptions)
    assert options.view_as(GoogleCloudOptions).job_name == "orders"
    options.view_as(StandardOptions).streaming = True
    assert options.view_as(EntraOptions).no_progress
    for copied in (copy.deepcopy(options), pickle.loads(pickle.dumps(options))):  # noqa: S301 - our own
        assert copied.view_as(StandardOptions).streaming
        copied.view_as(StandardOptions).streaming = False
        copied.view_as(EntraOptions).no_progress = False
        assert not copied.get_all_options()["streaming"]
        assert not copied.no_progress
    assert options.view_as(StandardOptions).streaming
    assert options.no_progress
    assert "StandardOptions" not in repr(pickle.dumps(options))


def test_flags_say_manifest_and_endpoints(lake: Any) -> None:
    """As on a command line; the job scope that workers need is in the options, and holds no secret."""
    argv = [f"--access_manifest={lake.write_manifest()}", f"--access_endpoints={lake.cloud.endpoints_file}"]
    pipeline = ScopedPipeline(argv=argv)
    assert pipeline.scope.manifest.accounts[lake.raw.account].endpoint == lake.cloud.endpoint(lake.raw.account)
    assert pipeline.options.view_as(EntraOptions).job_scope() == pipeline.scope
    assert JobScope.from_json(pipeline.scope.to_json()) == pipeline.scope
    assert pipeline.scope.deadline - utc_now() <= timedelta(hours=1)


# The command line


def command(lake: Any, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines under `command_line` in a process of their own."""
    lines = [
        "import logging, sys, os, signal",
        "from beam_entra import command_line",
        "from beam_entra.errors import *",
        "with command_line():",
        textwrap.indent(textwrap.dedent(body), "    "),
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=lake.environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


RAISE = 'raise NotGranted("no grant covers it", Diagnosis(tried="read a", hint="add a line"))'


def test_one_error_is_printed_and_no_traceback(lake: Any) -> None:
    """Type, cause and fix on standard error, exit code 1."""
    ended = command(lake, RAISE)
    assert ended.returncode == 1
    assert ended.stdout == ""
    errors = [line for line in ended.stderr.splitlines() if "apitools" not in line]
    assert errors[0] == "NotGranted: no grant covers it"
    assert any("add a line" in line for line in errors)
    assert "Traceback" not in ended.stderr


def test_the_traceback_is_there_for_who_asks(lake: Any) -> None:
    """`BEAM_ENTRA_TRACEBACK=1`, which the error names."""
    assert f"{TRACEBACK_VARIABLE}=1" in command(lake, RAISE).stderr
    ended = command(lake, RAISE, **{TRACEBACK_VARIABLE: "1"})
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_ctrl_c_ends_with_130(lake: Any) -> None:
    """As shells expect, in one word."""
    ended = command(lake, "signal.raise_signal(signal.SIGINT)")
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert "interrupted" in ended.stderr


@pytest.mark.parametrize("environment", [{}, {TRACEBACK_VARIABLE: "1"}], ids=["", "with tracebacks"])
def test_sigterm_is_an_interruption_and_ends_with_143(lake: Any, environment: dict[str, str]) -> None:
    """What is being done is ended in order, and the exit code says why."""
    body = """
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            print("in order")
    """
    ended = command(lake, body, **environment)
    assert (ended.returncode, ended.stdout) == (143, "in order\n")
    assert ("Traceback" in ended.stderr) is bool(environment)
    assert ("terminated" in ended.stderr.splitlines()) is not bool(environment)


def test_sigterm_is_given_back_afterwards_and_left_to_who_handles_it() -> None:
    """Only the main thread takes it, only where nobody else does, and for as long as the block lasts."""
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def launch() -> None:
        with command_line():
            seen.append(signal.getsignal(signal.SIGTERM))

    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        launch()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert seen.pop() is not signal.SIG_DFL
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
        assert seen.pop() is signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        launch()
        assert seen.pop() is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_errors_of_others_keep_their_traceback(lake: Any) -> None:
    """What is no error of ours is a defect to look into."""
    ended = command(lake, "1 / 0")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr
    assert "ZeroDivisionError" in ended.stderr


def test_notes_of_an_error_are_printed(lake: Any) -> None:
    """Such as that the trail could not be sealed."""
    ended = command(lake, 'e = AuditUnavailable("gone")\ne.add_note("the trail is not sealed")\nraise e')
    assert "the trail is not sealed" in ended.stderr


def test_what_a_runner_logs_of_our_error_is_held_back_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Only records with one of our errors, as an exception or in a rendered traceback."""
    logger = logging.getLogger("some.runner")
    shown: list[str] = []

    class Show(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(record.getMessage())

    handler = Show()
    logging.getLogger().addHandler(handler)
    try:
        with command_line():
            try:
                raise NotGranted("no")
            except NotGranted:
                logger.exception("a bundle failed")
            logger.error("worker: Traceback\n  ...\nbeam_entra.errors.NotGranted: no\n    fix:      add")
            try:
                raise ZeroDivisionError
            except ZeroDivisionError:
                logger.exception("a bundle failed otherwise")
            logger.warning("beware")
        logger.error("beam_entra.errors.NotGranted: afterwards")
    finally:
        logging.getLogger().removeHandler(handler)
    assert shown == ["a bundle failed otherwise", "beware", "beam_entra.errors.NotGranted: afterwards"]


def test_a_job_refused_by_the_manifest_prints_one_error(lake: Any) -> None:
    """The whole way: flags, manifest, refusal, record, one error with the line to add."""
    launched = lake.launch("--input", lake.raw.url("secret/*"), "--output", lake.curated.url("out/"))
    _, errors = launched.communicate(timeout=60)
    assert launched.returncode == 1
    assert errors.count("NotGranted: ") == 1
    assert "Traceback" not in errors
    assert f'the line "{lake.raw.url("secret/")}"' in errors
    assert lake.only_trail().verify().seal.outcome == "failed"




@pytest.mark.parametrize("runner", ["DaskRunner", "dask", "apache_beam.runners.dask.dask_runner.DaskRunner"])
def test_dask_is_refused_with_the_reason(lake: Any, runner: str) -> None:
    """It would lose a sink, silently."""
    with pytest.raises(ConfigError, match="leaves out a branch"):
        lake.pipeline(f"--runner={runner}")
    assert lake.jobs() == []
