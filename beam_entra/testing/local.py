"""Everything a job needs, on this machine: tenant, workload issuer, Azurite and proxy, up together."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from beam_entra.clock import Clock, utc_now
from beam_entra.errors import BlobNotFound, ConfigError, Diagnosis
from beam_entra.secret import Secret
from beam_entra.testing.apps import App
from beam_entra.testing.azurite import Azurite
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.issuer import WorkloadIssuer
from beam_entra.testing.proxy import StorageProxy
from beam_entra.testing.tenant import LocalTenant

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient

__all__ = [
    "DEFAULT_SUBJECT",
    "AssertionKeeper",
    "BlobAdmin",
    "LocalCloud",
    "LocalContainer",
    "endpoints_toml",
    "past_proxies",
]

DEFAULT_SUBJECT = "system:serviceaccount:beam:worker"
_REWRITE_AT = 0.5  # of an assertion's life
_LOOPBACK = ("127.0.0.1", "localhost")
_NO_PROXY = ("NO_PROXY", "no_proxy")  # who reads one may not read the other


def endpoints_toml(*, authority: str, ca_file: Path, assertion_file: Path, accounts: Mapping[str, str]) -> str:
    """The endpoints overlay: where the services are on this machine. `accounts` maps names to URLs."""
    quoted = json.dumps  # a JSON string is a TOML basic string
    lines = ["[entra]", f"authority = {quoted(authority)}", f"ca_file = {quoted(str(ca_file))}", ""]
    for account, endpoint in accounts.items():
        lines += [f"[accounts.{account}]", f"endpoint = {quoted(endpoint)}", "emulator = true"]
        lines += [f"ca_file = {quoted(str(ca_file))}", ""]
    lines += ["[settings]", f"assertion_file = {quoted(str(assertion_file))}"]
    return "\n".join(lines) + "\n"


def past_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep an HTTPS_PROXY away from this machine; what they except already stays excepted."""
    excepted = [host.strip() for name in _NO_PROXY for host in environment.get(name, "").split(",")]
    value = ",".join(dict.fromkeys([*filter(None, excepted), *_LOOPBACK]))
    return dict.fromkeys(_NO_PROXY, value)


@contextmanager
def _past_proxies() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _NO_PROXY}
    os.environ.update(past_proxies(os.environ))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _found(what: str) -> Iterator[None]:
    from azure.core.exceptions import ResourceNotFoundError  # noqa: PLC0415  # see BlobAdmin.client

    try:
        yield
    except ResourceNotFoundError as error:
        raise BlobNotFound(f"{what} does not exist in the local cloud", Diagnosis(status=error.status_code)) from error


