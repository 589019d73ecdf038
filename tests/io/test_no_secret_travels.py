"""Promise 1, end to end: what was really issued in a run stands in nothing that travels, is logged, shown or kept.

Tokens, assertions, signatures and delegation keys are taken from the services that issued and saw them.
"""

from __future__ import annotations

import base64
import bz2
import logging
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.transforms.display import DisplayData

from beam_entra import BadRecord, JsonLines, ReadFromBlob, Scoped, ScopedDoFn, WriteToBlob
from beam_entra.errors import BeamEntraError
from beam_entra.launch.command_line import TRACEBACK_VARIABLE
from beam_entra.paths import BlobPath
from beam_entra.session import Session, adopt_session
from beam_entra.storage import DelegationKey
from beam_entra.testing.storage_requests import matching
from beam_entra.testing.tenant import GRAPH


class Watched(Session):
    """A session that keeps the delegation keys that it got, to search for them."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.got: list[str] = []

    def key(self, account: str) -> DelegationKey:
        """As ever."""
        key = super().key(account)
        self.got.append(key.value.reveal())
        return key


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """Every record of every logger at DEBUG, with tracebacks, as text; what the handlers of a careless job show."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))
            lines.append(repr(record.args) + repr(record.msg))

    handler = Keep(logging.NOTSET)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s"))
    root = logging.getLogger()
    level = root.level
    changed = {}
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        if logger.level:
            changed[logger], logger.level = logger.level, logging.DEBUG
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.Logger.manager._clear_cache()  # type: ignore[attr-defined]  # levels were set past `setLevel`
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        for logger, before in changed.items():
            logger.setLevel(before)


def unpacked(proto: bytes) -> bytes:
    """A pipeline's proto, with the pickles in it, which Beam packs."""
    packed = re.findall(rb"QlpoO[A-Za-z0-9+/]+=*", proto)
    assert packed, "Beam packs pickles in another way now: mend this test"
    return proto + b"".join(bz2.decompress(base64.b64decode(part)) for part in packed)


def rendered(error: BaseException) -> str:
    """All that can be seen of an error."""
    shown = [repr(error), str(error), *traceback.format_exception(error), *getattr(error, "__notes__", ())]
    if isinstance(error, BeamEntraError):
        shown += [repr(error.diagnostics()), pickle.dumps(error).decode("latin-1")]
    return "\n".join(shown)


class AskGraph(ScopedDoFn):
    """Uses a token for another service, and says so in the log, carelessly."""

    audience = GRAPH

    def process(self, element: Any) -> Iterator[Any]:
        """Log what is at hand."""
        logging.getLogger("careless").debug("token %s of %r in %s", self.token(), self.bundle(), vars(self))
        yield element


Fault = Callable[[Any], object]
FAILURES: dict[str, Fault | None] = {
    "a run that ends well": None,
    "storage refuses a read": lambda lake: lake.cloud.proxy.respond(
        403, "AuthorizationPermissionMismatch", where=matching("GetBlob", container=lake.raw.name)
    ),
    "storage refuses a write": lambda lake: lake.cloud.proxy.respond(
        403, "AuthenticationFailed", where=matching("PutBlock", container=lake.curated.name)
    ),
    "connections break for a while": lambda lake: lake.cloud.proxy.reset(
        where=lambda request: request.container in {lake.raw.name, lake.curated.name}, times=3
    ),
    "the delegation key is refused": lambda lake: lake.cloud.proxy.without_role(),
    "the tenant answers garbage": lambda lake: lake.cloud.tenant.garbage(times=2),
    "the tenant refuses": lambda lake: lake.cloud.tenant.fail(401),
}


RUNS = [pytest.param("sas", fault, id=name) for name, fault in FAILURES.items()] + [
    pytest.param("bearer", fault, id=f"scoped by bearer, {name}")
    for name, fault in FAILURES.items()
    if name != "the delegation key is refused"
]


