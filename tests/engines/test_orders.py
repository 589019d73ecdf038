"""`pipelines.orders` on real engines: the same totals, one sealed trail, a token a process, no secret under way."""

from __future__ import annotations

import base64
import bz2
import json
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_job_api_pb2

from beam_entra.audit.verify import verify
from pipelines.demo.totals import Outcome, compute, differences, read_outputs
from tests.engines.clusters import JobServer
from tests.engines.conftest import Boot
from tests.pipelines.conftest import Shop, ended

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

ORDERS = 3000
TIME_S = 120


def outcome(shop: Shop) -> Outcome:
    """What lies below the output."""
    prefix = "orders/run/"
    names = [name.removeprefix(prefix) for name in shop.curated.list(prefix)]
    return read_outputs(names, lambda name: shop.curated.download(prefix + name))


def segments(shop: Shop) -> list[Counter[str]]:
    """The number of records by kind, in each segment of the last run's trail; and the process that wrote it."""
    trail = shop.trail()
    read = [[json.loads(line) for line in trail.read(name).splitlines()] for name in trail.names()]
    opened = [records for records in read if records[0]["kind"] == "segment_opened"]
    return [Counter({"pid": records[0]["pid"]}) + Counter(each["kind"] for each in records) for records in opened]


def run(shop: Shop, *flags: str, **changed: str | None) -> set[int]:
    """Run it, hold its outcome and its trail against what was promised; the processes that accessed anything."""
    expected = compute(shop.upload_sample(ORDERS), url=shop.raw.url())
    launched = shop.launch(*flags, **changed)
    try:
        out, err = launched.communicate(timeout=TIME_S)
    except subprocess.TimeoutExpired as late:
        launched.send_signal(signal.SIGINT)  # so that it stops the job server that it has started
        pytest.fail(f"not done after {TIME_S} s\n{ended(launched).said}\n{late.stderr!r}")
    said = f"exit code {launched.returncode}\n{out}\n{err}"
    assert launched.returncode == 0, said
    assert differences(expected.outcome, outcome(shop)) == []
    report = shop.report()
    assert report["outcome"] == "ok"
    summary = verify(shop.trail(), seal_digest=report["seal_digest"])
    assert summary.open_bundles == 0
    wrote = segments(shop)
    pids = {each["pid"] for each in wrote}
    assert len(pids) == len(wrote) == len(summary.segments), "a segment for each process, and none else"
    assert {each["token_acquired"] for each in wrote} == {1}, "one token for each process and audience"
    assert shop.cloud.find_leaks(said + json.dumps(report)) == []
    assert launched.pid in pids
    return pids - {launched.pid}


def submitted(server: JobServer) -> tuple[bytes, dict[str, object]]:
    """The last job's proto, its pickles unpacked, and its options, as the job server was sent them."""
    sent = [request for method, request in server.listener.heard if method == "Prepare"]
    job = beam_job_api_pb2.PrepareJobRequest.FromString(sent[-1])
    proto = job.pipeline.SerializeToString()
    packed = re.findall(rb"QlpoO[A-Za-z0-9+/]+=*", proto)
    assert packed, "Beam packs pickles in another way now: mend this test"
    assert b"abfss://" in proto + b"".join(bz2.decompress(base64.b64decode(part)) for part in packed)
    everything = sent[-1] + b"".join(bz2.decompress(base64.b64decode(part)) for part in packed)
    return everything, dict(job.pipeline_options)


def check_submission(shop: Shop, server: JobServer) -> None:
    """What a job server, and who reads its database, gets to see: the scope, and nothing that opens anything."""
    everything, options = submitted(server)
    assert shop.report()["job"].encode() in everything
    assert "beam:option:entra_job_scope:v1" in options
    assert "beam_entra.io.filesystem" in repr(options["beam:option:beam_plugins:v1"])
    assert shop.cloud.find_leaks(everything) == []
    assert shop.cloud.find_leaks(server.said()) == [], "nor does anything of it stand in the logs"
    assert shop.report()["job"] not in server.said().replace("\\", ""), "a worker logs no options"


def test_in_two_worker_processes(shop: Shop) -> None:
    """DirectRunner's own processes."""
    workers = run(shop, "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    assert len(workers) == 2


def test_on_prism(shop: Shop, prism: Path) -> None:
    """Prism runs a worker in the launcher's process."""
    workers = run(shop, runner="PrismRunner", prism_location=str(prism))
    assert workers == set()


def test_on_prism_with_a_worker_process(shop: Shop, prism: Path, boot: Boot) -> None:
    """The same with the worker that the package ships."""
    environment = {"environment_type": "PROCESS", "environment_config": boot.config}
    workers = run(shop, runner="PrismRunner", prism_location=str(prism), **environment)
    assert workers
    assert workers <= boot.pids()


def test_on_a_flink_cluster(shop: Shop, flink: JobServer, boot: Boot) -> None:
    """Parallelism 4 over two TaskManagers, each with a worker process."""
    flags = {"environment_type": "PROCESS", "environment_config": boot.config, "parallelism": "4"}
    workers = run(shop, runner="FlinkRunner", prism_location=None, job_endpoint=flink.endpoint, **flags)
    assert workers <= boot.pids()
    assert len(workers) == 2
    check_submission(shop, flink)


def test_on_a_spark_cluster(shop: Shop, spark: JobServer, boot: Boot) -> None:
    """Two executors, each with worker processes of its own."""
    flags = {"environment_type": "PROCESS", "environment_config": boot.config}
    workers = run(shop, runner="SparkRunner", prism_location=None, job_endpoint=spark.endpoint, **flags)
    assert workers <= boot.pids()
    assert len(workers) >= 2
    check_submission(shop, spark)
