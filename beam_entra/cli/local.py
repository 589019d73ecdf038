"""`beam-entra local`: a tenant and Azurite on this machine, kept up in the background."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from beam_entra.errors import ConfigError, Diagnosis

if TYPE_CHECKING:
    from beam_entra.access.manifest import AccessManifest, IdentitySettings
    from beam_entra.testing.background import CloudPlan, RunningCloud

__all__ = ["local"]

_GONE = "beam-entra local up"


class _Local(click.Group):
    """Names the extra that these commands need, where it is not installed."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"a local cloud needs {error.name}, which is not installed here",
                Diagnosis(hint="pip install 'beam-entra[local]'"),
            ) from None


@click.group(cls=_Local, short_help="Run a local Entra tenant and Azurite.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".local", "cloud"),
    show_default=True,
    help="Where its files are: endpoints, CA, assertion, state.",
)
@click.pass_context
def local(context: click.Context, folder: Path) -> None:
    """Run a local Entra tenant and Azurite, both over HTTPS, to try pipelines without a cloud account."""
    context.obj = folder


@local.command()
@click.option("--accounts", default="", metavar="A,B", help="Storage accounts.  [default: contosolake]")
@click.option(
    "--container", "containers", multiple=True, metavar="ACCOUNT/NAME", help="Container to create; repeatable."
)
@click.option("--tenant-id", default="", metavar="GUID", help="Tenant id.  [default: made up]")
@click.option(
    "--client-id", "clients", multiple=True, metavar="GUID", help="App to register; repeatable.  [default: made up]"
)
@click.option(
    "--access_manifest",
    "manifests",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take tenant, client, accounts and containers from this access manifest; repeatable.",
)
@click.option("--foreground", is_flag=True, help="Stay, and stop with Ctrl-C.")
@click.pass_obj
def up(
    folder: Path,
    accounts: str,
    containers: tuple[str, ...],
    tenant_id: str,
    clients: tuple[str, ...],
    manifests: tuple[Path, ...],
    foreground: bool,
) -> None:
    """Bring the tenant and Azurite up, and wait until they are ready."""
    from beam_entra.testing.background import find_running, launch  # noqa: PLC0415  # `--help` starts without it
    from beam_entra.testing.node import azurite_is_installed, default_cache  # noqa: PLC0415  # likewise

    named = tuple(name for name in accounts.split(",") if name)
    plan = _planned(named, containers, tenant_id, clients, manifests)
    running = find_running(folder)
    if running is None and not azurite_is_installed(default_cache()):
        click.echo(f"Fetching Azurite into {default_cache()}, once; that takes npm a while.", err=True)
    if running is not None:
        _extend(running, plan)
        click.echo(f"The local cloud is up already (process {running.pid}).")
        _explain(running)
    elif foreground:
        _stay(folder, plan)
    else:
        running = launch(folder, plan)
        click.echo(f"The local cloud is up (process {running.pid}).")
        _explain(running)


@local.command(short_help="Print what points a pipeline at it, for eval.")
@click.pass_obj
def env(folder: Path) -> None:
    """Print the settings that point a pipeline at the local cloud: eval "$(beam-entra local env)"."""
    from beam_entra.testing.local import past_proxies  # noqa: PLC0415  # see up

    running = _found(folder)
    settings = {
        "BEAM_ENTRA_ENDPOINTS": str(running.endpoints_file),
        "AZURE_FEDERATED_TOKEN_FILE": str(running.assertion_file),
        **past_proxies(os.environ),
        **{name: secret.reveal() for name, secret in running.secrets.items()},
    }
    for name, value in settings.items():
        click.echo(f"export {name}={shlex.quote(value)}")


@local.command()
@click.pass_obj
def down(folder: Path) -> None:
    """Stop what `up` has started. Its blobs are gone then."""
    from beam_entra.testing.background import find_running  # noqa: PLC0415  # see up

    running = find_running(folder)
    if running is None:
        click.echo("The local cloud is not up.")
        return
    running.stop()
    click.echo("The local cloud is down.")


