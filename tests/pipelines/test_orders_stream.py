"""`pipelines.orders_stream` over the wire: orders that come while it runs, and a stop from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from beam_entra.audit.verify import verify
from beam_entra.testing.storage_requests import matching
from tests.pipelines.conftest import ROOT, Shop, ended

SHIPPED = ROOT / "pipelines" / "orders_stream.access.toml"


def manifest(shop: Shop, *changes: tuple[str, str]) -> Path:
    """The shipped manifest, for this test's cloud and containers, with pieces of its text changed."""
    text = SHIPPED.read_text(encoding="utf-8")
    for old, new in [
        ("contoso.onmicrosoft.com", shop.cloud.tenant_id),
        ("3b0c8a52-6f1e-4d5a-9a7b-2c4d6e8f1a30", shop.cloud.client_id),
        ("raw@", f"{shop.raw.name}@"),
        ("curated@", f"{shop.curated.name}@"),
        ("audit@", f"{shop.audit.name}@"),
        *changes,
    ]:
        assert old in text, f"the manifest has no {old}"
        text = text.replace(old, new)
    path = shop.folder / "orders_stream.access.toml"
    path.write_text(text, encoding="utf-8")
    return path


def order(number: int) -> dict[str, Any]:
    """An order."""
    return {
        "order_id": f"O-{number}",
        "ordered_at": "2026-03-01T09:30:00Z",
        "updated_at": "2026-03-01T09:31:07Z",
        "customer": "Zoë",
        "product": "P-017",
        "quantity": 2,
        "unit_price": "12.50",
    }


def upload(shop: Shop, name: str, numbers: range, *more: bytes) -> None:
    """Put orders into a blob, and lines that are none."""
    lines = [json.dumps(order(number)).encode() for number in numbers]
    shop.raw.upload(f"orders/{name}", b"\n".join([*lines, *more]) + b"\n")


def rows(shop: Shop, below: str, *, settled: bool = True) -> list[dict[str, Any]]:
    """The rows of all windows that have a `_SUCCESS`, from the blobs that it names.

    Args:
        settled: Nothing is being written: nothing else may be there.
    """
    prefix = f"orders-stream/run/{below}/"
    names = set(shop.curated.list(prefix))
    found: list[dict[str, Any]] = []
    listed: set[str] = set()
    for name in names:
        if name.endswith("/_SUCCESS"):
            success = json.loads(shop.curated.download(name))
            blobs = [prefix + blob["path"].partition(prefix)[2] for blob in success["blobs"]]
            listed |= {name, name.replace("_SUCCESS", "_COMMITTING"), *blobs}
            lines = [line for blob in blobs for line in shop.curated.download(blob).splitlines()]
            assert len(lines) == success["rows"]
            found += [json.loads(line) for line in lines]
    assert names == listed if settled else names >= listed
    return found


def test_orders_that_come_while_it_runs(shop: Shop) -> None:
    """Each once, a bad line with its blob and byte, windows that are complete, and a trail that verifies."""
    upload(shop, "1.jsonl", range(10), b"no order")
    listing = matching("ListBlobs", container=shop.raw.name)
    launched = shop.launch(
        module="pipelines.orders_stream",
        manifest=manifest(shop),
        products=None,
        output=shop.curated.url("orders-stream/run/"),
        every="0.2",
        window="1",
        stop=shop.raw.url("orders/_STOP"),
    )
    try:
        shop.cloud.proxy.wait_for(lambda _: shop.cloud.proxy.count(listing) > 0, timeout_s=25)
    except TimeoutError:
        launched.kill()
        pytest.fail(ended(launched).said)
    upload(shop, "2.jsonl", range(10, 20))
    shop.raw.upload("orders/_STOP", b"")
    run = ended(launched)
    assert run.status == 0, run.said
    assert sorted(row["order_id"] for row in rows(shop, "clean")) == sorted(f"O-{number}" for number in range(20))
    (dead,) = rows(shop, "dead")
    assert (dead["source"], dead["record"]) == (shop.raw.url("orders/1.jsonl"), "no order")
    report = shop.report()
    assert report["metrics"]["blobs_matched"] == 2
    verify(shop.trail(), seal_digest=report["seal_digest"])
