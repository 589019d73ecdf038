"""`pipelines.orders_stream` on real engines: what came is there exactly once, window by window, while it runs.

Tokens live for five seconds; the trail is sealed every three, in segments as short as may be. `make soak-stream` has
the job on Prism run for 50 lives of its tokens, two minutes, in place of five (STREAM_TOKEN_LIVES).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest

from beam_entra.audit.verify import TrailSummary, verify
from beam_entra.testing.storage_requests import StorageRequest, matching
from tests.engines.clusters import Flink, JobServer
from tests.engines.plugin import Boot
from tests.pipelines.conftest import Shop
from tests.pipelines.test_orders_stream import manifest, rows, upload

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOB = 10
PATIENCE_S = 240
LOOK_S = 5  # where nothing is written, to see whether the launch has ended
LIFE_S = 5
# The earliest: of a life, which ends at a whole second, a fifth is left, and a twentieth is jitter.
REFRESHED_S = (LIFE_S - 1) * 0.75
SHARDS = 2
SEALED_OFTEN = ("[audit]", '[audit]\nsegment_records = 100\nseal_every = "3s"')
LIVES = int(os.environ.get("STREAM_TOKEN_LIVES", "5"))


class Stream:
    """A launch of the pipeline, and blobs of orders on their way to it."""

    def __init__(self, shop: Shop, boot: Boot) -> None:
        self.shop, self.boot = shop, boot
        self._blobs = 0
        self.launched: subprocess.Popen[str] | None = None
        self._asked, self._sent = len(shop.cloud.tenant.requests), len(shop.cloud.proxy.requests)

    @property
    def pid(self) -> int:
        """The launcher's process."""
        assert self.launched is not None
        return self.launched.pid

    def feed(self, blobs: int = 1) -> None:
        """Put so many blobs of new orders there."""
        for _ in range(blobs):
            upload(self.shop, f"{self._blobs:04d}.jsonl", range(self._blobs * BLOB, (self._blobs + 1) * BLOB))
            self._blobs += 1

    @property
    def expected(self) -> Counter[str]:
        """The ids of what was fed."""
        return Counter(f"O-{number}" for number in range(self._blobs * BLOB))

    @property
    def written(self) -> Counter[str]:
        """The ids in the windows that are complete."""
        return Counter(row["order_id"] for row in rows(self.shop, "clean", settled=False))

    @property
    def token_outcomes(self) -> list[str]:
        """What became of each token request so far, in this test."""
        return [each.outcome for each in self.shop.cloud.tenant.requests[self._asked :] if each.kind == "token"]

    @property
    def refused(self) -> list[StorageRequest]:
        """The requests that Storage took for nobody's so far, in this test."""
        return [each.request for each in self.shop.cloud.proxy.requests[self._sent :] if each.status in {401, 403}]

    def launch(self, endpoint: str, **flags: Any) -> None:
        """Start it."""
        self.launched = self.shop.launch(
            module="pipelines.orders_stream",
            manifest=manifest(self.shop, SEALED_OFTEN),
            products=None,
            output=self.shop.curated.url("orders-stream/run/"),
            every="0.5",
            window="1",
            stop=self.shop.raw.url("orders/_STOP"),
            job_endpoint=endpoint,
            prism_location=None,
            environment_type="PROCESS",
            environment_config=self.boot.config,
            **flags,
        )

    def wait_for(self, there: Callable[[], object], what: str) -> None:
        """Look whenever something is written; a launch that has ended meanwhile, or time, ends the test."""
        assert self.launched is not None
        proxy, end = self.shop.cloud.proxy, time.monotonic() + PATIENCE_S
        while True:
            known = proxy.count(self._is_write)
            if there():
                return
            if self.launched.poll() is not None:
                pytest.fail(f"ended before {what}\n{self.launched.communicate()}")
            if time.monotonic() > end:
                asked = Counter(f"{each.operation} {each.request.container}" for each in self.shop.cloud.proxy.requests)
                pytest.fail(f"no {what} after {PATIENCE_S} s: {self.written - self.expected}, {asked}")
            with suppress(TimeoutError):
                proxy.wait_for(lambda _, known=known: proxy.count(self._is_write) > known, timeout_s=LOOK_S)

    def _is_write(self, request: StorageRequest) -> bool:
        return request.container == self.shop.curated.name and request.operation.startswith("Put")

    def wait_until_written(self, what: str) -> None:
        """Until all that was fed is in windows that are complete."""
        self.wait_for(lambda: self.written == self.expected, what)

    def feed_until_staged(self, blobs: int) -> None:
        """Put so many there, until a block of them is staged."""
        proxy, staged = self.shop.cloud.proxy, matching("PutBlock", container=self.shop.curated.name)
        before = proxy.count(staged)
        self.feed(blobs)
        self.wait_for(lambda: proxy.count(staged) > before, "staged block")

    def stop(self) -> None:
        """Have the watch end."""
        self.shop.raw.upload("orders/_STOP", b"")

    def ended(self) -> tuple[int, str]:
        """Exit code, and what the launcher said."""
        assert self.launched is not None
        out, err = self.launched.communicate(timeout=PATIENCE_S)
        return self.launched.returncode, f"{out}\n{err}"