@local.command(short_help="Upload FILE to URL.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("url")
@click.pass_obj
def put(folder: Path, file: Path, url: str) -> None:
    """Upload FILE to URL; below it, under its own name, when URL ends in "/". Creates the container."""
    from beam_entra.paths import BlobPath  # noqa: PLC0415  # see up

    running = _found(folder)
    path = BlobPath.parse(url)
    path = path.child(file.name) if path.is_prefix else path
    admin = running.admin()
    admin.create_container(path.account, path.container)
    admin.upload(path.account, path.container, path.name, file.read_bytes())
    click.echo(str(path))


@local.command()
@click.argument("url", required=False)
@click.pass_obj
def ls(folder: Path, url: str | None) -> None:
    """List the blobs below URL, or every container."""
    from beam_entra.paths import BlobPath  # noqa: PLC0415  # see up

    admin = _found(folder).admin()
    if url is None:
        for account in admin.accounts:
            for container in admin.list_containers(account):
                click.echo(str(BlobPath(account=account, container=container, name="")))
        return
    path = BlobPath.parse(url)
    for name in admin.list_blobs(path.account, path.container, path.name):
        click.echo(f"{BlobPath(account=path.account, container=path.container, name='')}{name}")


@local.command()
@click.argument("url")
@click.pass_obj
def cat(folder: Path, url: str) -> None:
    """Print the blob at URL."""
    from beam_entra.paths import BlobPath  # noqa: PLC0415  # see up

    path = BlobPath.parse(url)
    data = _found(folder).admin().download(path.account, path.container, path.name)
    click.echo(data, nl=False)


def _found(folder: Path) -> RunningCloud:
    from beam_entra.testing.background import find_running  # noqa: PLC0415  # see up

    running = find_running(folder)
    if running is None:
        raise ConfigError("the local cloud is not up", Diagnosis(hint=_GONE))
    return running


def _planned(
    accounts: Iterable[str],
    containers: Iterable[str],
    tenant_id: str,
    clients: Iterable[str],
    manifests: Iterable[Path],
) -> CloudPlan:
    """What the options and the manifests ask for, together."""
    from beam_entra.access.manifest import AccessManifest  # noqa: PLC0415  # see up
    from beam_entra.testing.background import CloudPlan  # noqa: PLC0415  # see up

    loaded = [AccessManifest.load(path) for path in manifests]
    tenants = dict.fromkeys([tenant_id] if tenant_id else [manifest.identity.tenant for manifest in loaded])
    if len(tenants) > 1:
        hint = "bring up one local cloud for each tenant, each with its own --folder"
        raise ConfigError(f"the access manifests are of several tenants: {', '.join(tenants)}", Diagnosis(hint=hint))
    tenant = next(iter(tenants), "")
    all_containers = [_container(name) for name in containers]
    all_containers += [name for manifest in loaded for name in _containers_of(manifest)]
    all_accounts = [*accounts, *(name.partition("/")[0] for name in all_containers)]
    return CloudPlan(
        tenant_id=tenant if _is_guid(tenant) else "",
        domains=(tenant,) if tenant and not _is_guid(tenant) else (),
        clients=tuple(dict.fromkeys([*clients, *(manifest.identity.client for manifest in loaded)])),
        accounts=tuple(dict.fromkeys(all_accounts)) or CloudPlan().accounts,
        containers=tuple(dict.fromkeys(all_containers)),
        secrets=_secrets_of(loaded),
    )


def _secrets_of(manifests: Iterable[AccessManifest]) -> tuple[str, ...]:
    """The client secrets that manifests refer to, as `client/NAME`; refuses what no local cloud can stand in for."""
    named: dict[str, str] = {}
    for manifest in manifests:
        identity, who = manifest.identity, f"the manifest of {manifest.pipeline}"
        if identity.credential == "developer":
            raise ConfigError(
                f"{who} is for a person who is signed in to the Azure CLI, which knows no local tenant",
                Diagnosis(hint='use credential = "federated_file" or "client_secret" with the local cloud'),
            )
        if not _can_be_served(identity):
            raise ConfigError(
                f"{who} is for {identity.credential}, which no local cloud can stand in for",
                Diagnosis(hint='use credential = "federated_file" or "client_secret" with the local cloud'),
            )
        if identity.credential != "client_secret":
            continue
        scheme, _, name = identity.settings.get("client_secret", "").partition(":")
        if scheme != "env":
            raise ConfigError(
                f"{who} has a client secret that the local cloud cannot put into place",
                Diagnosis(hint='refer to it as client_secret = "env:NAME": beam-entra local env exports that'),
            )
        if named.setdefault(name, identity.client) != identity.client:
            raise ConfigError(
                f"the access manifests have the secrets of several clients in {name}",
                Diagnosis(hint="give each client a variable of its own, or a local cloud with its own --folder"),
            )
    return tuple(f"{client}/{name}" for name, client in named.items())


def _can_be_served(identity: IdentitySettings) -> bool:
    """Whether the local cloud has what the source needs: an assertion file, or a client secret. One's own: perhaps."""
    if identity.credential in {"workload_identity", "federated"}:
        return "assertion_file" in identity.settings
    return identity.credential not in {"certificate", "chain", "managed_identity"}


def _container(name: str) -> str:
    from beam_entra.paths import BlobPath  # noqa: PLC0415  # see up

    account, _, container = name.partition("/")
    path = BlobPath(account=account, container=container, name="")
    return f"{path.account}/{path.container}"


def _containers_of(manifest: AccessManifest) -> list[str]:
    paths = [*(grant.path for grant in manifest.grants), manifest.audit]
    return [f"{path.account}/{path.container}" for path in paths]


def _is_guid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _extend(running: RunningCloud, plan: CloudPlan) -> None:
    """Add what can be added to a running cloud: containers. For the rest it has to be started again."""
    lacks = [f"account {account}" for account in plan.accounts if account not in running.endpoints]
    lacks += [f"client {client}" for client in plan.clients if client not in running.clients]
    secrets = [each.partition("/")[2] for each in plan.secrets]
    lacks += [f"secret {name}" for name in secrets if name not in running.secrets]
    lacks += [f"tenant {plan.tenant_id}"] if plan.tenant_id not in {"", running.tenant_id} else []
    if lacks:
        hint = "beam-entra local down, then up with everything; its blobs are gone then"
        raise ConfigError(f"the local cloud is up already, without {', '.join(lacks)}", Diagnosis(hint=hint))
    admin = running.admin()
    for name in plan.containers:
        account, _, container = name.partition("/")
        admin.create_container(account, container)


def _explain(running: RunningCloud) -> None:
    click.echo(f"  tenant     {running.authority}/{running.tenant_id}")
    for client in running.clients:
        click.echo(f"  client     {client}")
    for account, endpoint in running.endpoints.items():
        click.echo(f"  storage    {account} at {endpoint}")
    click.echo(f"  endpoints  {running.endpoints_file}")
    click.echo("")
    click.echo('Point pipelines at it:  eval "$(beam-entra local env)"')
    click.echo("Put a file there:       beam-entra local put FILE abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/NAME")
    click.echo("Look around:            beam-entra local ls, beam-entra local cat URL")
    click.echo("Stop it:                beam-entra local down")


def _stay(folder: Path, plan: CloudPlan) -> None:
    from beam_entra.testing.background import find_running, serve  # noqa: PLC0415  # see up

    ready, stopping = threading.Event(), threading.Event()

    def tell() -> None:
        ready.wait()
        running = find_running(folder)
        if running is not None:
            click.echo("The local cloud is up; Ctrl-C stops it.")
            _explain(running)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.set())
    threading.Thread(target=tell, name="tell", daemon=True).start()
    serve(folder, plan, ready, stopping)
    click.echo("The local cloud is down.")
