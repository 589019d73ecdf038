"""`pipelines.orders` on real engines: the same totals, one sealed trail, a token a process, no secret under way.

What job servers are sent is looked at in front of them. DirectRunner has none: what its worker processes get is what
`tests/io/test_no_secret_travels.py` looks at.
"""

from __future__ import annotations

import base64
import bz2
import json
import os
import re
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_job_api_pb2

from beam_entra.audit.verify import verify
from beam_entra.session.sealing import seal_late
from beam_entra.testing.storage_requests import matching
from pipelines.demo.totals import Outcome, compute, differences, read_outputs
from tests.engines.clusters import Flink, JobServer, WorkerPool
from tests.engines.fetch import PRISM
from tests.engines.plugin import Boot
from tests.launch.terminal import Terminal
from tests.pipelines.conftest import Shop, ended

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ORDERS = 3000
TIME_S = 300  # a busy machine
HELD = "orders/2026-03-04.jsonl"
FROM_THE_TRAIL = r"left; [1-9]\d* blobs, [\d.]+ [kM]B read; (?:[^;]* written; )?[23] tokens"  # records are not in it


def outcome(shop: Shop) -> Outcome:
    """What lies below the output."""
    prefix = "orders/run/"
    names = [name.removeprefix(prefix) for name in shop.curated.list(prefix)]
    return read_outputs(names, lambda name: shop.curated.download(prefix + name))


