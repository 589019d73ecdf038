"""Matching takes memory for a page of a listing, however many pages there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from azure.storage.blob import generate_container_sas

from beam_entra.testing.https import Answer
from beam_entra.testing.storage_requests import StorageRequest, matching
from benchmarks.cloud import RawBlobs
from tests.pressure.conftest import Lake, Measure

PAGE_BLOBS = 5000  # as many as Storage gives at a time
AT_MOST_MB = 60
GROWTH_MB = 10


def names(blobs: int) -> Iterator[str]:
    """The numbers of blobs, in the order of a listing."""
    return (f"in/many/{number // 1000:03d}/{number:07d}" for number in range(blobs))


def listing(blobs: int) -> Callable[[StorageRequest], Answer]:
    """List Blobs of so many blobs, page by page, with as much about each as Storage says."""
    every = list(names(blobs))
    modified = format_datetime(datetime(2030, 1, 1, tzinfo=UTC), usegmt=True)

    def described(name: str) -> str:
        return (
            f"<Blob><Name>{name}</Name><Properties><Creation-Time>{modified}</Creation-Time>"
            f"<Last-Modified>{modified}</Last-Modified><Etag>0x8D{hash(name) & 0xFFFFFFFFFFF:011X}</Etag>"
            "<Content-Length>10000</Content-Length><Content-Type>application/octet-stream</Content-Type>"
            "<Content-Encoding/><Content-Language/><Content-CRC64/><Content-MD5/><Cache-Control/>"
            "<Content-Disposition/><BlobType>BlockBlob</BlobType><AccessTier>Hot</AccessTier>"
            "<AccessTierInferred>true</AccessTierInferred><LeaseStatus>unlocked</LeaseStatus>"
            "<LeaseState>available</LeaseState><ServerEncrypted>true</ServerEncrypted></Properties><OrMetadata/></Blob>"
        )

    def answer(request: StorageRequest) -> Answer:
        begin = int(request.parameters.get("marker", "0"))
        end = begin + PAGE_BLOBS
        assert request.parameters["prefix"] == "in/many/"
        entries = "".join(map(described, every[begin:end]))
        marker = str(end) if end < blobs else ""
        body = (
            '<?xml version="1.0" encoding="utf-8"?>'
            f'<EnumerationResults ServiceEndpoint="https://{request.account}.blob.core.windows.net/" '
            f'ContainerName="{request.container}"><Blobs>{entries}</Blobs><NextMarker>{marker}</NextMarker>'
            "</EnumerationResults>"
        )
        headers = {"Content-Type": "application/xml", "x-ms-request-id": f"page-{begin}"}
        return Answer(headers=headers, body=body.encode("utf-8"))

    return answer


@pytest.mark.timeout(180)
def test_memory_of_a_match_does_not_grow_with_the_listing(lake: Lake, measure: Measure) -> None:
    """100,000 blobs are matched in the memory that 20,000 take; each comes once, and the audit counts them all.

    It is the step alone; see `reader.py` for why.
    """
    lake.raw.upload("in/0", b"")
    listed_here = matching("ListBlobs", container=lake.raw.name)
    peaks_mb = []
    for blobs in (20_000, 100_000):
        page = lake.cloud.proxy.stand_in(
            listing(blobs), where=lambda request: listed_here(request) and "many" in request.parameters["prefix"]
        )
        matched = measure("match", lake.raw.url("in/many/**"), warm_up=lake.raw.url("in/*"))
        assert matched.answer == [blobs, blobs]
        assert page.hits == blobs // PAGE_BLOBS
        listed = [record for record in lake.trail(matched.job).records("listed") if "/in/many/" in record["path"]]
        assert sum(record["blobs"] for record in listed) == blobs
        page.clear()
        peaks_mb.append(matched.peak_mb)
    assert max(peaks_mb) < AT_MOST_MB
    assert peaks_mb[1] < peaks_mb[0] + GROWTH_MB


@pytest.mark.timeout(240)
def test_each_of_many_blobs_is_read_once(lake: Lake, measure: Measure) -> None:
    """11,000 blobs that are really there are read once each, over three pages whose markers are the service's own."""
    blobs = 2 * PAGE_BLOBS + 1000
    key = lake.cloud.azurite.keys[lake.raw.account].reveal()
    expiry = datetime.now(UTC) + timedelta(hours=1)
    sas = generate_container_sas(lake.raw.account, lake.raw.name, account_key=key, permission="w", expiry=expiry)
    endpoint = f"{lake.cloud.azurite.endpoint(lake.raw.account)}/{lake.raw.name}"
    raw = RawBlobs(endpoint=endpoint, sas=sas, ca_file=str(lake.cloud.ca_file))
    raw.put_all((name, b"") for name in names(blobs))
    lake.raw.upload("in/0", b"")
    read = measure("blobs", lake.raw.url("in/many/**"), warm_up=lake.raw.url("in/*"))
    assert read.answer == [blobs, blobs]
    listed = [record for record in lake.trail(read.job).records("listed") if "/in/many/" in record["path"]]
    assert [record["blobs"] for record in listed] == [PAGE_BLOBS, PAGE_BLOBS, 1000]
    assert read.peak_mb < AT_MOST_MB
