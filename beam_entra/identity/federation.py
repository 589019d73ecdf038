"""Workload identity federation: somebody else's assertion stands for the application, and there is no secret in Azure.

    file      the platform writes it to a file and renews it there
    gcp       the Google identity of the worker, from its metadata server            extra [gcp]
    aws       the AWS role of the worker, from STS                                   extra [aws]
    github    the run of a GitHub Actions workflow
    oidc      a client of another OpenID provider, such as Okta or Keycloak
    command   whatever an executable prints

Entra takes the assertion if a federated credential of the application has its issuer, subject and audience.

See: https://learn.microsoft.com/entra/workload-id/workload-identity-federation
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote_plus, urlencode, urlsplit

from azure.core.credentials import SupportsTokenInfo
from azure.identity import ClientAssertionCredential

from beam_entra.access.manifest import IdentitySettings
from beam_entra.errors import ConfigError, Diagnosis, IdentityRejected, IdentityUnavailable
from beam_entra.identity.aws import ask_sts
from beam_entra.identity.command import check_command, run_command
from beam_entra.identity.gcp import ask_metadata_server
from beam_entra.identity.http import NoAnswer, Reply, exchange, refusal
from beam_entra.identity.references import resolve_path
from beam_entra.identity.registry import Connection, register, seconds_of
from beam_entra.identity.rejection import NotHere

__all__ = ["EXCHANGE_AUDIENCE"]

EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"
_JWT = re.compile(r"[\w-]{2,}\.[\w-]{2,}\.[\w-]{2,}", re.ASCII)
_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}")
_HTTPS = re.compile(r"https://[^\s/?#@]+(?:[/?][^\s#@]*)?")
_AKS_FILE = "env:AZURE_FEDERATED_TOKEN_FILE"  # where AKS's webhook puts it
_MOST_BYTES = 64 * 1024


def _federated(
    identity: IdentitySettings, connection: Connection, assertion: Callable[[], str]
) -> ClientAssertionCredential:
    return ClientAssertionCredential(identity.tenant, identity.client, assertion, **connection)


# ---------------------------------------------------------------- a file


def _check_file(identity: IdentitySettings) -> None:
    if identity.settings.get("assertion_file", "").startswith("keyvault:"):
        raise ConfigError(
            "[identity] assertion_file: is no path", Diagnosis(hint="write the path, or env:NAME of a variable with it")
        )


@register("federated_file", required=("assertion_file",), check=_check_file)
@register("federated:file", required=("assertion_file",), kind_setting="assertion_from", check=_check_file)
def _file(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """The platform writes an assertion to a file and renews it there."""
    return _federated(identity, connection, lambda: _from_file(identity.settings["assertion_file"]))


@register("workload_identity", optional=("assertion_file",), check=_check_file)
def _workload_identity(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """AKS projects the service account's token into the pod, and renews it there."""
    return _federated(identity, connection, lambda: _from_file(identity.settings.get("assertion_file", _AKS_FILE)))


def _from_file(setting: str) -> str:
    path = resolve_path(setting, setting="assertion_file")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MOST_BYTES + 1).strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not text"
        rejected = IdentityRejected(
            f"the assertion file {path} cannot be read: {problem}",
            Diagnosis(hint="see that the platform projects the file into the worker and the path is right"),
        )
        raise (NotHere(rejected) if isinstance(error, FileNotFoundError) else rejected) from None
    if not text:
        raise IdentityRejected(
            f"the assertion file {path} is empty",
            Diagnosis(hint="see that whatever writes the assertion file renews it"),
        )
    return _jwt(text, f"the assertion file {path}")


# ---------------------------------------------------------------- another cloud