class BlobAdmin:
    """Reads and writes blobs with the account keys, past every grant: to put data there and to look at the outcome."""

    def __init__(self, *, endpoints: Mapping[str, str], keys: Mapping[str, Secret], ca_file: Path) -> None:
        self._endpoints = dict(endpoints)
        self._keys = dict(keys)
        self._ca_file = ca_file
        self._lock = threading.Lock()
        self._clients: dict[str, BlobServiceClient] = {}

    @property
    def accounts(self) -> tuple[str, ...]:
        """The accounts that there are."""
        return tuple(self._keys)

    def client(self, account: str) -> BlobServiceClient:
        """The account's client; one for each account.

        Raises:
            ConfigError: There is no such account.
        """
        if account not in self._keys:
            known = ", ".join(self._keys)
            raise ConfigError(f"the local cloud has no account {account!r}", Diagnosis(hint=f"accounts are: {known}"))
        from azure.storage.blob import BlobServiceClient  # noqa: PLC0415  # 0.3 s that only data needs

        with self._lock:
            if account not in self._clients:
                self._clients[account] = BlobServiceClient(
                    self._endpoints[account],
                    credential={"account_name": account, "account_key": self._keys[account].reveal()},
                    connection_verify=str(self._ca_file),
                    use_env_settings=False,  # no proxy of the environment's
                )
            return self._clients[account]

    def create_container(self, account: str, name: str) -> None:
        """Create a container unless it is there."""
        container = self.client(account).get_container_client(name)
        if not container.exists():
            container.create_container()

    def upload(self, account: str, container: str, name: str, data: bytes) -> str:
        """Write a blob, over the old one if there is one, and return its ETag."""
        answer = self.client(account).get_blob_client(container, name).upload_blob(data, overwrite=True)
        return str(answer["etag"])

    def download(self, account: str, container: str, name: str) -> bytes:
        """A blob's bytes.

        Raises:
            BlobNotFound: There is no such blob, or no such container.
        """
        with _found(f"{account}/{container}/{name}"):
            return self.client(account).get_blob_client(container, name).download_blob().readall()

    def delete(self, account: str, container: str, name: str) -> None:
        """Delete a blob.

        Raises:
            BlobNotFound: There is no such blob, or no such container.
        """
        with _found(f"{account}/{container}/{name}"):
            self.client(account).get_blob_client(container, name).delete_blob()

    def list_blobs(self, account: str, container: str, prefix: str = "") -> list[str]:
        """The names of the blobs below a prefix, in order.

        Raises:
            BlobNotFound: There is no such container.
        """
        with _found(f"{account}/{container}"):
            return list(self.client(account).get_container_client(container).list_blob_names(name_starts_with=prefix))

    def list_containers(self, account: str) -> list[str]:
        """The names of the account's containers, in order."""
        return [str(container.name) for container in self.client(account).list_containers()]

    def close(self) -> None:
        """Close the clients' connections."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()


class LocalCloud:
    """A tenant, a workload issuer, Azurite and (unless told otherwise) a proxy in front of it, in one `with`.

    An app with a federated credential is registered, and an assertion file for it is written and kept fresh, so that
    an access manifest written for the cloud runs unchanged once it is given the `endpoints_file`. While it is up, this
    process and those that it starts reach 127.0.0.1 and localhost past any HTTPS_PROXY (NO_PROXY has them).

        with LocalCloud(accounts=["contosolake"]) as cloud:
            cloud.create_container("contosolake", "raw")
            cloud.upload("contosolake", "raw", "orders/1.jsonl", b"{}")

    Attributes:
        tenant, issuer, azurite: The services.
        proxy: The proxy in front of Azurite; an error to ask for when there is none.
        app: The registered app.
        certificates: The run's CA and server certificate, for servers of a test's own.
        ca_file, assertion_file, endpoints_file: Below `folder`.
        admin: Access with the account keys, straight to Azurite; the proxy does not see it.
    """

    tenant: LocalTenant
    issuer: WorkloadIssuer
    azurite: Azurite
    certificates: RunCertificates
    admin: BlobAdmin
    app: App

    def __init__(
        self,
        *,
        folder: Path | None = None,
        accounts: Sequence[str] = ("contosolake",),
        tenant_id: str = "",
        domains: Sequence[str] = (),
        client_id: str = "",
        subject: str = DEFAULT_SUBJECT,
        proxy: bool = True,
        keep_blobs: bool = False,
        cache: Path | None = None,
        token_life_s: int = 3600,
        assertion_life_s: float = 600,
        clock: Clock = utc_now,
    ) -> None:
        """Say what it should be; nothing is started.

        Args:
            folder: Where its files go; a temporary folder, removed at the end, when it is left out.
            tenant_id, client_id: As in the access manifest; made up when they are left out.
            domains: Other names for the tenant, such as `contoso.onmicrosoft.com`.
            subject: The `sub` of the job's assertions, for which the app has a federated credential.
            keep_blobs: Azurite keeps its blobs below `folder`, so that they outlive a restart of it.
            cache: Where Azurite is installed; see `azurite.Azurite`.
            clock: What "now" is for the tenant and the issuer. Azurite has its own.
        """
        self.folder = folder or Path()
        self.accounts = tuple(dict.fromkeys(accounts))
        self.subject = subject
        self._temporary = folder is None
        self._tenant_id, self._domains, self._client_id = tenant_id, tuple(domains), client_id
        self._with_proxy, self._keep_blobs, self._cache = proxy, keep_blobs, cache
        self._token_life_s, self._assertion_life_s, self._clock = token_life_s, assertion_life_s, clock
        self._proxy: StorageProxy | None = None
        self._up = ExitStack()

    def start(self) -> Self:
        """Bring everything up. On failure nothing stays behind.

        Raises:
            ConfigError: Azurite cannot be installed or does not start.
        """
        with ExitStack() as up:
            up.enter_context(_past_proxies())
            if self._temporary:
                self.folder = Path(tempfile.mkdtemp(prefix="beam-entra-"))
                up.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.folder = self.folder.absolute()
            self.certificates = certificates = RunCertificates.issue(self.folder)
            # Azurite takes longest: it boots while the keys of the others are made.
            keep = self.folder / "blobs" if self._keep_blobs else None
            self.azurite = Azurite(certificates, accounts=self.accounts, cache=self._cache, keep=keep)
            up.callback(self.azurite.stop)
            self.azurite.start()
            self.tenant = up.enter_context(
                LocalTenant(
                    certificates,
                    tenant_id=self._tenant_id,
                    domains=self._domains,
                    token_life_s=self._token_life_s,
                    clock=self._clock,
                )
            )
            self.issuer = up.enter_context(WorkloadIssuer(certificates, clock=self._clock))
            self.app = self.add_client(self._client_id)
            up.enter_context(
                AssertionKeeper(self.issuer, self.assertion_file, self.subject, life_s=self._assertion_life_s)
            )
            self.azurite.wait_until_ready()
            if self._with_proxy:
                self._proxy = up.enter_context(StorageProxy(certificates, self.azurite.url))
            straight = {account: self.azurite.endpoint(account) for account in self.accounts}
            self.admin = BlobAdmin(endpoints=straight, keys=self.azurite.keys, ca_file=self.ca_file)
            up.callback(self.admin.close)
            self.write_endpoints(self.endpoints_file)
            self._up = up.pop_all()
        return self

    def close(self) -> None:
        """Take everything down. Safe to call twice."""
        self._up.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- where things are

    @property
    def proxy(self) -> StorageProxy:
        """The proxy in front of Azurite."""
        if self._proxy is None:
            raise ConfigError("this local cloud has no proxy", Diagnosis(hint="LocalCloud(proxy=True)"))
        return self._proxy

    @property
    def tenant_id(self) -> str:
        """The tenant's id."""
        return self.tenant.tenant_id

    @property
    def client_id(self) -> str:
        """The registered app's client id."""
        return self.app.client_id

    @property
    def authority(self) -> str:
        """The tenant's authority."""
        return self.tenant.authority

    @property
    def ca_file(self) -> Path:
        """What a client has to trust."""
        return self.folder / "ca.pem"

    @property
    def assertion_file(self) -> Path:
        """The job's assertion, kept fresh."""
        return self.folder / "assertion.jwt"

    @property
    def endpoints_file(self) -> Path:
        """The endpoints overlay."""
        return self.folder / "endpoints.toml"

    def endpoint(self, account: str) -> str:
        """The account's URL: through the proxy when there is one."""
        return (self._proxy or self.azurite).endpoint(account)

    def write_endpoints(self, path: Path) -> Path:
        """Write the endpoints overlay for access manifests, and return its path."""
        path.write_text(
            endpoints_toml(
                authority=self.authority,
                ca_file=self.ca_file,
                assertion_file=self.assertion_file,
                accounts={account: self.endpoint(account) for account in self.accounts},
            ),
            encoding="utf-8",
        )
        return path

    def add_client(self, client_id: str = "") -> App:
        """Register one more app that the job's assertion stands for."""
        app = self.tenant.register_app(client_id)
        app.add_federated_credential(self.issuer.url, self.subject)
        return app

    # ---- data, with the account keys

    def create_container(self, account: str, name: str) -> LocalContainer:
        """Create a container unless it is there, and return a handle for it."""
        self.admin.create_container(account, name)
        return LocalContainer(account=account, name=name, admin=self.admin)

    def upload(self, account: str, container: str, name: str, data: bytes) -> str:
        """Write a blob and return its ETag."""
        return self.admin.upload(account, container, name, data)

    def download(self, account: str, container: str, name: str) -> bytes:
        """A blob's bytes."""
        return self.admin.download(account, container, name)

    def list_blobs(self, account: str, container: str, prefix: str = "") -> list[str]:
        """The names of the blobs below a prefix, in order."""
        return self.admin.list_blobs(account, container, prefix)

    # ---- for tests

    def reset(self) -> None:
        """Switch every fault off and forget what was recorded. Apps, tokens and blobs stay."""
        self.tenant.clear()
        if self._proxy is not None:
            self._proxy.clear()

    def find_leaks(self, text: str | bytes) -> list[str]:
        """What kinds of secret of this cloud stand in `text`: tokens, assertions, keys, client secrets, SAS signatures.

        Looks for everything since the last `reset`, and for assertions, keys and client secrets of the whole run.
        """
        hay = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        known = [*self.tenant.secrets, *self.issuer.assertions, *self.azurite.keys.values()]
        pairs = [(secret.what, secret.reveal()) for secret in known]
        for exchange in self._proxy.requests if self._proxy else ():
            signature = exchange.request.parameters.get("sig")
            if signature:
                encoded = exchange.request.query.partition("sig=")[2].partition("&")[0]
                pairs += [("SAS signature", signature), ("SAS signature", encoded)]
        return sorted({what for what, secret in pairs if secret.encode("utf-8") in hay})


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalContainer:
    """A container of a local cloud, for a test: URLs to give to a pipeline, data in and out past every grant."""

    account: str
    name: str
    admin: BlobAdmin = field(repr=False)

    def url(self, blob: str = "") -> str:
        """`abfss://name@account.dfs.core.windows.net/blob`."""
        return f"abfss://{self.name}@{self.account}.dfs.core.windows.net/{blob}"

    def upload(self, blob: str, data: bytes) -> str:
        """Write a blob and return its ETag."""
        return self.admin.upload(self.account, self.name, blob, data)

    def download(self, blob: str) -> bytes:
        """A blob's bytes."""
        return self.admin.download(self.account, self.name, blob)

    def delete(self, blob: str) -> None:
        """Delete a blob."""
        self.admin.delete(self.account, self.name, blob)

    def list(self, prefix: str = "") -> list[str]:
        """The names of the blobs below a prefix, in order."""
        return self.admin.list_blobs(self.account, self.name, prefix)


class AssertionKeeper:
    """Writes the assertion file, and again each time that half of the assertion's life is over."""

    def __init__(
        self,
        issuer: WorkloadIssuer,
        path: Path,
        subject: str,
        *,
        life_s: float,
        after_write: Callable[[], None] = lambda: None,
    ) -> None:
        self._issuer, self._path, self._subject, self._life_s = issuer, path, subject, life_s
        self._after_write = after_write
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="assertion-keeper", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    def _write(self) -> None:
        self._issuer.write_assertion_file(self._path, self._subject, life_s=self._life_s)
        self._after_write()

    def _keep(self) -> None:
        while not self._stopping.wait(self._life_s * _REWRITE_AT):
            self._write()
