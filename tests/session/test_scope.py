"""The job scope: what travels with the pipeline. It says everything that a worker needs, and holds no secret."""

from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime

import pytest

from beam_entra.access import AccessManifest
from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError
from beam_entra.session import JobScope

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
MANIFEST = AccessManifest.parse(
    """
    pipeline = "orders"
    environment = "prod"
    [identity]
    tenant = "contoso.onmicrosoft.com"
    client = "0b8e22f4-8f2d-4c1a-9b54-6b1c0d3e5a77"
    credential = "client_secret"
    client_secret = "env:ORDERS_SECRET"
    [lifetime]
    job = "2h"
    [grants]
    read = ["abfss://raw@contosolake.dfs.core.windows.net/orders/"]
    [audit]
    path = "abfss://audit@contosolake.dfs.core.windows.net/trails/"
    """,
    file="orders.access.toml",
)
SCOPE = JobScope.launch(MANIFEST, now=NOW)


def test_a_launch_fixes_the_jobs_end():
    """The deadline is launch plus the manifest's life, in whole seconds: those are what Storage counts in."""
    assert SCOPE.launched == NOW
    assert SCOPE.deadline == datetime(2026, 3, 1, 14, 0, 0, tzinfo=UTC)


def test_a_job_has_a_folder_of_its_own():
    """Two launches at one moment are two jobs; each has its folder below the audit path."""
    jobs = {JobScope.launch(MANIFEST, now=NOW).job for _ in range(50)}
    assert len(jobs) == 50
    assert all(job.startswith("orders-20260301T120000Z-") for job in jobs)
    assert str(SCOPE.folder) == f"{MANIFEST.audit}{SCOPE.job}/"


def test_a_launch_checks_the_credential():
    """A credential that cannot work is found where the job is launched, not on a hundred workers."""
    unknown = replace(MANIFEST, identity=replace(MANIFEST.identity, credential="managed"))
    with pytest.raises(ConfigError, match="no credential source 'managed'"):
        JobScope.launch(unknown, now=NOW)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_it_pickles(protocol):
    """It arrives on a worker as it left."""
    assert pickle.loads(pickle.dumps(SCOPE, protocol)) == SCOPE  # noqa: S301 - made in this line


def test_it_travels_as_json():
    """Pipeline options are text: it comes back equal, through the checks of a manifest."""
    assert JobScope.from_json(SCOPE.to_json()) == SCOPE
    assert JobScope.from_json(json.dumps(json.loads(SCOPE.to_json()))) == SCOPE


def test_it_is_frozen():
    """Nobody changes it on the way."""
    with pytest.raises(FrozenInstanceError):
        SCOPE.deadline = NOW


def tampered(change) -> str:
    """The JSON of the scope, with something changed."""
    fields = json.loads(SCOPE.to_json())
    change(fields)
    return json.dumps(fields)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "not json",
        tampered(lambda fields: fields.pop("deadline")),
        tampered(lambda fields: fields.update(deadline="tomorrow")),
        tampered(lambda fields: fields["manifest"].update(extra=1)),
        tampered(lambda fields: fields["manifest"]["grants"].update(read=["abfss://raw@contosolake/../"])),
    ],
    ids=["nothing", "a list", "no fields", "no JSON", "no deadline", "no time", "a setting too many", "no path"],
)
def test_what_is_no_scope_is_refused(text):
    """Another version's scope, or something else, is a ConfigError that says what to do."""
    with pytest.raises(ConfigError, match="no job scope that this version can read") as caught:
        JobScope.from_json(text)
    assert "the version of beam_entra that the workers have" in caught.value.hint


def test_a_scope_without_a_time_zone_is_refused():
    """A deadline that could mean several moments is none."""
    with pytest.raises(ConfigError):
        JobScope.from_json(tampered(lambda fields: fields.update(deadline="2026-03-01T14:00:00")))


def test_it_holds_no_secret(job):
    """Of a job that runs against the cloud: neither pickle, JSON nor repr holds a token, assertion or key."""
    session = job.session()
    with session.bundle("read") as bundle:
        bundle.properties(job.source())
    for shown in (pickle.dumps(job.scope), job.scope.to_json(), repr(job.scope), str(job.scope.identity)):
        assert job.cloud.find_leaks(shown) == []
    assert job.scope.deadline > utc_now()
