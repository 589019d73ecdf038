"""The pytest plugin: one local cloud for the whole run, fresh containers and no faults for each test.

    pytest_plugins = ["beam_entra.testing.plugin"]        # in the top-level conftest.py, unless it is installed

| fixture | scope | what |
|---|---|---|
| `beam_entra_cloud` | session | a `LocalCloud` with a proxy, started when the first test asks for it |
| `beam_entra_containers` | function | `make(purpose, account=...)` gives a fresh `LocalContainer`, its name its own |
| `beam_entra_container` | function | one of those |
| `beam_entra_clock` | function | a `FakeClock` |

A test that uses the cloud, directly or through another fixture, starts and ends without faults and without records.
Accounts come from the ini setting `beam_entra_accounts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from beam_entra.testing.clock import FakeClock
    from beam_entra.testing.local import LocalCloud, LocalContainer

pytest.register_assert_rewrite("beam_entra.testing.filesystem_contract")

__all__ = ["beam_entra_clock", "beam_entra_cloud", "beam_entra_container", "beam_entra_containers"]

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini setting for the accounts."""
    parser.addini(
        "beam_entra_accounts",
        "storage accounts of the local cloud",
        type="args",
        default=["contosolake", "fabrikamlake"],
    )


@pytest.fixture(scope="session")
def beam_entra_cloud(pytestconfig: pytest.Config) -> Iterator[LocalCloud]:
    """A local cloud with a proxy, up for the whole run."""
    from beam_entra.testing.local import LocalCloud  # noqa: PLC0415  # a run without the cloud pays nothing for it

    with LocalCloud(accounts=pytestconfig.getini("beam_entra_accounts")) as cloud:
        yield cloud


@pytest.fixture(autouse=True)
def _beam_entra_reset(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test meets the faults or the records of another."""
    if "beam_entra_cloud" not in request.fixturenames:
        yield
        return
    cloud: LocalCloud = request.getfixturevalue("beam_entra_cloud")
    cloud.reset()
    yield
    cloud.reset()


@pytest.fixture
def beam_entra_containers(beam_entra_cloud: LocalCloud) -> Callable[..., LocalContainer]:
    """A function that makes a container with a name of its own: `make("raw")`, `make("raw", account="...")`."""

    def make(purpose: str = "test", *, account: str = "") -> LocalContainer:
        name = f"{purpose}-{next(_numbers):04d}"
        return beam_entra_cloud.create_container(account or beam_entra_cloud.accounts[0], name)

    return make


@pytest.fixture
def beam_entra_container(beam_entra_containers: Callable[..., LocalContainer]) -> LocalContainer:
    """A container of this test's own."""
    return beam_entra_containers()


@pytest.fixture
def beam_entra_clock() -> FakeClock:
    """A clock that stands at the time of its making until the test moves it."""
    from beam_entra.testing.clock import FakeClock  # noqa: PLC0415  # see beam_entra_cloud

    return FakeClock()
