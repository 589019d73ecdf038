"""Stand-ins for what a worker finds around it, each a real server on loopback.

Metadata services, STS, GitHub, an OpenID provider, Key Vault: they check what they are sent as the real ones do, and
note it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, unquote_plus, urlsplit

from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.identity import AccessToken, EntraSource
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from beam_entra.testing.issuer import TOKEN_EXCHANGE_AUDIENCE
from beam_entra.testing.local import LocalCloud
from beam_entra.testing.watch import Journal

VAULT = "https://vault.azure.net"


def identity_of(cloud: LocalCloud, credential: str, *, client: str = "", tenant: str = "", **settings: str):
    """The cloud's job by this credential."""
    return IdentitySettings(
        tenant=tenant or cloud.tenant_id,
        client=client or cloud.client_id,
        authority=cloud.authority,
        ca_file=str(cloud.ca_file),
        credential=credential,
        settings=settings,
    )


def token_for(cloud: LocalCloud, audience: str, client: str = "") -> AccessToken:
    """A token that the tenant has issued to a client with a federated credential."""
    identity = identity_of(cloud, "federated_file", client=client, assertion_file=str(cloud.assertion_file))
    return EntraSource(identity, clock=utc_now).acquire(audience)


def said(status: int, document: object, **headers: str) -> Answer:
    """A JSON answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        status=status, headers={"Content-Type": "application/json", **named}, body=json.dumps(document).encode()
    )


class Host:
    """What all of them have.

    Attributes:
        requests: Every request, oldest first.
        instead: Answers in its place, when it is set.
    """

    def __init__(self, cloud: LocalCloud) -> None:
        self.cloud = cloud
        self.requests: Journal[Request] = Journal()
        self.instead: Answer | None = None

    def answer(self, request: Request) -> Answer:
        """Note the request, and answer it."""
        self.requests.append(request)
        return self.instead or self.serve(request)

    def serve(self, request: Request) -> Answer:
        """Answer as the real one does."""
        raise NotImplementedError

    @property
    def last(self) -> Request:
        """The newest request."""
        return list(self.requests)[-1]


@contextlib.contextmanager
def plain(host: Host) -> Iterator[str]:
    """Serve it over plain HTTP, as metadata services are; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            target = urlsplit(self.path)
            found = host.answer(
                Request(
                    method="GET",
                    path=unquote(target.path),
                    query={name: values[0] for name, values in parse_qs(target.query).items()},
                    headers={name.lower(): value for name, value in self.headers.items()},
                    body=b"",
                )
            )
            self.send_response_only(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(found.body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(found.body)
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def secure(host: Host) -> Iterator[str]:
    """Serve it over HTTPS with the run's certificate; gives its URL."""
    with HttpsServer(host.cloud.certificates.server_context(), ServiceHandler, host, name="host") as server:
        yield server.url


class Imds(Host):
    """Azure's instance metadata service: user-assigned identities by their ids, and the machine's own."""

    def __init__(self, cloud: LocalCloud) -> None:
        super().__init__(cloud)
        self.assigned: dict[tuple[str, str], str] = {("client_id", cloud.client_id): cloud.client_id}

    def serve(self, request: Request) -> Answer:
        if request.headers.get("metadata") != "true" or "x-forwarded-for" in request.headers:
            why = "Required metadata header not specified"
            return said(400, {"error": "invalid_request", "error_description": why})
        if (request.path, request.query.get("api-version")) != ("/metadata/identity/oauth2/token", "2018-02-01"):
            return said(404, {})
        ids = {"client_id", "object_id", "msi_res_id", "mi_res_id"} & request.query.keys()
        asked = next(((name, request.query[name]) for name in ids), ("system", ""))
        if asked not in self.assigned:
            return said(400, {"error": "invalid_request", "error_description": "Identity not found"})
        token = token_for(self.cloud, request.query["resource"], self.assigned[asked])
        life_s = int((token.expires - utc_now()).total_seconds())
        return said(
            200, {"access_token": token.secret.reveal(), "expires_in": str(life_s), "resource": token.audience}
        )


class AppService(Host):
    """App Service's identity endpoint."""

    def __init__(self, cloud: LocalCloud) -> None:
        super().__init__(cloud)
        self.header = secrets.token_hex(16)

    def serve(self, request: Request) -> Answer:
        if request.headers.get("x-identity-header") != self.header:
            return said(401, {"statusCode": 401, "message": "Unauthorized"})
        if request.query.get("client_id", self.cloud.client_id) != self.cloud.client_id:
            return said(400, {"statusCode": 400, "message": "No User Assigned or Delegated Managed Identity found"})
        token = token_for(self.cloud, request.query["resource"])
        return said(
            200, {"access_token": token.secret.reveal(), "expires_on": str(int(token.expires.timestamp()))}
        )


class GoogleMetadata(Host):
    """Google's metadata server; the worker's service account has this number."""

    ACCOUNT = "114382904912345678901"

    def serve(self, request: Request) -> Answer:
        if request.headers.get("metadata-flavor") != "Google":
            return Answer(status=403)
        if request.path != "/computeMetadata/v1/instance/service-accounts/default/identity":
            return Answer(status=404)
        signed = self.cloud.issuer.assertion(self.ACCOUNT, audience=request.query["audience"])
        headers = {"Content-Type": "text/html", "Metadata-Flavor": "Google"}
        return Answer(headers=headers, body=signed.reveal().encode())


class Sts(Host):
    """AWS STS; wants a request that is signed for its region by the one who has the access key."""

    ROLE = "arn:aws:iam::123456789012:role/worker"
    _DONE = (
        '<GetWebIdentityTokenResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetWebIdentityTokenResult>'
        "<WebIdentityToken>{token}</WebIdentityToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
        "</GetWebIdentityTokenResult><ResponseMetadata><RequestId>req-1</RequestId></ResponseMetadata>"
        "</GetWebIdentityTokenResponse>"
    )

    def __init__(self, cloud: LocalCloud) -> None:
        super().__init__(cloud)
        self.access_key, self.secret_key, self.session = (secrets.token_hex(n) for n in (8, 20, 30))

    def environ(self, url: str) -> dict[str, str]:
        """What AWS puts into a worker's environment."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": self.session,
            "AWS_ENDPOINT_URL_STS": url,
            "AWS_CA_BUNDLE": str(self.cloud.ca_file),
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": "/nonexistent",
            "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
        }

    def serve(self, request: Request) -> Answer:
        scope = rf"{self.access_key}/\d{{8}}/eu-central-1/sts/aws4_request"
        scope = rf"AWS4-HMAC-SHA256 Credential={scope}, .*Signature=\w{{64}}"
        if not re.fullmatch(scope, request.headers.get("authorization", "")):
            return self.error(403, "SignatureDoesNotMatch", "The request is not signed as it should be")
        if request.headers.get("x-amz-security-token") != self.session:
            return self.error(403, "InvalidClientTokenId", "The security token is invalid")
        form = request.form()
        if (form["Action"], form["SigningAlgorithm"]) != ("GetWebIdentityToken", "RS256"):
            return self.error(400, "ValidationError", "No such action")
        signed = self.cloud.issuer.assertion(self.ROLE, audience=form["Audience.member.1"])
        return Answer(headers={"Content-Type": "text/xml"}, body=self._DONE.format(token=signed.reveal()).encode())

    @staticmethod
    def error(status: int, code: str, message: str) -> Answer:
        """An error in STS's words."""
        body = (
            '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
            f"<Code>{code}</Code><Message>{message}</Message></Error><RequestId>req-2</RequestId></ErrorResponse>"
        )
        return Answer(status=status, headers={"Content-Type": "text/xml"}, body=body.encode())


class GitHub(Host):
    """GitHub's token service, as a runner of Actions reaches it."""

    SUBJECT = "repo:contoso/orders:ref:refs/heads/main"

    def __init__(self, cloud: LocalCloud) -> None:
        super().__init__(cloud)
        self.token = secrets.token_hex(30)

    def serve(self, request: Request) -> Answer:
        if request.headers.get("authorization") != f"bearer {self.token}" or "api-version" not in request.query:
            return said(401, {"message": "Unauthorized"})
        signed = self.cloud.issuer.assertion(self.SUBJECT, audience=request.query["audience"])
        return said(200, {"count": 1, "value": signed.reveal()})


class Provider(Host):
    """Another OpenID provider, such as Okta or Keycloak; knows one client."""

    def __init__(self, cloud: LocalCloud) -> None:
        super().__init__(cloud)
        self.client, self.secret = "0oa:orders job", f"{secrets.token_hex(12)}%/+ {secrets.token_hex(4)}"

    def serve(self, request: Request) -> Answer:
        kind, _, pair = request.headers.get("authorization", "").partition(" ")
        client, _, secret = base64.b64decode(pair).decode().partition(":")
        if (kind, unquote_plus(client), unquote_plus(secret)) != ("Basic", self.client, self.secret):
            words = f"secret={unquote_plus(secret)} is wrong"
            return said(401, {"error": "invalid_client", "error_description": words})
        form = request.form()
        if form.get("grant_type") != "client_credentials" or form.get("scope", "entra") != "entra":
            return said(400, {"error": "invalid_scope"})
        signed = self.cloud.issuer.assertion(self.client, audience=form.get("audience", TOKEN_EXCHANGE_AUDIENCE))
        return said(200, {"token_type": "Bearer", "expires_in": 300, "access_token": signed.reveal()})


class Vault(Host):
    """Azure Key Vault: challenges first, then gives a secret to a bearer of a token that the tenant issued for it."""

    def __init__(self, cloud: LocalCloud) -> None:
        super().__init__(cloud)
        self.secrets: dict[str, str] = {}
        self.attributes: dict[str, int] = {}

    def serve(self, request: Request) -> Answer:
        kind, _, text = request.headers.get("authorization", "").partition(" ")
        if kind != "Bearer":
            # It names Entra as it knows it, whatever authority the job has.
            entra = f"https://login.windows.net/{self.cloud.tenant_id}"
            challenge = f'Bearer authorization="{entra}", resource="{VAULT}"'
            missing = {"code": "Unauthorized", "message": "AKV10000: Request is missing a Bearer or PoP token."}
            return said(401, {"error": missing}, WWW_Authenticate=challenge)
        if text not in {each.token.reveal() for each in self.cloud.tenant.issued if each.audience == VAULT}:
            return said(403, {"error": {"code": "Forbidden", "message": "Caller is not authorized"}})
        name = request.path.removeprefix("/secrets/").rstrip("/")
        if name not in self.secrets:
            return said(404, {"error": {"code": "SecretNotFound", "message": f"A secret with {name} was not found"}})
        url = f"https://{request.headers['host']}/secrets/{name.partition('/')[0]}/{'0' * 32}"
        now = int(time.time())
        recovery = {"recoveryLevel": "CustomizedRecoverable+Purgeable", "recoverableDays": 7}
        attributes = {"enabled": True, "created": now, "updated": now, **recovery, **self.attributes}
        return said(200, {"value": self.secrets[name], "id": url, "attributes": attributes})


def known_to(cloud: LocalCloud, subject: str, audience: str = TOKEN_EXCHANGE_AUDIENCE) -> Callable[[], None]:
    """Let the cloud's app be this subject, too; gives what takes it back."""
    credential = cloud.app.add_federated_credential(cloud.issuer.url, subject, audience)
    return lambda: cloud.app.remove_federated_credential(credential)
