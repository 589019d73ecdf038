"""Servers that others wrote, from npm: oidc-provider and emulate.

`make npm-witnesses` installs them; docs/witnesses.md says what they are witnesses of.
"""

from __future__ import annotations

import json
import secrets
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.x509 import load_pem_x509_certificate
from jwt.algorithms import RSAAlgorithm

from beam_entra.errors import ConfigError
from beam_entra.secret import Secret
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.issuer import TOKEN_EXCHANGE_AUDIENCE
from beam_entra.testing.keys import SigningKey
from beam_entra.testing.node import find_node
from beam_entra.testing.tenant import STORAGE
from tests.witness.emulators import Front, Server
from tests.witness.fetch import PINNED, installed_modules


class NodeServer(Server):
    """One that Node.js runs."""

    def find(self) -> Path:
        """Node's executable; skips the test where it or the package is missing."""
        if not (installed_modules() / self.name).is_dir():
            pytest.skip(f"{self.name} is not on this machine: `make npm-witnesses` installs it")
        try:
            return find_node("").node  # that of the package: both want a newer one than many systems have
        except ConfigError as error:
            pytest.skip(str(error))


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A client of oidc-provider, as RFC 7591's registration made it."""

    provider: OidcProvider = field(repr=False)
    client_id: str
    _document: dict[str, Any] = field(repr=False)

    def add_secret(self) -> Secret:
        """The one that it has had from the start: a client has no more there."""
        return Secret(self._document["client_secret"], what="client secret")

    def remove(self) -> None:
        """RFC 7592: the client is gone."""
        token = self._document["registration_access_token"]
        url = self._document["registration_client_uri"]
        self.provider.ask("DELETE", url.removeprefix(self.provider.url), Authorization=f"Bearer {token}")