@pytest.fixture
def stream(shop: Shop, boot: Boot) -> Iterator[Stream]:
    """One that is ended for sure."""
    made = Stream(shop, boot)
    yield made
    if made.launched is not None:
        made.launched.kill()
        made.launched.communicate()


@pytest.fixture
def short_tokens(shop: Shop) -> Iterator[None]:
    """Tokens that live for some seconds."""
    shop.cloud.tenant.token_life_s = LIFE_S
    yield
    shop.cloud.tenant.token_life_s = 3600


def drained(stream: Stream) -> TrailSummary:
    """Feed once more and stop: the job ends by itself, all is written once, and its trail, which is given, verifies.

    That was sealed on the way, and a worker has continued its segment. Nobody was refused, and nobody asked for tokens
    more than once a life.
    """
    stream.feed()
    stream.stop()
    status, said = stream.ended()
    assert status == 0, said
    rows(stream.shop, "clean")  # and nothing else is there
    assert stream.written == stream.expected
    summary = verify(stream.shop.trail(), seal_digest=stream.shop.report()["seal_digest"])
    assert summary.interim_seals >= 2
    continued = {each.opened.pid for each in summary.segments if each.opened and each.opened.previous}
    assert continued & stream.boot.pids()
    assert stream.refused == []
    assert set(stream.token_outcomes) == {"issued"}
    for got in lives(stream.shop).values():
        span_s = (max(got) - min(got)).total_seconds()
        assert len(got) <= 1 + span_s / REFRESHED_S, "however many looks, bundles and windows"
    return summary


def lives(shop: Shop) -> dict[int, list[datetime]]:
    """When each process of the last run got its tokens."""
    trail, found = shop.trail(), dict[int, list[datetime]]()
    for name in trail.names():
        opened, *records = [json.loads(line) for line in trail.read(name).splitlines()]
        times = [datetime.fromisoformat(each["time"]) for each in records if each["kind"] == "token_acquired"]
        if times:
            found.setdefault(opened["pid"], []).extend(times)
    return found


def parts_by_window(shop: Shop) -> dict[str, list[str]]:
    """The names of the parts in each folder of `clean/`."""
    found: dict[str, list[str]] = {}
    for name in shop.curated.list("orders-stream/run/clean/"):
        folder, _, blob = name.rpartition("/")
        if blob.startswith("part-"):
            found.setdefault(folder, []).append(blob)
    return found


@pytest.mark.usefixtures("short_tokens")
def test_on_prism_over_many_token_lives(stream: Stream, prism: JobServer) -> None:
    """Windows are committed while the job runs, a process asks once a life, nobody is refused, and it ends as told."""
    stream.feed(3)
    stream.launch(prism.endpoint, runner="PrismRunner")
    stream.wait_until_written("first windows")
    while len(stream.token_outcomes) <= LIVES:
        stream.feed()
        stream.wait_until_written("next windows")
    summary = drained(stream)
    asked = len(stream.token_outcomes)
    unused = asked - summary.counts["token_acquired"]
    assert 0 <= unused <= len(lives(stream.shop)), "one a process may come when that is ending, and is given to nobody"
    assert stream.boot.pids() == set(lives(stream.shop)) - {stream.pid}
    report, written = stream.shop.report(), stream.shop.curated.list("orders-stream/")
    windows, looks = sum(name.endswith("/_SUCCESS") for name in written), report["metrics"]["looks"]
    print(f"{report['wall_s']:.0f} s: {asked} token requests, {looks} looks, {windows} windows")


@pytest.mark.usefixtures("short_tokens")
def test_on_a_flink_cluster_where_a_worker_dies(stream: Stream, flink: Flink) -> None:
    """The job goes back to a checkpoint, and each window is committed once; it ends as told, after its idle source."""
    stream.feed(3)
    stream.launch(
        flink.endpoint,
        runner="FlinkRunner",
        parallelism="2",
        checkpointing_interval="1000",
        shutdown_sources_after_idle_ms="20000",
        shards=str(SHARDS),
    )
    stream.wait_until_written("first windows")
    stream.feed_until_staged(2)
    before = stream.boot.pids()
    died = max(before)
    os.kill(died, signal.SIGKILL)
    stream.feed(8)
    stream.wait_until_written("windows after a death")
    drained(stream)
    assert died in lives(stream.shop)
    assert len(stream.boot.pids()) > len(before)
    assert max(map(len, lives(stream.shop).values())) > 2
    for parts in parts_by_window(stream.shop).values():
        assert parts == [f"part-{number:05d}-of-{SHARDS:05d}.jsonl" for number in range(SHARDS)]
