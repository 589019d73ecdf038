"""The line on the terminal while a worker elsewhere does the job, on an engine that tells how it stands.

Where the engine tells nothing, the trail does, whatever the engine is: `tests/launch/test_progress.py` has that.
"""

from __future__ import annotations

from typing import Any

import pytest

from beam_entra.audit.verify import verify
from beam_entra.testing.storage_requests import matching
from tests.engines.plugin import Boot
from tests.launch.terminal import Terminal
from tests.pipelines.conftest import Shop

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

ORDERS = 3000
TIME_S = 120
FROM_METRICS = r"[1-9]\d*/9 blobs, [1-9][\d,]* records"  # the products, and all days but the one that is held


def watched(shop: Shop, terminal: Terminal, pattern: str, **flags: str | None) -> None:
    """Run the orders, hold one of the inputs until the line says this, and let the job end."""
    shop.upload_sample(ORDERS)
    held = shop.cloud.proxy.hold(where=matching("GetBlob", container=shop.raw.name, blob="orders/2026-03-04.jsonl"))
    launched = shop.launch(stderr=terminal.slave, **flags)
    try:
        terminal.wait_for(pattern, timeout_s=TIME_S)
        held.gate.open()
        launched.communicate(timeout=TIME_S)
    finally:
        held.gate.open()
        launched.kill()
    terminal.close()
    assert launched.returncode == 0, terminal.written
    assert shop.report()["outcome"] == "ok"
    assert [line for line in terminal.screen() if " left; " in line] == []
    verify(shop.trail())


def test_on_prism_with_a_worker_process(shop: Shop, terminal: Terminal, prism: Any, boot: Boot) -> None:
    """Prism tells Beam's counters while the job runs."""
    flags = {"environment_type": "PROCESS", "environment_config": boot.config}
    watched(
        shop,
        terminal,
        FROM_METRICS,
        runner="PrismRunner",
        prism_location=None,
        job_endpoint=prism.endpoint,
        **flags,
    )