@pytest.mark.parametrize(("scoping", "fault"), RUNS)
def test_nothing_that_was_issued_is_found_anywhere(
    lake: Any, scoping: str, fault: Fault | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Proto, options, display data, pickles, logs at DEBUG, streams, trail, report and errors of a whole run."""
    lake.raw.upload("in/a.jsonl", b'{"id":1}\n{oops\n{"id":2}\n')
    pipeline = lake.pipeline(manifest=lake.manifest(token=[GRAPH], scoping=scoping))
    session = Watched(pipeline.scope)
    adopt_session(session)
    if fault is not None:
        fault(lake)
    errors: list[BaseException] = []
    with everything_logged() as logged:
        try:
            with pipeline as p:
                read = p | ReadFromBlob(lake.raw.url("in/*.jsonl"), JsonLines()).with_exception_handling()
                read[0] | Scoped(AskGraph()) | "Good" >> WriteToBlob(lake.curated.url("out/good/"), JsonLines())
                read[1] | beam.Map(BadRecord.as_dict) | "Bad" >> WriteToBlob(lake.curated.url("out/bad/"), JsonLines())
        except Exception as error:  # noqa: BLE001  # whatever comes out is looked at
            errors.append(error)
    streams = capfd.readouterr()
    shown = {
        "proto": unpacked(pipeline.to_runner_api().SerializeToString()),
        "options": repr(pipeline.options.get_all_options()) + repr(pipeline.options.display_data()),
        "display data": repr([vars(item) for item in DisplayData.create_from(pipeline.options).items]),
        "scope": pipeline.scope.to_json().encode() + pickle.dumps(pipeline.scope),
        "report": repr(pipeline.report),
        "logs": "\n".join(logged),
        "streams": streams.out + streams.err,
        "errors": "\n".join(map(rendered, errors)),
        "trail": b"".join(lake.audit.download(name) for name in lake.audit.list()),
        "output": b"".join(lake.curated.download(name) for name in lake.curated.list()),
    }
    leaks = {where: lake.cloud.find_leaks(text) for where, text in shown.items()}
    assert not any(leaks.values()), leaks
    for key in session.got:
        for where, text in shown.items():
            assert key not in (text if isinstance(text, str) else text.decode("latin-1")), where
    if fault is None:
        assert bool(session.got) is (scoping == "sas")
        assert not errors
        careless = [line for line in logged if line.startswith("careless")]
        assert careless, "the run logs at DEBUG"
        assert any(line.startswith("urllib3") for line in logged), "and so do the libraries below"
        signatures = lake.cloud.find_leaks("&".join(e.request.query for e in lake.cloud.proxy.requests))
        assert signatures == (["SAS signature"] if scoping == "sas" else [])
        assert lake.cloud.find_leaks(lake.cloud.tenant.issued[0].token.reveal()) == ["access token"]


def test_a_dofn_in_the_middle_of_a_bundle_holds_secrets_and_sends_none(lake: Any) -> None:
    """The live token, SAS and session stay where they are when Beam pickles the DoFn."""
    pipeline = lake.pipeline()

    class Use(ScopedDoFn):
        pass

    fn = Use().scoped(pipeline.scope, "Use")
    fn.start_bundle()
    lake.raw.upload("in/a", b"x")
    fn.bundle().properties(BlobPath.parse(lake.raw.url("in/a")))
    packed = bz2.decompress(base64.b64decode(pickler.dumps(fn)))
    assert lake.cloud.find_leaks(packed) == []
    assert b"orders" in packed, "the scope is in there"
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(fn.session())
    fn.finish_bundle()
    pipeline.seal()


def test_workers_in_other_processes_leak_nothing_either(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options, environment, DEBUG logs and tracebacks of worker processes, in a job that fails in one of them."""
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    lake.upload_json("in/a.jsonl", [{"id": 1}, {"id": 2}])
    flags = (
        "--runner=DirectRunner",
        "--prism_location=/nonexistent",
        "--direct_running_mode=multi_processing",
        "--direct_num_workers=2",
        "--default_sdk_harness_log_level=DEBUG",
    )
    where = "--input", lake.raw.url("in/*.jsonl"), "--output", lake.curated.url("out/")
    launched = lake.launch(*where, "--look_at", lake.raw.url("secret/*"), flags=flags)
    printed, logged = launched.communicate(timeout=60)
    assert launched.returncode == 1
    assert "DEBUG:urllib3" in logged, "workers log at DEBUG"
    assert "\nTraceback (most recent call last)" in logged, "nothing is held back"
    assert "\nbeam_entra.errors.NotGranted: " in logged
    trail = b"".join(lake.audit.download(name) for name in lake.audit.list())
    assert lake.cloud.find_leaks(printed + logged) == []
    assert lake.cloud.find_leaks(trail) == []
