"""A tenant, an issuer and a storage proxy of a test's own in front of the run's Azurite, and jobs in bad weather."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import apache_beam as beam

from beam_entra import EntraOptions, JsonLines, ReadFromBlob, ScopedPipeline, WriteToBlob
from beam_entra.access import AccessManifest
from beam_entra.clock import utc_now
from beam_entra.testing.issuer import WorkloadIssuer
from beam_entra.testing.local import DEFAULT_SUBJECT, AssertionKeeper, LocalCloud, endpoints_toml
from beam_entra.testing.proxy import StorageProxy
from beam_entra.testing.tenant import LocalTenant
from tests.io.conftest import Lake, Trail

__all__ = ["DIRECT", "Job", "Met", "Sky", "expected", "met", "put_orders", "recovered_after_s", "sky_over"]

DIRECT = ("--runner=DirectRunner", "--prism_location=/nonexistent")
BLOBS, ROWS = 12, 25
_NO_FAULT = frozenset({"", "run"})
_GOOD = range(200, 300)


class Sky:
    """What a `Lake` asks of a local cloud, with an Entra and a way to Storage that no other test's weather reaches."""

    def __init__(self, cloud: LocalCloud, folder: Path, up: ExitStack) -> None:
        self.tenant = up.enter_context(LocalTenant(cloud.certificates))
        self.issuer = up.enter_context(WorkloadIssuer(cloud.certificates))
        self.proxy = up.enter_context(StorageProxy(cloud.certificates, cloud.azurite.url))
        self.app = self.tenant.register_app()
        self.app.add_federated_credential(self.issuer.url, DEFAULT_SUBJECT)
        self.admin = cloud.admin
        self.assertion_file = folder / "assertion.jwt"
        self.keeper = up.enter_context(
            AssertionKeeper(self.issuer, self.assertion_file, DEFAULT_SUBJECT, life_s=600)
        )
        self.endpoints_file = folder / "endpoints.toml"
        self.endpoints_file.write_text(
            endpoints_toml(
                authority=self.tenant.authority,
                ca_file=cloud.ca_file,
                assertion_file=self.assertion_file,
                accounts={account: self.proxy.endpoint(account) for account in cloud.accounts},
            ),
            encoding="utf-8",
        )

    @property
    def tenant_id(self) -> str:
        """As in the manifest."""
        return self.tenant.tenant_id

    @property
    def client_id(self) -> str:
        """As in the manifest."""
        return self.app.client_id

    def rewrite_assertion(self) -> None:
        """Sign another assertion, as the platform does when its keys have changed."""
        self.issuer.write_assertion_file(self.assertion_file, DEFAULT_SUBJECT)

    def clear(self) -> None:
        """Fine weather from now on."""
        self.tenant.clear_faults()
        self.proxy.clear_faults()
        self.app.enable()


@contextmanager
def sky_over(cloud: LocalCloud, folder: Path) -> Iterator[Sky]:
    """A sky that is taken down at the end of the block."""
    with ExitStack() as up:
        yield Sky(cloud, folder, up)


def put_orders(lake: Lake, *, padding: int) -> None:
    """The input: `BLOBS` blobs of `ROWS` orders, each longer by so many bytes."""
    note = "x" * padding
    for blob in range(BLOBS):
        orders = [
            {"id": blob * ROWS + row, "quantity": row % 7, "price": blob + 1, "note": note} for row in range(ROWS)
        ]
        lake.upload_json(f"in/{blob:02d}.jsonl", orders)


def expected() -> Counter[tuple[int, int]]:
    """Ids and totals of every order, worked out without the pipeline."""
    return Counter((number, (number % ROWS % 7) * (number // ROWS + 1)) for number in range(BLOBS * ROWS))


def total(order: dict[str, int], pace_s: float) -> dict[str, int]:
    """The transform, which may take its time."""
    threading.Event().wait(pace_s)
    return {"id": order["id"], "total": order["quantity"] * order["price"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Met:
    """One request, and whether a fault met it. What is tried again is of the same kind."""

    kind: str
    time: datetime
    fault: bool
    good: bool


def met(sky: Sky) -> list[Met]:
    """Every request under a sky, in order of time."""
    tokens = [
        Met(kind="token", time=each.time, fault=each.outcome != "issued", good=each.outcome == "issued")
        for each in sky.tenant.requests
        if each.kind == "token"
    ]
    blobs = [
        Met(
            kind=each.operation + each.request.path,
            time=each.time,
            fault=each.fault not in _NO_FAULT,
            good=each.status in _GOOD,
        )
        for each in sky.proxy.requests
    ]
    return sorted([*tokens, *blobs], key=lambda each: each.time)


def recovered_after_s(seen: list[Met]) -> float:
    """Seconds from the first request that met a fault until one of its kind was answered after the last that did.

    Of several kinds the longest; 0 if none met any. Who had no need to ask again has recovered by the end.
    """
    stretches = [0.0]
    for kind in {each.kind for each in seen if each.fault}:
        of_kind = [each for each in seen if each.kind == kind]
        first = next(each.time for each in of_kind if each.fault)
        last = max(at for at, each in enumerate(of_kind) if each.fault)
        again = next((each.time for each in of_kind[last + 1 :] if each.good), seen[-1].time)
        stretches.append((again - first).total_seconds())
    return max(stretches)


class Job:
    """One run of the pipeline, in a thread that has to end by itself.

    Args:
        pace_s: For each order.
    """

    def __init__(self, lake: Lake, manifest: AccessManifest, *, pace_s: float = 0) -> None:
        self._lake, self._pace_s = lake, pace_s
        self._pipeline = ScopedPipeline(options=EntraOptions([*DIRECT]), access_manifest=manifest)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.id = self._pipeline.scope.job
        self.error: BaseException | None = None
        self.ended = utc_now()

    def start(self) -> None:
        """Read, transform and write; the error is kept."""
        self._thread.start()

    def wait(self, most_s: float) -> None:
        """Until it has ended.

        Raises:
            TimeoutError: It hangs.
        """
        self._thread.join(most_s)
        if self._thread.is_alive():
            raise TimeoutError(f"the job has not ended after {most_s} s")

    def _run(self) -> None:
        lake = self._lake
        try:
            with self._pipeline as p:
                orders = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
                totals = orders | beam.Map(total, pace_s=self._pace_s)
                totals | WriteToBlob(lake.curated.url("out/"), JsonLines(), block_bytes=200)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error
        finally:
            self.ended = utc_now()

    @property
    def trail(self) -> Trail:
        """Its audit trail."""
        return self._lake.trail(self.id)

    def written(self) -> Counter[tuple[int, int]]:
        """Ids and totals in every visible blob of the output."""
        return Counter((order["id"], order["total"]) for order in self._lake.written())