@register("federated:gcp", optional=("assertion_audience",), kind_setting="assertion_from")
def _gcp(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """The worker's Google service account: how a Dataflow worker becomes an Entra principal."""
    audience = identity.settings.get("assertion_audience", EXCHANGE_AUDIENCE)
    return _federated(
        identity, connection, lambda: _jwt(ask_metadata_server(audience, connection), "Google's metadata server")
    )


def _check_aws(identity: IdentitySettings) -> None:
    if not _REGION.fullmatch(identity.settings["aws_region"]):
        raise ConfigError(
            "[identity] aws_region: is no region; STS gives these tokens at its regional endpoints only",
            Diagnosis(hint='write it as aws_region = "eu-central-1"'),
        )


@register(
    "federated:aws",
    required=("aws_region",),
    optional=("assertion_audience",),
    kind_setting="assertion_from",
    check=_check_aws,
)
def _aws(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """The worker's AWS role, through outbound identity federation."""
    audience = identity.settings.get("assertion_audience", EXCHANGE_AUDIENCE)
    region = identity.settings["aws_region"]
    return _federated(identity, connection, lambda: _jwt(ask_sts(audience, region, connection), "AWS STS"))


# ---------------------------------------------------------------- GitHub Actions


def _check_github(identity: IdentitySettings) -> None:
    _check_ca(identity)
    if not re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*", identity.settings["github_url"]):
        raise ConfigError(
            "[identity] github_url: names no environment variable",
            Diagnosis(hint='write github_url = "env:ACTIONS_ID_TOKEN_REQUEST_URL"'),
        )


@register(
    "federated:github",
    required=("github_url", "github_token"),
    optional=("assertion_audience", "assertion_ca_file"),
    references=("github_token",),
    kind_setting="assertion_from",
    check=_check_github,
)
def _github(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """The run of a workflow, which needs `permissions: id-token: write`."""

    def assertion() -> str:
        url = connection.secret("github_url").reveal()
        token = connection.secret("github_token").reveal()
        if not _HTTPS.fullmatch(url):
            raise ConfigError(
                "[identity] github_url refers to something that is no https URL",
                Diagnosis(hint="refer to ACTIONS_ID_TOKEN_REQUEST_URL as the runner sets it"),
            )
        audience = urlencode({"audience": identity.settings.get("assertion_audience", EXCHANGE_AUDIENCE)})
        reply = _ask(
            "GET",
            f"{url}{'&' if urlsplit(url).query else '?'}{audience}",
            who="GitHub's token service",
            headers={"Authorization": f"bearer {token}", "Accept": "application/json"},
            fix="give the workflow's job permissions: id-token: write, and ask while it runs",
            sent=(token,),
            identity=identity,
            connection=connection,
        )
        return _jwt(reply.document.get("value"), "GitHub's token service")

    return _federated(identity, connection, assertion)


# ---------------------------------------------------------------- another OpenID provider


def _check_oidc(identity: IdentitySettings) -> None:
    _check_ca(identity)
    if not _HTTPS.fullmatch(identity.settings["oidc_endpoint"]):
        raise ConfigError(
            "[identity] oidc_endpoint: is no https URL", Diagnosis(hint="write the provider's token endpoint in full")
        )


@register(
    "federated:oidc",
    required=("oidc_endpoint", "oidc_client", "oidc_client_secret"),
    optional=("oidc_scope", "assertion_audience", "assertion_ca_file"),
    references=("oidc_client_secret",),
    kind_setting="assertion_from",
    check=_check_oidc,
)
def _oidc(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """A client of another provider; its access token, a JWT, is the assertion."""
    settings = identity.settings

    def assertion() -> str:
        secret = connection.secret("oidc_client_secret").reveal()
        pair = f"{quote_plus(settings['oidc_client'])}:{quote_plus(secret)}"  # RFC 6749, 2.3.1
        basic = base64.b64encode(pair.encode()).decode("ascii")
        fields = {"grant_type": "client_credentials"}
        fields |= {"scope": settings["oidc_scope"]} if "oidc_scope" in settings else {}
        fields |= {"audience": settings["assertion_audience"]} if "assertion_audience" in settings else {}
        who = f"the token endpoint {settings['oidc_endpoint']}"
        reply = _ask(
            "POST",
            settings["oidc_endpoint"],
            who=who,
            headers={
                "Authorization": f"Basic {basic}",
                "Accept": "application/json",
            },
            fields=fields,
            fix="check oidc_client, what oidc_client_secret refers to, oidc_scope and assertion_audience",
            sent=(secret, quote_plus(secret), basic),
            identity=identity,
            connection=connection,
        )
        return _jwt(reply.document.get("access_token"), who)

    return _federated(identity, connection, assertion)


# ---------------------------------------------------------------- a command


@register(
    "federated:command",
    required=("assertion_command",),
    optional=("command_timeout",),
    kind_setting="assertion_from",
    check=lambda identity: check_command(
        identity.settings["assertion_command"], seconds_of(identity, "command_timeout", 30)
    ),
)
def _command(identity: IdentitySettings, connection: Connection) -> SupportsTokenInfo:
    """An executable that prints an assertion."""
    command = identity.settings["assertion_command"]
    timeout_s = seconds_of(identity, "command_timeout", 30)
    return _federated(
        identity, connection, lambda: _jwt(run_command(command, timeout_s=timeout_s), "the assertion command")
    )


# ---------------------------------------------------------------- for all of them


def _check_ca(identity: IdentitySettings) -> None:
    if not Path(identity.settings.get("assertion_ca_file", "/")).is_absolute():
        raise ConfigError(
            "[identity] assertion_ca_file: is not absolute", Diagnosis(hint="write the path in full: /etc/ssl/...")
        )


def _ask(
    method: str,
    url: str,
    *,
    who: str,
    headers: dict[str, str],
    fix: str,
    sent: tuple[str, ...],
    identity: IdentitySettings,
    connection: Connection,
    fields: dict[str, str] | None = None,
) -> Reply:
    """One request to somebody else's token service, answered with 200. `sent` is what no error may repeat."""
    try:
        reply = exchange(
            method,
            url,
            headers=headers,
            fields=fields,
            ca_file=identity.settings.get("assertion_ca_file", ""),
            timeouts=connection.timeouts,
        )
    except NoAnswer as silent:
        reason = str(silent)
    else:
        if reply.status == 200:
            return reply
        raise refusal(reply, who=who, hint=fix, sent=sent)
    raise IdentityUnavailable(
        f"{who} does not answer: {reason}",
        Diagnosis(hint="see that the worker reaches it and trusts its certificate"),
    )


def _jwt(text: object, who: str) -> str:
    """What `who` gave, if it has the shape of an assertion: anything else is not sent to Entra."""
    if not isinstance(text, str) or len(text) > _MOST_BYTES or not _JWT.fullmatch(text.strip()):
        raise IdentityRejected(
            f"{who} gave something that is no assertion (a signed JSON Web Token)",
            Diagnosis(hint="see what it gives; for oidc: the provider must issue access tokens that are JWTs"),
        )
    return text.strip()
