"""A launcher seals the trail of its job while the job runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import apache_beam as beam
import pytest

from beam_entra import JsonLines, ReadFromBlob, WriteToBlob
from beam_entra.errors import TrailBroken
from beam_entra.testing.storage_requests import StorageExchange
from tests.io.conftest import Lake

SECOND = timedelta(seconds=1)


def _is_interim_seal(exchange: StorageExchange) -> bool:
    name = exchange.request.blob.rpartition("/")[2]
    return exchange.operation == "AppendBlock" and name.startswith("seal-0")


@pytest.fixture
def sealing_often(lake: Lake) -> Iterator[Lake]:
    """A lake with a blob."""
    lake.upload_json("in/a.jsonl", [{"id": number} for number in range(3)])
    yield lake
    assert not [thread for thread in threading.enumerate() if thread.name == "beam-entra-interim-seals"]


def wait_for_interim_seals(element: dict[str, int]) -> dict[str, int]:
    """One that is under way while the job is sealed twice."""
    if element["id"] == 0:
        assert _LAKE[0].cloud.proxy.wait_for(lambda seen: sum(map(_is_interim_seal, seen)) >= 2, timeout_s=60)
    return element


_LAKE: list[Lake] = []  # for functions that Beam pickles; they run in this process


def test_a_job_that_takes_long_is_sealed_on_the_way(sealing_often: Lake) -> None:
    """Every second here; the final seal continues what was sealed, and the trail verifies."""
    lake = sealing_often
    _LAKE[:] = [lake]
    manifest = lake.manifest()
    often = replace(manifest, trail=replace(manifest.trail, seal_every=SECOND))
    with lake.pipeline("--direct_running_mode=in_memory", manifest=often) as p:
        read = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
        read | beam.Map(wait_for_interim_seals) | WriteToBlob(lake.curated.url("out/"), JsonLines())
    assert len(lake.written()) == 3
    summary = lake.only_trail().verify()
    assert summary.interim_seals >= 2
    assert p.report is not None
    assert p.report.seal.record.seq == summary.interim_seals


def test_a_job_that_takes_no_time_is_sealed_once(sealing_often: Lake) -> None:
    """No interim seal, no request more than without them, and no thread is left, also when it fails."""
    lake = sealing_often
    with pytest.raises(Exception, match="by zero"), lake.pipeline() as p:
        p | beam.Create([0]) | beam.Map(lambda number: 1 // number)
    assert lake.only_trail().verify().interim_seals == 0


def remove_interim_seals(element: int) -> int:
    """One during which the job is sealed twice, and somebody removes that."""
    lake = _LAKE[0]
    assert lake.cloud.proxy.wait_for(lambda seen: sum(map(_is_interim_seal, seen)) >= 2, timeout_s=60)
    for name in lake.audit.list("audit/"):
        if "/seal-0" in name:
            lake.audit.delete(name)
    return element


def test_interim_seals_that_were_removed_are_missed_at_the_end(sealing_often: Lake) -> None:
    """The launcher has made them, so it seals nothing without them, though the folder does not tell."""
    lake = sealing_often
    _LAKE[:] = [lake]
    manifest = lake.manifest()
    often = replace(manifest, trail=replace(manifest.trail, seal_every=SECOND))
    pipeline = lake.pipeline("--direct_running_mode=in_memory", manifest=often)
    with pytest.raises(TrailBroken, match=r"seal-00000\d\.jsonl line 1: rule 18"), pipeline as p:
        p | beam.Create([0]) | beam.Map(remove_interim_seals)
    assert not [name for name in lake.audit.list("audit/") if name.endswith("/seal.jsonl")]
