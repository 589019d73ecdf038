"""A desk in front of the local cloud's Storage: the room's own service, with SAS minted as the test says."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest

from beam_entra.access import AccountSettings, IdentitySettings, SasSpec
from beam_entra.clock import utc_now
from beam_entra.identity import STORAGE_AUDIENCE, EntraSource
from beam_entra.paths import BlobPath
from beam_entra.secret import Secret
from beam_entra.storage import (
    Authorization,
    BlobProperties,
    BlobService,
    DelegationKey,
    Exchange,
    connection_pool,
    mint,
)
from beam_entra.storage.exchange import Authorise
from beam_entra.storage.transport import ConnectionPool
from beam_entra.testing.local import LocalCloud, LocalContainer

ACCOUNT = "contosolake"
LONG = timedelta(minutes=10)


def identity_of(cloud: LocalCloud) -> IdentitySettings:
    """The cloud's job."""
    return IdentitySettings(
        tenant=cloud.tenant_id,
        client=cloud.client_id,
        credential="federated_file",
        settings={"assertion_file": str(cloud.assertion_file)},
        authority=cloud.authority,
        ca_file=str(cloud.ca_file),
    )


class Desk:
    """One container, the service, and a delegation key to mint SAS with."""

    def __init__(self, cloud: LocalCloud, container: LocalContainer, key: DelegationKey) -> None:
        self.cloud, self.container, self.key = cloud, container, key
        self.paused: list[float] = []
        self.service = self.service_at()
        self.numbers = itertools.count()

    def service_at(
        self,
        endpoint: str = "",
        *,
        ca_file: str | None = None,
        pool: Callable[[str], ConnectionPool] = connection_pool,
        pause: Callable[[float], object] | None = None,
    ) -> BlobService:
        """A service that finds the account there. Its pauses take no time, and are noted."""
        settings = AccountSettings(
            endpoint=endpoint or self.cloud.endpoint(ACCOUNT),
            emulator=True,
            ca_file=str(self.cloud.ca_file) if ca_file is None else ca_file,
        )
        exchange = Exchange(pool, pause=pause or self.paused.append)
        return BlobService({ACCOUNT: settings}.__getitem__, exchange=exchange)

    def path(self, name: str = "a.jsonl") -> BlobPath:
        """A blob of the container."""
        return BlobPath(account=ACCOUNT, container=self.container.name, name=name)

    def sas(
        self,
        name: str,
        permissions: str,
        *,
        resource: Literal["blob", "container", "directory"] = "blob",
        expires: datetime | None = None,
    ) -> Secret:
        """A SAS for a blob of the container, or for the container."""
        spec = SasSpec(
            account=ACCOUNT,
            container=self.container.name,
            name=name,
            resource=resource,
            permissions=permissions,
            expires=expires or datetime.now(UTC) + LONG,
            guarded_prefix=name,
        )
        return mint(spec, self.key, correlation=str(uuid.uuid4()), sign_correlation=False)

    def may(self, name: str, permissions: str, *, container: bool = False) -> Authorise:
        """Authorises each attempt with such a SAS."""
        sas = self.sas("" if container else name, permissions, resource="container" if container else "blob")
        return lambda: Authorization(sas=sas)

    def next_id(self) -> str:
        """A client request id."""
        return f"test-{next(self.numbers)}"

    def upload(self, data: bytes, name: str = "a.jsonl") -> BlobProperties:
        """Put a blob there, past every SAS, and look at it."""
        self.container.upload(name, data)
        return self.service.properties(self.path(name), self.may(name, "r"), self.next_id())[0]

    def read(self, blob: BlobProperties, start: int = 0, stop: int | None = None) -> bytes:
        """Read with a reader's SAS."""
        end = blob.size_bytes if stop is None else stop
        authorise = self.may(blob.path.name, "r")
        return bytes(self.service.read_range(blob, start, end, authorise, self.next_id, lambda *_: None))

    def stage(self, data: bytes, block: str, name: str = "a.jsonl") -> None:
        """Stage a block with a writer's SAS."""
        self.service.put_block(self.path(name), block, data, self.may(name, "w"), self.next_id())


@pytest.fixture(scope="session")
def delegation_key(beam_entra_cloud: LocalCloud) -> DelegationKey:
    """One key for the run, as a worker has it."""
    settings = AccountSettings(
        endpoint=beam_entra_cloud.azurite.endpoint(ACCOUNT), emulator=True, ca_file=str(beam_entra_cloud.ca_file)
    )
    token = EntraSource(identity_of(beam_entra_cloud), clock=utc_now).acquire(STORAGE_AUDIENCE)
    expires = datetime.now(UTC) + timedelta(hours=1)
    return BlobService({ACCOUNT: settings}.__getitem__).delegation_key(
        ACCOUNT, lambda: token, expires=expires, client_request_id="test"
    )[0]


@pytest.fixture
def desk(
    beam_entra_cloud: LocalCloud, beam_entra_containers: Callable[..., LocalContainer], delegation_key: DelegationKey
) -> Desk:
    """A desk with a container of the test's own."""
    return Desk(beam_entra_cloud, beam_entra_containers("desk"), delegation_key)
