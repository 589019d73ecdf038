"""`python -m pipelines.orders` against the local tenant and Azurite, held against totals computed without Beam."""

from __future__ import annotations

import json

import pytest

from beam_entra.audit.verify import verify
from pipelines.demo.totals import Outcome, compute, differences, read_outputs
from tests.pipelines.conftest import Shop

RUNNERS = {
    "in one process": (),
    "in two worker processes": ("--direct_running_mode=multi_processing", "--direct_num_workers=2"),
}


def outcome(shop: Shop) -> Outcome:
    """What lies below the output."""
    prefix = "orders/run/"
    names = [name.removeprefix(prefix) for name in shop.curated.list(prefix)]
    return read_outputs(names, lambda name: shop.curated.download(prefix + name))


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_outcome_is_the_one_computed_without_beam(shop: Shop, runner: str) -> None:
    """Every order, revenue to the cent, each dead letter by blob and offset; sealed, verified, no secret printed."""
    source = shop.upload_sample(3000)
    expected = compute(source, url=shop.raw.url())
    done = shop.run(*RUNNERS[runner])
    assert done.status == 0, done.said
    assert differences(expected.outcome, outcome(shop)) == []
    assert expected.duplicates > 10
    assert len(expected.outcome.dead) > 10
    report = shop.report()
    assert report["outcome"] == "ok"
    assert f"Job {report['job']} ended" in done.out
    assert report["seal_digest"] in done.out
    summary = verify(shop.trail(), seal_digest=report["seal_digest"])
    assert summary.records == sum(report["records"].values())
    assert shop.cloud.find_leaks(done.said + json.dumps(report)) == []


def test_under_bearer_the_outcome_is_the_same(shop: Shop) -> None:
    """An identity that may not get a delegation key: no request for one, no SAS; it is said, recorded and verified."""
    source = shop.upload_sample(500)
    shop.cloud.proxy.without_role()
    manifest = shop.manifest(('environment = "prod"', 'environment = "prod"\nscoping = "bearer"'))
    done = shop.run(manifest=manifest)
    assert done.status == 0, done.said
    assert differences(compute(source, url=shop.raw.url()).outcome, outcome(shop)) == []
    requests = [each.request for each in shop.cloud.proxy.requests]
    assert {request.credential for request in requests} == {"bearer"}
    assert "GetUserDelegationKey" not in {request.operation for request in requests}
    assert done.err.count('scoping = "bearer"') == 1, "warned once, at launch"
    assert '    caution   scoping = "bearer": requests for data carry the access token itself' in done.out
    report = shop.report()
    assert report["caution"].startswith('scoping = "bearer"')
    summary = verify(shop.trail(), seal_digest=report["seal_digest"])
    assert summary.scoping == "bearer"
    assert {"key_acquired", "sas_issued"} & summary.counts.keys() == set()
    assert shop.cloud.find_leaks(done.said + json.dumps(report)) == []


def test_nothing_but_the_summary_is_printed(shop: Shop) -> None:
    """A person at a shell sees how the job went, and no warning of a library."""
    shop.upload_sample(100)
    done = shop.run()
    assert done.status == 0, done.said
    assert done.err == ""
    assert done.out.startswith("Job orders-")
    assert len(done.out.splitlines()) == 7
    assert "    identity  federated_file (" in done.out


def test_dead_letters_say_where_they_stood(shop: Shop) -> None:
    """Blob, byte offset, reason and the line itself."""
    shop.upload_sample(100)
    for name in shop.raw.list("orders/"):
        shop.raw.delete(name)
    shop.raw.upload("orders/1.jsonl", '{"order_id":"Zoë"}\r\n\r\nno order\n'.encode())
    done = shop.run()
    assert done.status == 0, done.said
    letters = [
        json.loads(line)
        for name in shop.curated.list("orders/run/dead/part-")
        for line in shop.curated.download(name).splitlines()
    ]
    source = shop.raw.url("orders/1.jsonl")
    assert sorted(letters, key=lambda letter: letter["offset"]) == [
        {
            "source": source,
            "offset": 0,
            "reason": "ValueError: quantity is not a whole number from 1 to 10,000",
            "record": '{"order_id":"Zoë"}',
        },
        {
            "source": source,
            "offset": 23,
            "reason": "JSONDecodeError: Expecting value: line 1 column 1 (char 0)",
            "record": "no order",
        },
    ]


def test_a_second_run_into_the_same_output_changes_nothing(shop: Shop) -> None:
    """It fails, says which job was there before, and leaves what that one wrote."""
    shop.upload_sample(300)
    assert shop.run().status == 0
    first = {name: shop.curated.download(name) for name in shop.curated.list()}
    again = shop.run()
    assert again.status == 1
    assert again.err.startswith("BlobExists: ")
    assert "fix:" in again.err
    assert {name: shop.curated.download(name) for name in shop.curated.list()} == first
    assert shop.report()["outcome"] == "failed"
    verify(shop.trail(), seal_digest=shop.report()["seal_digest"])
