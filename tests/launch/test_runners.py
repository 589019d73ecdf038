"""The same job on each way to run it on this machine: one process, several threads, several processes."""

from __future__ import annotations

import json
from typing import Any

import pytest

DIRECT = "--runner=DirectRunner", "--prism_location=/nonexistent"  # not the Prism of whoever runs the tests
RUNNERS = {
    "one process": (*DIRECT,),
    "several threads": (*DIRECT, "--direct_running_mode=multi_threading", "--direct_num_workers=3"),
    "several processes": (*DIRECT, "--direct_running_mode=multi_processing", "--direct_num_workers=2"),
}


@pytest.mark.parametrize("flags", RUNNERS.values(), ids=RUNNERS)
def test_a_job_gives_the_same_on_every_runner(lake: Any, flags: tuple[str, ...]) -> None:
    """Each record once; one sealed trail that verifies, with a segment for each process that accessed anything."""
    for number in range(4):
        lake.upload_json(f"in/{number}.jsonl", [{"id": number * 500 + at} for at in range(500)])
    launched = lake.launch(
        "--input", lake.raw.url("in/*.jsonl"), "--output", lake.curated.url("out/"), "--shards=3", flags=flags
    )
    printed, errors = launched.communicate(timeout=60)
    assert launched.returncode == 0, errors
    report = json.loads(printed.splitlines()[-1])
    assert report["outcome"] == "ok"
    assert sorted(value["id"] for value in lake.written()) == list(range(2000))
    assert [blob["etag"] for blob in lake.success()["blobs"]] == [lake.etag(lake.curated, n) for n in lake.parts()]
    trail = lake.trail(report["job"])
    summary = trail.verify()
    opened = trail.records("segment_opened")
    pids = {record["pid"] for record in opened}
    assert len(pids) == len(summary.segments)
    assert len(pids) == 1 or flags == RUNNERS["several processes"]
    if flags == RUNNERS["several processes"]:
        assert len(pids) == 3, "two workers and the launcher"
        launchers = next(record["segment"] for record in opened if record["pid"] == launched.pid)
        assert lake.raw.url().encode() not in trail.read(launchers), "it is the workers that read"
    assert summary.open_bundles == 0
    assert report["metrics"]["records_read"] == report["metrics"]["records_written"] == 2000


def test_a_workers_error_arrives_as_what_it_was_from_another_process(lake: Any) -> None:
    """Worker processes send text; the launcher tells type, cause and fix from it, once, and seals the trail."""
    lake.upload_json("in/a.jsonl", [{"id": 1}])
    launched = lake.launch(
        "--input",
        lake.raw.url("in/*.jsonl"),
        "--output",
        lake.curated.url("out/"),
        "--look_at",
        lake.raw.url("secret/*"),
        flags=RUNNERS["several processes"],
    )
    _, errors = launched.communicate(timeout=60)
    assert launched.returncode == 1
    told = [line for line in errors.splitlines() if line.startswith("NotGranted: ")]
    assert len(told) == 1, errors
    assert "local_job_service:Worker: severity: ERROR" not in errors, "what the launcher logs of it is held back"
    assert errors.index("\nNotGranted: ") > errors.rindex("Traceback"), "it comes last, behind the worker's own log"
    trail = lake.only_trail()
    assert trail.verify().seal.outcome == "failed"
    assert {record["path"] for record in trail.records("denied")} == {lake.raw.url("secret/")}