def is_at_work(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def segments(shop: Shop) -> list[Counter[str]]:
    """The number of records by kind, in each segment of the last run's trail; and the process that wrote it."""
    trail = shop.trail()
    read = [[json.loads(line) for line in trail.read(name).splitlines()] for name in trail.names()]
    opened = [records for records in read if records[0]["kind"] == "segment_opened"]
    return [Counter({"pid": records[0]["pid"]}) + Counter(each["kind"] for each in records) for records in opened]


def run(shop: Shop, *flags: str, terminal: Terminal | None = None, **changed: str | None) -> set[int]:
    """Run it, hold its outcome and its trail against what was promised; the processes that accessed anything.

    With a terminal, one of the inputs is held until the line there tells what workers elsewhere have done.
    """
    expected = compute(shop.upload_sample(ORDERS), url=shop.raw.url())
    if terminal is None:
        launched = shop.launch(*flags, **changed)
    else:
        held = shop.cloud.proxy.hold(where=matching("GetBlob", container=shop.raw.name, blob=HELD))
        launched = shop.launch(*flags, stderr=terminal.slave, **changed)
        try:
            terminal.wait_for(FROM_THE_TRAIL, timeout_s=TIME_S)
        except BaseException:
            launched.send_signal(signal.SIGINT)
            raise
        finally:
            held.gate.open()
    try:
        out, err = launched.communicate(timeout=TIME_S)
    except subprocess.TimeoutExpired as late:
        launched.send_signal(signal.SIGINT)  # so that it stops the job server that it has started
        pytest.fail(f"not done after {TIME_S} s\n{ended(launched).said}\n{late.stderr!r}")
    said = f"exit code {launched.returncode}\n{out}\n{terminal.written if terminal else err}"
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
    packed = re.findall(rb"QlpoO[A-Za-z0-9+/]+=*", job.pipeline.SerializeToString())
    assert packed, "Beam packs pickles in another way now: mend this test"
    everything = sent[-1] + b"".join(bz2.decompress(base64.b64decode(part)) for part in packed)
    assert b"abfss://" in everything
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


def test_on_prism(shop: Shop, prism: JobServer) -> None:
    """Prism has its worker in the launcher's process."""
    workers = run(shop, runner="PrismRunner", prism_location=None, job_endpoint=prism.endpoint)
    assert workers == set()
    check_submission(shop, prism)


def test_on_prism_with_a_worker_pool(shop: Shop, prism: JobServer, pool: WorkerPool) -> None:
    """Prism, this time started by Beam, has its workers started by the pool that the package ships."""
    flags = {"environment_type": "EXTERNAL", "environment_config": pool.endpoint}
    workers = run(shop, runner="PrismRunner", prism_location=str(PRISM), **flags)
    assert workers
    assert shop.cloud.find_leaks(pool.said()) == []
    assert shop.report()["job"] not in pool.said(), "a worker logs no options"


def test_on_prism_with_a_worker_process(shop: Shop, prism: JobServer, boot: Boot) -> None:
    """The same with the worker that the package ships."""
    flags = {"environment_type": "PROCESS", "environment_config": boot.config}
    workers = run(shop, runner="PrismRunner", prism_location=None, job_endpoint=prism.endpoint, **flags)
    assert workers
    assert workers <= boot.pids()
    check_submission(shop, prism)


def test_a_worker_that_cannot_start_fails_the_job_on_prism(shop: Shop, prism: JobServer, boot: Boot) -> None:
    """Prism, which would wait for ever for a worker that dies, is told why it will do no work; so is who launched."""
    wanted = shop.folder / "requirements.txt"
    wanted.write_text("", "utf-8")
    flags = {"environment_type": "PROCESS", "environment_config": boot.config, "requirements_file": str(wanted)}
    shop.upload_sample(10)
    done = ended(shop.launch(runner="PrismRunner", prism_location=None, job_endpoint=prism.endpoint, **flags))
    assert done.status == 1, done.said
    assert "ConfigError: the job wants packages installed when a worker starts" in done.err
    assert "fix:" in done.err
    assert shop.report()["outcome"] == "failed"


def test_ctrl_c_while_prism_waits_for_a_worker(shop: Shop, prism: JobServer) -> None:
    """A worker command that does nothing leaves Prism waiting: whoever ends that gets a trail that is sealed."""
    shop.upload_sample(10)
    with socket.create_server(("127.0.0.1", 0)) as started:
        command = shop.folder / "boot"
        command.write_text(f"#!/bin/bash\nexec 3<>/dev/tcp/127.0.0.1/{started.getsockname()[1]}\n", "utf-8")
        command.chmod(0o755)
        flags = {"environment_type": "PROCESS", "environment_config": json.dumps({"command": str(command)})}
        launched = shop.launch(runner="PrismRunner", prism_location=str(PRISM), **flags)
        started.settimeout(TIME_S)
        try:
            started.accept()[0].close()
        finally:
            launched.send_signal(signal.SIGINT)
            done = ended(launched)
    assert done.status == 130, done.said
    assert "sealed, digest" in done.err
    assert "could not be sealed" not in done.err
    assert shop.report()["outcome"] == "interrupted"
    assert verify(shop.trail()).seal.outcome == "interrupted"


@pytest.mark.parametrize(
    ("sent", "to_all", "status", "processes"),
    [
        (signal.SIGINT, False, 130, True),
        (signal.SIGINT, True, 130, True),
        (signal.SIGTERM, False, 143, True),
        (signal.SIGINT, True, 130, False),
    ],
    ids=["SIGINT", "Ctrl-C", "SIGTERM", "Ctrl-C, a worker in the launcher"],
)
def test_ctrl_c_while_prism_works(
    shop: Shop, prism: JobServer, boot: Boot, sent: signal.Signals, to_all: bool, status: int, processes: bool
) -> None:
    """Beam has started it, and Storage has its worker wait: none is left behind the seal, whoever gets the signal."""
    shop.upload_sample(10)
    busy = shop.cloud.proxy.respond(
        503, "ServerBusy", headers={"Retry-After": "90"}, where=matching("GetBlob", container=shop.raw.name)
    )
    flags = {"environment_type": "PROCESS", "environment_config": boot.config} if processes else {}
    launched = shop.launch(runner="PrismRunner", prism_location=str(PRISM), own_session=True, **flags)
    try:
        busy.wait_for_hits(timeout_s=TIME_S)
    finally:
        (os.killpg if to_all else os.kill)(launched.pid, sent)  # a terminal sends it to all that it has started
        done = ended(launched)
    assert done.status == status, done.said
    assert "sealed, digest" in done.err
    assert "wait_until_finish_read" not in done.err, "a thread of Beam's that has lost its job server"
    assert bool(boot.pids()) is processes
    assert not [pid for pid in boot.pids() if is_at_work(pid)]
    assert shop.report()["outcome"] == "interrupted"
    assert verify(shop.trail()).seal.outcome == "interrupted"


def test_on_a_flink_cluster(shop: Shop, flink: Flink, boot: Boot, terminal: Terminal) -> None:
    """Parallelism 4 over two TaskManagers, each with a worker process; the line on the terminal tells of their work."""
    flags = {"environment_type": "PROCESS", "environment_config": boot.config, "parallelism": "4"}
    workers = run(
        shop, terminal=terminal, runner="FlinkRunner", prism_location=None, job_endpoint=flink.endpoint, **flags
    )
    assert workers <= boot.pids()
    assert len(workers) == 2
    check_submission(shop, flink)


def test_ctrl_c_while_a_flink_cluster_works(shop: Shop, flink: Flink, boot: Boot) -> None:
    """Storage has the workers wait; who does not is told of a trail to seal when none is left, and can do it then."""
    shop.upload_sample(10)
    busy = shop.cloud.proxy.respond(
        503, "ServerBusy", headers={"Retry-After": "90"}, where=matching("GetBlob", container=shop.raw.name)
    )
    flags = {"environment_type": "PROCESS", "environment_config": boot.config, "parallelism": "4"}
    manifest = shop.manifest()
    launched = shop.launch(
        manifest=manifest, runner="FlinkRunner", prism_location=None, job_endpoint=flink.endpoint, **flags
    )
    try:
        busy.wait_for_hits(timeout_s=TIME_S)
    finally:
        launched.send_signal(signal.SIGINT)
        done = ended(launched)
    assert done.status == 130, done.said
    assert "told to cancel the job, and reports it as CANCELLED; the audit trail" in done.err
    assert "is not sealed" in done.err
    for number in (1, 2):
        flink.kill_task_manager(number)
    assert shop.curated.list() == []
    (trail,) = {name.rpartition("/")[0] for name in shop.audit.list()}
    sealed = seal_late(shop.audit.url(f"{trail}/"), manifest, shop.cloud.endpoints_file)
    assert sealed.record.outcome == "late"


def test_on_a_spark_cluster(shop: Shop, spark: JobServer, boot: Boot) -> None:
    """Two executors, each with worker processes of its own."""
    flags = {"environment_type": "PROCESS", "environment_config": boot.config}
    workers = run(shop, runner="SparkRunner", prism_location=None, job_endpoint=spark.endpoint, **flags)
    assert workers <= boot.pids()
    assert len(workers) >= 2
    check_submission(shop, spark)
