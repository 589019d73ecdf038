"""The sample in Beam YAML against the local cloud, under the same manifest as `pipelines.orders`."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from beam_entra.audit.verify import verify
from tests.pipelines.conftest import ROOT, Ended, Shop

SAMPLE = ROOT / "pipelines" / "orders.yaml"


def run(shop: Shop, *changes: tuple[str, str], manifest: Path | None = None, runner: str = "DirectRunner") -> Ended:
    """Launch the sample, its containers made to fit the test's."""
    text = SAMPLE.read_text(encoding="utf-8")
    for old, new in [("raw@", f"{shop.raw.name}@"), ("curated@", f"{shop.curated.name}@"), *changes]:
        assert old in text, f"the sample has no {old}"
        text = text.replace(old, new)
    pipeline = shop.folder / "orders.yaml"
    pipeline.write_text(text, encoding="utf-8")
    flags = [
        f"--yaml_pipeline_file={pipeline}",
        f"--access_manifest={manifest or shop.manifest()}",
        f"--access_endpoints={shop.cloud.endpoints_file}",
        f"--job_report={shop.report_file}",
        f"--runner={runner}",
        "--prism_location=none",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "beam_entra.launch.yaml", *flags],
        cwd=ROOT,
        env={**os.environ, "AZURE_FEDERATED_TOKEN_FILE": str(shop.cloud.assertion_file)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ended(status=done.returncode, out=done.stdout, err=done.stderr)


def written(shop: Shop, folder: str) -> list[str]:
    """The lines below one of the outputs."""
    prefix = f"orders/yaml/{folder}/"
    parts = [name for name in shop.curated.list(prefix) if "/part-" in name]
    return [line for name in parts for line in shop.curated.download(name).decode().splitlines()]


def orders(source: Path) -> list[dict[str, Any]]:
    """The sound orders of the sample data, read without Beam."""
    kinds = {"order_id": str, "ordered_at": str, "product": str, "quantity": int}
    found = []
    for path in sorted((source / "orders").iterdir()):
        data = path.read_bytes()
        if path.suffix == ".gz":
            import gzip  # noqa: PLC0415 - only here

            data = gzip.decompress(data)
        for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
            try:
                value = json.loads(line.decode())
            except ValueError:
                continue
            sound = isinstance(value, dict) and all(type(value.get(name)) is kind for name, kind in kinds.items())
            if sound and isinstance(value.get("unit_price"), str | None) and value["quantity"] > 0:
                found.append(value)
    return found


def test_the_sample_runs_as_the_job(shop: Shop) -> None:
    """Rows in and out, units per product, dead letters; the trail is sealed and verifies."""
    source = shop.upload_sample(500)
    done = run(shop)
    assert done.status == 0, done.said
    expected = orders(source)
    clean = [json.loads(line) for line in written(shop, "clean")]
    assert Counter(order["order_id"] for order in clean) == Counter(order["order_id"] for order in expected)
    units: Counter[str] = Counter()
    for order in expected:
        units[order["product"]] += order["quantity"]
    rows = list(csv.DictReader(written(shop, "units")))
    assert {row["product"]: int(row["units"]) for row in rows} == dict(units)
    dead = [json.loads(line) for line in written(shop, "dead")]
    assert dead
    assert all(set(letter) == {"source", "offset", "reason", "record"} for letter in dead)
    report = shop.report()
    verify(shop.trail(), seal_digest=report["seal_digest"])
    assert shop.cloud.find_leaks(done.said) == []


def test_a_path_outside_the_grants_is_refused(shop: Shop) -> None:
    """The manifest holds for YAML as for Python; nothing is written."""
    shop.upload_sample(10)
    done = run(shop, ("/orders/*", "/orders-secret/*"))
    assert done.status == 1, done.said
    assert "NotGranted" in done.err
    assert "orders-secret/" in done.err
    assert shop.curated.list() == []


def test_beams_own_file_io_runs_as_the_job_too(shop: Shop) -> None:
    """`ReadFromText` and `WriteToText` of Beam YAML on abfss:// paths, the latter beside `WriteToBlob`."""
    shop.upload_sample(50)
    text = SAMPLE.read_text(encoding="utf-8")
    begin = text[text.index("    - type: ReadFromBlob") :]
    here = shop.curated.url("orders/yaml/text/")
    only_text = f"""    - type: ReadFromText
      name: Text
      config:
        path: "{shop.raw.url("orders/*.jsonl")}"
    - type: WriteToBlob
      name: Copy
      input: Text
      config:
        path: "{shop.curated.url("orders/yaml/clean/")}"
        format: text
    - type: WriteToText
      name: Beam's copy
      input: Text
      config:
        path: "{here}copy"
"""
    fitted = begin.replace("raw@", f"{shop.raw.name}@").replace("curated@", f"{shop.curated.name}@")
    manifest = shop.manifest(("[grants]\nread = [", f'[grants]\ndelete = ["{here}"]\nread = [\n    "{here}",'))
    done = run(shop, (fitted, only_text), manifest=manifest)
    assert done.status == 0, done.said
    names = [name for name in shop.raw.list("orders/") if name.endswith(".jsonl")]
    lines = sorted(line for name in names for line in shop.raw.download(name).decode().splitlines())
    assert sorted(written(shop, "clean")) == lines
    copies = shop.curated.list("orders/yaml/text/")
    assert sorted(line for name in copies for line in shop.curated.download(name).decode().splitlines()) == lines
    summary = verify(shop.trail(), seal_digest=shop.report()["seal_digest"])
    assert summary.counts["copied"] == len(copies)
