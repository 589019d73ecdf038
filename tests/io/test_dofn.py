"""`ScopedDoFn`: a connector for any service that Entra protects, with tokens, refusals, audit and metrics."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import jwt
import pytest
from apache_beam.testing.util import assert_that, equal_to

from beam_entra import Scoped, ScopedDoFn, scope_of
from beam_entra.clock import utc_now
from beam_entra.errors import BeamEntraError, ConfigError, IdentityRejected, NotGranted
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, close_session, open_session
from beam_entra.storage.transport import connection_pool
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from beam_entra.testing.local import LocalCloud
from beam_entra.testing.tenant import GRAPH


class NameService:
    """A small protected service: gives the name of an id to who shows a token for it, and nobody else.

    It checks tokens as a service does: signature by the tenant's published keys, audience, issuer, time.
    """

    audience = GRAPH

    def __init__(self, cloud: LocalCloud) -> None:
        self._keys = f"{cloud.authority}/{cloud.tenant_id}/discovery/v2.0/keys"
        self._issuer = f"https://sts.windows.net/{cloud.tenant_id}/"
        certificates = RunCertificates(
            ca_file=cloud.ca_file, server_file=cloud.folder / "server.pem", key_file=cloud.folder / "server.key"
        )
        self._ca_file = str(cloud.ca_file)
        self.seen: list[str] = []
        self.server = HttpsServer(certificates.server_context(), ServiceHandler, self, name="names").start()

    @property
    def url(self) -> str:
        """Where it is."""
        return self.server.url

    def answer(self, request: Request) -> Answer:
        """401 without a sound token; else the name."""
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            keys = connection_pool(self._ca_file).request("GET", self._keys).json()
            found = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(token, found, algorithms=["RS256"], audience=self.audience, issuer=self._issuer)
        except (jwt.PyJWTError, KeyError) as error:
            self.seen.append(type(error).__name__)
            return Answer(status=401)
        self.seen.append(claims["appid"])
        return Answer(body=f"name of {request.path.removeprefix('/')}".encode())


@pytest.fixture
def names(lake: Any) -> Iterator[NameService]:
    """The service, up for a test."""
    service = NameService(lake.cloud)
    yield service
    service.server.close()


class LookUp(ScopedDoFn):
    """A connector as a user writes one."""

    audience = GRAPH

    def __init__(self, url: str, ca_file: str) -> None:
        self._url, self._ca_file = url, ca_file

    def process(self, number: int) -> Iterator[str]:
        """Ask for the name of a number."""
        pool = connection_pool(self._ca_file)
        header = {"Authorization": f"Bearer {self.token().secret.reveal()}"}
        yield pool.request("GET", f"{self._url}/{number}", headers=header).data.decode()


def test_a_connector_acts_with_the_jobs_own_token(lake: Any, names: NameService) -> None:
    """One token for its audience, whatever the elements and bundles; audited, and counted."""
    pipeline = lake.pipeline(manifest=lake.manifest(token=[GRAPH]))
    with pipeline as p:
        numbers = p | beam.Create(range(20)) | beam.Reshuffle()
        found = numbers | "Names" >> Scoped(LookUp(names.url, str(lake.cloud.ca_file)))
        assert_that(found, equal_to([f"name of {number}" for number in range(20)]))
    assert names.seen == [lake.cloud.client_id] * 20
    trail = lake.trail(pipeline.report.job)
    assert trail.verify().open_bundles == 0
    (acquired,) = [record for record in trail.records("token_acquired") if record["audience"] == GRAPH]
    (issued,) = [token for token in lake.cloud.tenant.issued if token.audience == GRAPH]
    assert acquired["uti"] == issued.claims["uti"]
    bundles = [record for record in trail.records("bundle_opened") if record["step"] == "Names"]
    assert bundles
    assert {record["token"] for record in bundles} == {acquired["token"]}
    assert pipeline.report.metrics["tokens_acquired"] == 2


def test_an_audience_that_is_not_granted_is_refused_on_the_worker(lake: Any, names: NameService) -> None:
    """Neither Entra nor the service hears of it; the record does; the error has the line to add."""
    pipeline = lake.pipeline()
    with pytest.raises(NotGranted, match="no grant lets orders have a token for") as caught, pipeline as p:
        p | beam.Create([1]) | Scoped(LookUp(names.url, str(lake.cloud.ca_file)))
    assert f'add "{GRAPH}" to token' in str(caught.value)
    assert names.seen == []
    assert {token.audience for token in lake.cloud.tenant.issued} == {"https://storage.azure.com"}
    (denied,) = lake.only_trail().records("denied")
    assert (denied["path"], denied["permission"], denied["by"]) == (GRAPH, "token", "manifest")
    assert lake.only_trail().verify().seal.outcome == "failed"


def test_an_audience_that_the_tenant_does_not_know_is_entras_refusal(lake: Any) -> None:
    """It is granted, so Entra is asked; its code and the refusal are on record."""
    other = "https://unknown.contoso.com"

    class Ask(ScopedDoFn):
        audience = other

        def process(self, element: int) -> Iterator[str]:
            self.token()
            yield "never"

    with pytest.raises(IdentityRejected, match="AADSTS500011"), lake.pipeline(
        manifest=lake.manifest(token=[other])
    ) as p:
        p | beam.Create([1]) | Scoped(Ask())
    (denied,) = lake.only_trail().records("denied")
    assert (denied["path"], denied["permission"], denied["by"]) == (other, "token", "entra")


# The life of a DoFn, by hand


class Read(ScopedDoFn):
    """Uses its bundle session for each element."""

    def process(self, blob: Any) -> Iterator[bytes]:
        """Read it all."""
        yield bytes(self.bundle().read(blob, 0, blob.size_bytes))


@pytest.fixture
def scope(lake: Any) -> Iterator[JobScope]:
    """A launched job; its session in this process is closed at the end."""
    made = JobScope.launch(lake.manifest(token=[GRAPH]), now=utc_now())
    yield made
    close_session(made.job)


def outcomes(lake: Any, scope: JobScope) -> list[str]:
    """How the bundles so far ended."""
    return [record["outcome"] for record in lake.trail(scope.job).records("bundle_closed")]


def test_a_bundle_that_the_runner_gave_up_is_recorded_as_abandoned(lake: Any, scope: JobScope) -> None:
    """When the next one begins, or the DoFn ends; one that finishes is recorded as well ended."""
    fn = Read().scoped(scope, "Read")
    fn.setup()
    for ended in ("given up", "finished", "given up"):
        fn.start_bundle()
        fn.bundle()
        if ended == "finished":
            fn.finish_bundle()
    fn.teardown()
    assert outcomes(lake, scope) == ["abandoned", "ok", "abandoned"]


def test_a_bundle_that_comes_after_the_jobs_end_is_refused(lake: Any, scope: JobScope) -> None:
    """A runner may go on with a job that was cancelled and sealed: what it read then would come behind the seal."""
    fn = Read().scoped(scope, "Read")
    fn.setup()
    fn.start_bundle()
    fn.bundle()
    fn.finish_bundle()
    close_session(scope.job)
    before = lake.audit.list()
    for late in (fn, Read().scoped(scope, "Read")):
        late.start_bundle()
        with pytest.raises(BeamEntraError, match=r"has ended|is closed"):
            late.bundle()
    assert lake.audit.list() == before


def test_a_bundle_that_needs_no_access_leaves_no_record(lake: Any, scope: JobScope) -> None:
    """No token is asked for, and no segment made, for work that touches nothing."""
    fn = Read().scoped(scope, "Read")
    fn.setup()
    for _ in range(3):
        fn.start_bundle()
        fn.finish_bundle()
    fn.teardown()
    assert lake.jobs() == []
    assert lake.cloud.tenant.token_requests == 0


def test_a_dofn_travels_without_what_is_alive(scope: JobScope) -> None:
    """Session and bundle stay behind; scope and step go along; the copy opens its own bundle."""
    fn = Read().scoped(scope, "Read")
    fn.start_bundle()
    mine = fn.bundle()
    again = pickle.loads(pickle.dumps(fn))  # noqa: S301  # our own pickle
    assert (again.scope, again.step) == (scope, "Read")
    again.start_bundle()
    assert again.bundle() is not mine
    assert again.session() is fn.session() is open_session(scope), "one session a process"
    fn.finish_bundle()
    again.finish_bundle()


def test_a_dofn_without_a_job_says_how_to_apply_it() -> None:
    """`beam.ParDo` in place of `Scoped` is an easy mistake."""
    fn = Read()
    with pytest.raises(ConfigError, match="Read has no job scope") as caught:
        fn.token()
    assert "beam_entra.Scoped(Read(...))" in caught.value.hint


def test_a_connector_outside_a_scoped_pipeline_is_refused_when_it_is_built() -> None:
    """No job, no token."""
    pipeline = beam.Pipeline()
    with pytest.raises(ConfigError, match="no job scope"):
        pipeline | beam.Create([1]) | Scoped(Read())
    with pytest.raises(ConfigError):
        scope_of(pipeline)


def test_one_dofn_object_serves_two_jobs_and_two_steps_each_under_its_own_name(lake: Any) -> None:
    """Applying it again, here or in another pipeline, changes nothing about where it was applied before."""
    lake.raw.upload("in/a", b"x")
    lake.raw.upload("in/b", b"y")

    class Look(ScopedDoFn):
        def process(self, url: str) -> Iterator[bytes]:
            blob = self.bundle().properties(BlobPath.parse(url))
            yield bytes(self.bundle().read(blob, 0, blob.size_bytes))

    fn, x, y = Look(), lake.raw.url("in/a"), lake.raw.url("in/b")
    first, second = lake.pipeline(manifest=lake.manifest(read=[x])), lake.pipeline(manifest=lake.manifest(read=[y]))
    assert_that(first | "A" >> beam.Create([x]) | "Look" >> Scoped(fn), equal_to([b"x"]), label="A is right")
    assert_that(first | "B" >> beam.Create([x]) | "Again" >> Scoped(fn), equal_to([b"x"]), label="B is right")
    assert_that(second | beam.Create([y]) | "Other" >> Scoped(fn), equal_to([b"y"]))
    for pipeline, steps in ((first, {"Look", "Again"}), (second, {"Other"})):
        with pipeline:
            pass
        trail = lake.trail(pipeline.report.job)
        trail.verify()
        opened = {record["step"] for record in trail.records("bundle_opened")}
        assert opened & {"Look", "Again", "Other"} == steps
    assert (fn.scope, fn.step) == (None, ""), "the caller's own object is left alone"


def test_side_inputs_reach_a_connector(lake: Any) -> None:
    """`Scoped` takes them as `ParDo` does."""

    class Add(ScopedDoFn):
        def process(self, element: int, by: int, *, times: int) -> Iterator[int]:
            yield element + by * times

    with lake.pipeline() as p:
        five = beam.pvalue.AsSingleton(p | "five" >> beam.Create([5]))
        assert_that(p | beam.Create([1, 2]) | Scoped(Add(), five, times=2), equal_to([11, 12]))


def test_a_token_cannot_leave_by_accident(scope: JobScope) -> None:
    """Neither pickled nor printed; only `.secret.reveal()` opens it."""
    fn = LookUp("https://unused", "").scoped(scope, "Look up")
    fn.start_bundle()
    token = fn.token()
    assert token.secret.reveal() not in repr(token) + str(token)
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(token)
    fn.finish_bundle()


def test_a_session_that_is_gone_is_an_error_of_ours(lake: Any, scope: JobScope) -> None:
    """A DoFn that outlives its session neither hangs nor works on unrecorded."""
    blob_name = "in/a"
    lake.raw.upload(blob_name, b"x")
    fn = Read().scoped(scope, "Read")
    fn.start_bundle()
    fn.bundle()
    open_session(scope).close()
    with pytest.raises(BeamEntraError):
        fn.bundle().access_token(GRAPH)
    with pytest.raises(BeamEntraError):
        fn.finish_bundle()
