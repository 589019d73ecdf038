"""The job graph for Dataflow, as far as the SDK makes it without Google Cloud; it was never run there."""

from __future__ import annotations

import base64
import bz2
import re
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.transforms import environments

from beam_entra import JsonLines, ReadFromBlob, ScopedPipeline, WriteToBlob
from beam_entra.io.filesystem import BEAM_PLUGIN
from beam_entra.io.options import EntraOptions

IMAGE = "registry.example/beam-entra:1"


def build(lake: Any) -> ScopedPipeline:
    """A job for Dataflow; nothing has been sent."""
    pipeline: ScopedPipeline = lake.pipeline(
        "--runner=DataflowRunner",
        "--project=a-project",
        "--region=r",
        "--temp_location=gs://bucket/temp",
        "--staging_location=gs://bucket/staging",
        f"--sdk_container_image={IMAGE}",
        "--dry_run=True",
    )
    read = pipeline | ReadFromBlob(lake.raw.url("in/*"), JsonLines())
    read | beam.Reshuffle() | WriteToBlob(lake.curated.url("out/"), JsonLines())
    return pipeline


def unpacked(proto: bytes) -> bytes:
    """A graph with its pickles, which Beam packs."""
    return proto + b"".join(bz2.decompress(base64.b64decode(at)) for at in re.findall(rb"QlpoO[A-Za-z0-9+/]+=*", proto))


def test_the_graph_holds_the_scope_the_image_and_no_secret(lake: Any) -> None:
    """The graph that `DataflowRunner` would send: one environment, the image that was asked for, nothing secret."""
    pipeline = build(lake)
    token = pipeline.session.broker.get("https://storage.azure.com").secret.reveal()
    graph = pipeline.to_runner_api(default_environment=environments.DockerEnvironment.from_container_image(IMAGE))
    (docker,) = graph.components.environments.values()
    assert docker.urn == "beam:env:docker:v1"
    assert IMAGE.encode() in docker.payload
    proto = unpacked(graph.SerializeToString())
    assert pipeline.scope.job.encode() in proto
    assert token.encode() not in proto
    assert lake.cloud.find_leaks(proto) == []
    options = pipeline.options.get_all_options(drop_default=True)
    assert lake.cloud.find_leaks(repr(options)) == []
    assert options["beam_plugins"] == [BEAM_PLUGIN]
    assert pipeline.options.view_as(EntraOptions).job_scope() == pipeline.scope
    pipeline.seal()


@pytest.mark.engine
def test_a_dry_run(lake: Any) -> None:
    """All that the runner does before it sends: needs the SDK's extra `gcp`, and no network."""
    pytest.importorskip("google.api_core")
    pipeline = build(lake)
    with pipeline:
        pass
    job = pipeline.result.job
    shown = repr(vars(job)).encode() + job.proto_pipeline.SerializeToString()
    assert lake.cloud.find_leaks(unpacked(shown)) == []
    assert {each.urn for each in job.proto_pipeline.components.environments.values()} == {"beam:env:docker:v1"}
    assert all(IMAGE.encode() in each.payload for each in job.proto_pipeline.components.environments.values())