class OidcProvider(NodeServer):
    """oidc-provider, in memory, at a tenant's place: an authority for our client, or any other OpenID provider.

    Its tokens are JWTs with the issuer and the claims that Entra's have, since it can be told to put them there; what
    it asks of a client before it gives one is its own.

    Attributes:
        tenant_id: Where it is below its URL; `/TENANT/v2.0` is where Entra's clients look for discovery.
    """

    name = "oidc-provider"

    def __init__(self, certificates: RunCertificates, *, issuer: str = "", token_life_s: int = 3600) -> None:
        """Prepare it.

        Args:
            issuer: The `iss` of its tokens, which Azurite wants to be Entra's; its own URL when it is left out.
        """
        super().__init__(certificates)
        self.tenant_id = str(uuid.uuid4())
        self._issuer, self._token_life_s = issuer, token_life_s
        self._registrar = secrets.token_hex(16)

    @property
    def health(self) -> str:  # type: ignore[override]  # the others' needs no tenant
        return f"{self.mount}/.well-known/openid-configuration"

    @property
    def mount(self) -> str:
        return f"/{self.tenant_id}/v2.0"

    @property
    def authority(self) -> str:
        return self.url

    @property
    def issuer(self) -> str:
        return self._issuer.format(tenant=self.tenant_id) or self.url + self.mount

    @property
    def token_url(self) -> str:
        return f"{self.url}{self.mount}/token"

    def command(self, executable: Path, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        self.url = f"https://127.0.0.1:{port}"
        settings = {
            "port": port,
            "issuer": self.issuer,
            "mount": self.mount,
            "certificate": str(self.certificates.server_file),
            "key": str(self.certificates.key_file),
            "tokenLifeS": self._token_life_s,
            "initialAccessToken": self._registrar,
            "resources": [STORAGE],
            "audience": TOKEN_EXCHANGE_AUDIENCE,
            "claims": {"tid": self.tenant_id, "ver": "1.0"},
        }
        (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        script = str(PINNED / "oidc_provider.mjs")
        return [str(executable), script, str(installed_modules()), str(folder / "settings.json")], {}

    def register_app(self, *, certificate: bytes = b"", method: str = "client_secret_post") -> Registered:
        """Register a client: with a secret, or with the key of a certificate in its place.

        Args:
            certificate: PEM.
            method: How it presents the secret.
        """
        wanted: dict[str, Any] = {
            "grant_types": ["client_credentials"],
            "redirect_uris": [],
            "response_types": [],
            "token_endpoint_auth_method": method,
        }
        if certificate:
            key = load_pem_x509_certificate(certificate).public_key()
            assert isinstance(key, RSAPublicKey)
            jwks = {"keys": [{**RSAAlgorithm.to_jwk(key, as_dict=True), "use": "sig"}]}
            wanted |= {"token_endpoint_auth_method": "private_key_jwt", "jwks": jwks}
        made = self.ask("POST", f"{self.mount}/reg", wanted, Authorization=f"Bearer {self._registrar}")
        return Registered(provider=self, client_id=made["client_id"], _document=made)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """The client that emulate was started with; it takes no others while it runs."""

    client_id: str
    secret: Secret

    def add_secret(self) -> Secret:
        """Its one."""
        return self.secret


class Emulate(NodeServer):
    """emulate's Entra ID, which speaks plain HTTP: clients find it behind an `EmulateFront`.

    Attributes:
        authority: The front's.
        tenant_id: In its URLs; it takes any.
    """

    name = "emulate"
    scheme = "http"
    health = "/.well-known/openid-configuration"

    def __init__(self, certificates: RunCertificates, *, authority: str) -> None:
        super().__init__(certificates)
        self.authority = authority
        self.tenant_id = str(uuid.uuid4())
        self.app = Seeded(client_id=str(uuid.uuid4()), secret=Secret(secrets.token_urlsafe(24), what="client secret"))

    @property
    def token_url(self) -> str:
        return f"{self.authority}/oauth2/v2.0/token"

    def command(self, executable: Path, port: int, folder: Path) -> tuple[list[str], dict[str, str]]:
        client = {
            "client_id": self.app.client_id,
            "client_secret": self.app.secret.reveal(),
            "name": "job",
            "redirect_uris": [],
            "tenant_id": self.tenant_id,
        }
        seed = folder / "seed.json"
        seed.write_text(json.dumps({"microsoft": {"oauth_clients": [client]}}), encoding="utf-8")
        script = str(installed_modules() / "emulate" / "dist" / "index.js")
        options = ["--service", "microsoft", "--port", str(port), "--base-url", self.authority, "--seed", str(seed)]
        return [str(executable), script, "start", *options], {}

    def register_app(self) -> Seeded:
        """The one that there is."""
        return self.app


class EmulateFront(Front):
    """TLS before emulate, and, where it is asked for, tokens that say something.

    Attributes:
        whole: Whether an opaque token becomes a JWT with the claims of Entra's; the key that signs it is published
            nowhere, and Azurite asks for none.
    """

    def __init__(self, certificates: RunCertificates) -> None:
        self.whole = False
        self._key = SigningKey()
        super().__init__(certificates)

    @property
    def emulate(self) -> Emulate:
        """Who stands behind it."""
        assert isinstance(self.emulator, Emulate)
        return self.emulator

    def _completed(self, document: dict[str, Any], form: dict[str, str]) -> bytes:
        if self.whole:
            now, client = int(time.time()), self.emulate.app.client_id
            claims = {
                "iss": f"https://sts.windows.net/{self.emulate.tenant_id}/",
                "aud": form["scope"].removesuffix("/.default"),
                "tid": self.emulate.tenant_id,
                "appid": client,
                "oid": client,
                "sub": client,
                "uti": secrets.token_urlsafe(16),
                "iat": now,
                "nbf": now,
                "exp": now + document["expires_in"],
            }
            document["access_token"] = self._key.sign(claims)
        self.issued.append(Secret(document["access_token"], what="access token"))
        return json.dumps(document).encode()
