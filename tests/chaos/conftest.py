"""A cloud whose Storage can be restarted, for all that is struck here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from beam_entra.testing.local import LocalCloud
from tests.chaos.job import put_orders
from tests.io.conftest import Lake

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def keeping_cloud() -> Iterator[LocalCloud]:
    """A local cloud whose blobs outlive a restart of Azurite."""
    with LocalCloud(keep_blobs=True) as cloud:
        yield cloud


@pytest.fixture
def lakes(keeping_cloud: LocalCloud, tmp_path: Path) -> Iterator[Callable[[], Lake]]:
    """A function that makes fresh containers, with orders to read."""

    def make() -> Lake:
        number = next(_numbers)
        keeping_cloud.reset()
        raw, curated, audit = (
            keeping_cloud.create_container(keeping_cloud.accounts[0], f"{name}-{number:04d}")
            for name in ("raw", "curated", "audit")
        )
        lake = Lake(cloud=keeping_cloud, raw=raw, curated=curated, audit=audit, folder=tmp_path)
        put_orders(lake)
        return lake

    yield make
    keeping_cloud.reset()
