"""`pipelines.orders_stream` on a real engine: what came is there exactly once, window by window, while it runs."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from beam_entra.audit.verify import verify
from tests.engines.clusters import JobServer
from tests.engines.plugin import Boot
from tests.pipelines.conftest import Shop
from tests.pipelines.test_orders_stream import manifest, rows, upload

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

BLOB = 10
PATIENCE_S = 240


class Stream:
    """A launch of the pipeline, and blobs of orders on their way to it."""

    def __init__(self, shop: Shop, boot: Boot) -> None:
        self.shop, self.boot = shop, boot
        self._blobs = 0
        self.launched: subprocess.Popen[str] | None = None

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

    def launch(self, endpoint: str, **flags: Any) -> None:
        """Start it."""
        self.launched = self.shop.launch(
            module="pipelines.orders_stream",
            manifest=manifest(self.shop),
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
        """Until it is; a launch that has ended meanwhile, or time, ends the test."""
        assert self.launched is not None
        end = time.monotonic() + PATIENCE_S
        while not there():
            if self.launched.poll() is not None:
                pytest.fail(f"ended before {what}\n{self.launched.communicate()}")
            if time.monotonic() > end:
                asked = Counter(f"{each.operation} {each.request.container}" for each in self.shop.cloud.proxy.requests)
                pytest.fail(f"no {what} after {PATIENCE_S} s: {self.written - self.expected}, {asked}")
            time.sleep(0.25)

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


def verified(shop: Shop) -> Any:
    """The trail of the last run verifies; what it says of its segments."""
    return verify(shop.trail(), seal_digest=shop.report()["seal_digest"])


def test_on_prism(stream: Stream, prism: JobServer) -> None:
    """Windows are committed while the job runs; it ends by itself when it is told to stop."""
    stream.feed(3)
    stream.launch(prism.endpoint, runner="PrismRunner")
    stream.wait_for(lambda: stream.written == stream.expected, "first windows")
    stream.feed(3)
    stream.wait_for(lambda: stream.written == stream.expected, "next windows")
    stream.feed(1)
    stream.stop()
    status, said = stream.ended()
    assert status == 0, said
    assert stream.written == stream.expected
    verified(stream.shop)
