"""What Dataflow would be sent: `pipelines.orders` with `--runner=DataflowRunner`, as far as the SDK goes by itself.

With `--template_location` and a folder to stage to, DataflowRunner makes all of it from the options, and writes it
where it is told to: the job's description, and the graph. It was never run there.
"""

from __future__ import annotations

import base64
import bz2
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from beam_entra.io.filesystem import BEAM_PLUGIN
from tests.engines.fetch import DATAFLOW
from tests.pipelines.conftest import Shop

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

IMAGE = "registry.example/beam-entra:1"
TEMP = "gs://bucket/temp"
# Python runs a module of this name at its start. The SDK goes on without some answers, so what is refused is noted.
LOOPBACK_ONLY = """\
import sys

def refuse_others(event, args):
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if host not in (None, "localhost", "127.0.0.1", "::1"):
        with open({refused!r}, "a") as refused:
            print(host, file=refused)
        raise PermissionError(f"not loopback: {{host}}")

sys.addaudithook(refuse_others)
"""


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes from here on find what DataflowRunner imports, no Google identity, and no network but this machine's.

    The file names whatever else they have asked for.
    """
    assert DATAFLOW.exists(), f"{DATAFLOW.name}: make engines"
    refused, modules = tmp_path / "refused", tmp_path / "modules"
    modules.mkdir()
    (modules / "sitecustomize.py").write_text(LOOPBACK_ONLY.format(refused=str(refused)), "utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(modules), str(DATAFLOW)]))
    call = "import socket; socket.create_connection(('192.0.2.1', 443))"
    assert subprocess.run([sys.executable, "-c", call], capture_output=True, check=False).returncode == 1
    assert refused.read_text("utf-8") == "192.0.2.1\n", "it is held to loopback"
    refused.write_text("", "utf-8")
    return refused


def unpacked(proto: bytes) -> bytes:
    """A graph with its pickles, which Beam packs."""
    packed = re.findall(rb"QlpoO[A-Za-z0-9+/]+=*", proto)
    assert packed, "Beam packs pickles in another way now: mend this test"
    return proto + b"".join(bz2.decompress(base64.b64decode(part)) for part in packed)


def test_what_dataflow_would_be_sent(shop: Shop, refused: Path) -> None:
    """One environment, with the image of the options; scope and plugin; nothing secret, and no traffic."""
    staged, template = shop.folder / "staged", shop.folder / "template.json"
    staged.mkdir()
    done = shop.run(
        "--no_auth",
        runner="DataflowRunner",
        prism_location=None,
        project="a-project",
        region="europe-west4",
        temp_location=TEMP,
        sdk_container_image=IMAGE,
        template_location=str(template),
        staging_location=str(staged),
        dataflow_endpoint="http://localhost:1",  # only with a local one may the staging location be a folder
    )
    assert done.status == 0, done.said
    assert refused.read_text("utf-8") == ""
    description = template.read_bytes()
    environment = json.loads(description)["environment"]
    assert environment["tempStoragePrefix"].endswith("bucket/temp")
    (pool,) = environment["workerPools"]
    (container,) = pool["sdkHarnessContainerImages"]
    assert (pool["workerHarnessContainerImage"], container["containerImage"]) == (IMAGE, IMAGE)
    job = shop.report()["job"]
    options = environment["sdkPipelineOptions"]["options"]
    assert json.loads(options["entra_job_scope"])["job"] == job
    assert BEAM_PLUGIN in options["beam_plugins"]

    graph = beam_runner_api_pb2.Pipeline.FromString((staged / "pipeline.pb").read_bytes())
    ((name, docker),) = graph.components.environments.items()
    assert name == container["environmentId"]
    assert docker.urn == "beam:env:docker:v1"
    assert beam_runner_api_pb2.DockerPayload.FromString(docker.payload).container_image == IMAGE
    pickles = unpacked(graph.SerializeToString())
    assert job.encode() in pickles

    assert shop.cloud.tenant.secrets, "the launcher has got its token"
    sent = [path.read_bytes() for path in staged.iterdir()]
    assert shop.cloud.find_leaks(b"".join([description, pickles, *sent])) == []
    assert shop.cloud.find_leaks(done.said) == []
