"""The witnesses, started once for all tests that ask for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from beam_entra.testing.local import LocalCloud
from tests.pipelines.conftest import shop  # noqa: F401  # a fixture
from tests.witness.emulators import EntraEmulator, Front, VaultEmulator
from tests.witness.npm_servers import Emulate, EmulateFront, OidcProvider

ENTRAS = "https://sts.windows.net/{tenant}/"


def pytest_configure(config: pytest.Config) -> None:
    """The marker is used here alone."""
    config.addinivalue_line("markers", "witness: against a server that nobody here wrote; skipped where it is not")


@pytest.fixture(scope="session")
def emulator(beam_entra_cloud: LocalCloud) -> Iterator[EntraEmulator]:
    """entra-emulator as it is."""
    with EntraEmulator(beam_entra_cloud.certificates) as up:
        yield up


@pytest.fixture(scope="session")
def front(beam_entra_cloud: LocalCloud) -> Iterator[Front]:
    """An entra-emulator whose tokens carry `oid` and `uti`."""
    with (
        Front(beam_entra_cloud.certificates) as before,
        EntraEmulator(beam_entra_cloud.certificates, authority=before.url) as up,
    ):
        before.emulator = up
        yield before


@pytest.fixture(scope="session")
def provider(beam_entra_cloud: LocalCloud) -> Iterator[OidcProvider]:
    """oidc-provider in Entra's place; Azurite takes its tokens."""
    with OidcProvider(beam_entra_cloud.certificates, issuer=ENTRAS) as up:
        yield up


@pytest.fixture(scope="session")
def outside(beam_entra_cloud: LocalCloud) -> Iterator[OidcProvider]:
    """oidc-provider as anybody's OpenID provider."""
    with OidcProvider(beam_entra_cloud.certificates) as up:
        yield up


@pytest.fixture
def emulate_front(emulate_up: EmulateFront) -> Iterator[EmulateFront]:
    """Emulate behind TLS, with its tokens as they are."""
    emulate_up.issued.clear()
    yield emulate_up
    emulate_up.whole = False


@pytest.fixture(scope="session")
def emulate_up(beam_entra_cloud: LocalCloud) -> Iterator[EmulateFront]:
    """The same, up for the whole run."""
    with (
        EmulateFront(beam_entra_cloud.certificates) as before,
        Emulate(beam_entra_cloud.certificates, authority=before.url) as up,
    ):
        before.emulator = up
        yield before


@pytest.fixture
def vault(beam_entra_cloud: LocalCloud, emulator: EntraEmulator) -> Iterator[VaultEmulator]:
    """azure-keyvault-emulator, which takes the emulator's tokens."""
    with VaultEmulator(beam_entra_cloud.certificates, emulator) as up:
        yield up
