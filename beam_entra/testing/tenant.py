"""A local Entra tenant: OAuth2 client credentials over HTTPS, tokens signed with RS256, and faults on request."""

from __future__ import annotations

import base64
import binascii
import json
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote_plus

from beam_entra.clock import Clock, utc_now
from beam_entra.secret import Secret
from beam_entra.testing.apps import App
from beam_entra.testing.assertions import (
    Assertion,
    OutsideIssuers,
    check_certificate_assertion,
    check_federated_assertion,
)
from beam_entra.testing.certificates import RunCertificates
from beam_entra.testing.https import Answer, DropConnection, HttpsServer, Request, ServiceHandler
from beam_entra.testing.keys import SigningKey, base64url, key_set
from beam_entra.testing.refusals import REFUSALS, Refused, refusal_answer
from beam_entra.testing.watch import Fault, Faults, Gate, Journal

__all__ = ["GRAPH", "STORAGE", "IssuedToken", "LocalTenant", "TenantAction", "TenantFault", "TenantRequest"]

STORAGE = "https://storage.azure.com"
GRAPH = "https://graph.microsoft.com"
_BACKDATED = timedelta(minutes=5)  # as Entra does, for clients whose clock runs behind
_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_JSON = {
    "Content-Type": "application/json; charset=utf-8",
    "Cache-Control": "no-store, no-cache",
    "Pragma": "no-cache",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRequest:
    """One request that the tenant has dealt with.

    Attributes:
        kind: `token`, `discovery`, `keys`, `instance` or `other`.
        client: The client id that it named; empty when it named none.
        grant: How the client proved itself: `secret`, `basic`, `certificate` or `federated`; empty if unknown.
        scope: The scope that it asked for.
        claims: The claims that it asked for, as JSON: those of a challenge, and `xms_cc` for the client's capabilities.
        outcome: `issued` or `ok`, an error such as `AADSTS700213`, or the fault that met it, such as `throttle`.
        trace_id: Of an error's answer, as the sign-in log would have it.
        correlation_id: Likewise.
    """

    time: datetime
    kind: str
    client: str = ""
    grant: str = ""
    scope: str = ""
    claims: str = ""
    outcome: str
    trace_id: str = ""
    correlation_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """One access token that the tenant has issued."""

    client: str
    audience: str
    claims: Mapping[str, Any]
    expires: datetime
    token: Secret


@dataclass(slots=True)
class _Told:
    """What a token request has told us by the time it is answered."""

    client: str = ""
    grant: str = ""
    scope: str = ""
    claims: str = ""
    correlation_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantAction:
    """What a fault does to a token request.

    Attributes:
        name: The `outcome` to record.
        act: Gives the answer, or None to answer as usual, or raises `DropConnection`.
    """

    name: str
    act: Callable[[], Answer | None]


TenantFault = Fault[Request, TenantAction]


class LocalTenant:
    """Entra's stand-in on a free port of 127.0.0.1. Serves from the moment it is made until `close`.

    Attributes:
        tenant_id: The tenant's id, in each token's `tid` and `iss`.
        resources: The audiences it knows; others get AADSTS500011. May be changed while it serves.
        token_life_s: Life of the access tokens that are issued from now on, in seconds.
        refresh_in_s: What to answer as `refresh_in`, in seconds; None to leave it out, as Entra does for short lives.
        requests: Every request, oldest first.
        issued: Every access token, oldest first.
    """

    def __init__(
        self,
        certificates: RunCertificates,
        *,
        tenant_id: str = "",
        domains: Sequence[str] = (),
        resources: Sequence[str] = (STORAGE, GRAPH),
        token_life_s: int = 3600,
        clock: Clock = utc_now,
    ) -> None:
        """Start to serve.

        Args:
            tenant_id: A GUID; made up when it is left out.
            domains: Other names for the tenant in a URL, such as `contoso.onmicrosoft.com`.
            clock: What "now" is, for tokens and for what is presented.
        """
        self.tenant_id = tenant_id or str(uuid.uuid4())
        self.resources = list(resources)
        self.token_life_s = token_life_s
        self.refresh_in_s: int | None = None
        self.requests: Journal[TenantRequest] = Journal()
        self.issued: Journal[IssuedToken] = Journal()
        self._names = {self.tenant_id.lower(), *(domain.lower() for domain in domains)}
        self._clock = clock
        self._lock = threading.Lock()
        self._apps: dict[str, App] = {}
        self._removed: list[App] = []
        self._keys = [SigningKey()]
        self._faults: Faults[Request, TenantAction] = Faults()
        self._issuers = OutsideIssuers(certificates.client_context())
        self._server = HttpsServer(certificates.server_context(), ServiceHandler, self, name="tenant").start()

    # ---- where it is, and who is in it

    @property
    def authority(self) -> str:
        """What a client takes as `authority`: `https://127.0.0.1:port`."""
        return self._server.url

    @property
    def token_url(self) -> str:
        """The token endpoint."""
        return f"{self.authority}/{self.tenant_id}/oauth2/v2.0/token"

    @property
    def apps(self) -> list[App]:
        """The registered apps."""
        with self._lock:
            return list(self._apps.values())

    def register_app(self, client_id: str = "", *, display_name: str = "job", roles: Sequence[str] = ()) -> App:
        """Register an app, which has no credential yet.

        Args:
            client_id: A GUID; made up when it is left out.
            roles: The `roles` claim of its tokens; left out of them when empty, as in Entra.
        """
        made = App(
            client_id=client_id or str(uuid.uuid4()), display_name=display_name, roles=tuple(roles), clock=self._clock
        )
        with self._lock:
            self._apps[made.client_id] = made
        return made

    def revoke(self, app: App, *, delete: bool = False) -> None:
        """Refuse the app from now on: as disabled (AADSTS7000112), or as unknown (AADSTS700016) with `delete`."""
        app.disable()
        if delete:
            with self._lock:
                self._removed.append(self._apps.pop(app.client_id))

    def rotate_keys(self, *, keep_old: bool = True) -> None:
        """Sign with a new key from now on; the old ones stay published unless told otherwise."""
        fresh = SigningKey()
        with self._lock:
            self._keys = [*self._keys, fresh] if keep_old else [fresh]

    # ---- what it saw

    @property
    def token_requests(self) -> int:
        """How many token requests there were, whatever their outcome."""
        return sum(request.kind == "token" for request in self.requests)

    @property
    def secrets(self) -> list[Secret]:
        """Every token and client secret that came into being here, for a test that searches for leaks."""
        with self._lock:
            apps = [*self._apps.values(), *self._removed]
        return [issued.token for issued in self.issued] + [text for app in apps for text in app.handed_out]

    def wait_for(
        self, predicate: Callable[[list[TenantRequest]], bool], *, timeout_s: float = 10.0
    ) -> list[TenantRequest]:
        """Wait until `predicate` holds for the requests so far, and return them; TimeoutError when it does not."""
        return self.requests.wait_for(predicate, timeout_s=timeout_s)

    def clear(self) -> None:
        """Forget the requests and tokens so far, and switch every fault off."""
        self.clear_faults()
        self.requests.clear()
        self.issued.clear()

    # ---- faults: each is met by token requests only, `times` of them or until it is cleared

    def throttle(self, retry_after_s: int = 1, *, times: int | None = None) -> TenantFault:
        """Answer 429 with `Retry-After`."""
        return self._fault(
            "throttle", lambda: self._refusal(90055, headers={"Retry-After": str(retry_after_s)}), times=times
        )

    def fail(self, status: int = 503, *, times: int | None = None) -> TenantFault:
        """Answer with a 4xx or 5xx status and Entra's error body."""
        code = 90033 if status == 503 else 50000
        return self._fault(f"fail {status}", lambda: self._refusal(code, status=status), times=times)

    def stall(self, seconds: float | None = None, *, times: int | None = None) -> TenantFault:
        """Hold requests for some seconds, or until the fault's `gate.open()`; then answer them as usual."""
        gate = Gate()
        return self._fault("stall", lambda: gate.arrive(seconds), times=times, gate=gate)

    def drop(self, *, times: int | None = None) -> TenantFault:
        """Reset the connection instead of answering."""

        def drop() -> Answer:
            raise DropConnection

        return self._fault("drop", drop, times=times)

    def garbage(self, *, times: int | None = None) -> TenantFault:
        """Answer 200 with a page of HTML, as a captive portal or a broken gateway does."""
        page = Answer(headers={"Content-Type": "text/html"}, body=b"<html><body>Sign in to the network</body></html>")
        return self._fault("garbage", lambda: page, times=times)

    def clear_faults(self) -> None:
        """Switch every fault off, and let through what is held."""
        self._faults.clear()

    # ---- serving

    def answer(self, request: Request) -> Answer:
        """Answer one request of the wire."""
        tenant, _, rest = request.path.removeprefix("/").partition("/")
        if tenant == "common" and rest == "discovery/instance":
            return self._open("instance", self._instance())
        if rest == "oauth2/v2.0/token":
            return self._token(tenant, request)
        pages = {"v2.0/.well-known/openid-configuration": "discovery", "discovery/v2.0/keys": "keys"}
        if rest not in pages:
            self._note("other", _Told(), "404")
            return Answer(status=404)
        if tenant.lower() not in self._names:
            text = REFUSALS[90002].text.format(tenant=tenant)
            refused = self._refusal(90002, text=text, error="invalid_tenant")
            self._note(pages[rest], _Told(), "AADSTS90002", refused)
            return refused
        with self._lock:
            keys = key_set(self._keys)
        return self._open(pages[rest], keys if pages[rest] == "keys" else self._discovery())

    def close(self) -> None:
        """Let go of what is held, and stop to serve. Safe to call twice."""
        self._faults.clear()
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the token endpoint

    def _token(self, tenant: str, request: Request) -> Answer:
        told = _Told(correlation_id=request.headers.get("client-request-id", ""))
        form = request.form()
        told.client, told.scope = form.get("client_id", ""), form.get("scope", "")
        told.claims = form.get("claims", "")
        fault = self._faults.take(request)
        if fault is not None:
            try:
                answer = fault.action.act()
            except DropConnection:
                self._note("token", told, fault.action.name)
                raise
            if answer is not None:
                self._note("token", told, fault.action.name, answer)
                return answer
        try:
            return self._issue(tenant, request, form, told)
        except Refused as refused:
            answer = self._refusal(refused.code, text=refused.text, correlation_id=told.correlation_id)
            self._note("token", told, f"AADSTS{refused.code}", answer)
            return answer

    def _issue(self, tenant: str, request: Request, form: Mapping[str, str], told: _Told) -> Answer:
        # In Entra's order: tenant, parameters, app, credential, resource.
        if tenant.lower() not in self._names:
            raise Refused(90002, tenant=tenant)
        if request.method != "POST":
            raise Refused(900561, method=request.method)
        basic = _basic(request.headers.get("authorization", ""))
        told.client = told.client or (basic[0] if basic else "")
        for parameter, value in (("grant_type", form.get("grant_type")), ("client_id", told.client)):
            if not value:
                raise Refused(900144, parameter=parameter)
        if form["grant_type"] != "client_credentials":
            raise Refused(70003, grant=form["grant_type"])
        if not told.scope:
            raise Refused(900144, parameter="scope")
        capabilities = _capabilities(told.claims)
        app = self._find_app(told.client)
        self._authenticate(app, form, basic, told)
        return self._sign(app, self._resource(told.scope), told, capabilities)

    def _find_app(self, client_id: str) -> App:
        with self._lock:
            app = self._apps.get(client_id)
        if app is None:
            raise Refused(700016, client=client_id, tenant=self.tenant_id)
        if not app.enabled:
            raise Refused(7000112, client=client_id, name=app.display_name)
        return app

    def _authenticate(self, app: App, form: Mapping[str, str], basic: tuple[str, str] | None, told: _Told) -> None:
        if "client_assertion" in form:
            if form.get("client_assertion_type") != _ASSERTION_TYPE:
                raise Refused(900144, parameter="client_assertion_type")
            assertion = Assertion.parse(form["client_assertion"])
            if assertion.issuer == assertion.subject == app.client_id:
                told.grant = "certificate"
                check_certificate_assertion(app, assertion, audiences=self._audiences(), now=self._clock())
            else:
                told.grant = "federated"
                check_federated_assertion(app, assertion, issuers=self._issuers, now=self._clock())
        elif "client_secret" in form:
            told.grant = "secret"
            app.check_secret(form["client_secret"])
        elif basic is not None:
            told.grant = "basic"
            app.check_secret(basic[1])
        else:
            raise Refused(7000216)

    def _audiences(self) -> frozenset[str]:
        bases = {f"{self.authority}/{name}" for name in self._names}
        return frozenset({f"{base}/oauth2/v2.0/token" for base in bases} | {f"{base}/v2.0" for base in bases})

    def _resource(self, scope: str) -> str:
        if not scope.endswith("/.default"):
            raise Refused(1002012, scope=scope)
        resource = scope.removesuffix("/.default")
        if resource not in self.resources:
            raise Refused(500011, resource=resource, tenant=self.tenant_id)
        return resource

    def _sign(self, app: App, audience: str, told: _Told, capabilities: list[str]) -> Answer:
        now = self._clock()
        expires = now + timedelta(seconds=self.token_life_s)
        issued_at = int((now - _BACKDATED).timestamp())
        claims: dict[str, Any] = {
            "aud": audience,
            "iss": f"https://sts.windows.net/{self.tenant_id}/",
            "iat": issued_at,
            "nbf": issued_at,
            "exp": int(expires.timestamp()),
            "appid": app.client_id,
            "appidacr": "1" if told.grant in {"secret", "basic"} else "2",
            "idp": f"https://sts.windows.net/{self.tenant_id}/",
            "idtyp": "app",
            "oid": app.object_id,
            "sub": app.object_id,
            "tid": self.tenant_id,
            "uti": base64url(uuid.uuid4().bytes),
            "ver": "1.0",
        }
        if capabilities:
            claims["xms_cc"] = capabilities
        if app.roles:
            claims["roles"] = list(app.roles)
        with self._lock:
            token = self._keys[-1].sign(claims)
        body: dict[str, object] = {
            "token_type": "Bearer",
            "expires_in": self.token_life_s,
            "ext_expires_in": self.token_life_s,
            "access_token": token,
        }
        if self.refresh_in_s is not None:
            body["refresh_in"] = self.refresh_in_s
        issued = IssuedToken(
            client=app.client_id,
            audience=audience,
            claims=claims,
            expires=expires,
            token=Secret(token, what="access token"),
        )
        self.issued.append(issued)
        self._note("token", told, "issued")
        return Answer(headers={**_JSON, "x-ms-request-id": str(uuid.uuid4())}, body=json.dumps(body).encode("ascii"))

    # ---- the open pages

    def _discovery(self) -> bytes:
        base = f"{self.authority}/{self.tenant_id}"
        document = {
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
            "jwks_uri": f"{base}/discovery/v2.0/keys",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
            "issuer": f"{base}/v2.0",
            "response_types_supported": ["code", "id_token"],
            "subject_types_supported": ["pairwise"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "tenant_region_scope": "EU",
            "cloud_instance_name": "microsoftonline.com",
        }
        return json.dumps(document).encode("ascii")

    def _instance(self) -> bytes:
        host = self.authority.removeprefix("https://")
        page = f"{self.authority}/{self.tenant_id}/v2.0/.well-known/openid-configuration"
        clouds = [{"preferred_network": host, "preferred_cache": host, "aliases": [host]}]
        document = {"tenant_discovery_endpoint": page, "api-version": "1.1", "metadata": clouds}
        return json.dumps(document).encode("ascii")

    def _open(self, kind: str, body: bytes) -> Answer:
        self._note(kind, _Told(), "ok")
        return Answer(headers={**_JSON, "x-ms-request-id": str(uuid.uuid4())}, body=body)

    # ---- helpers

    def _note(self, kind: str, told: _Told, outcome: str, error: Answer | None = None) -> None:
        self.requests.append(
            TenantRequest(
                time=self._clock(),
                kind=kind,
                client=told.client,
                grant=told.grant,
                scope=told.scope,
                claims=told.claims,
                outcome=outcome,
                **_ids(error),
            )
        )

    def _refusal(self, code: int, *, text: str = "", **rest: Any) -> Answer:
        return refusal_answer(code, text or REFUSALS[code].text, now=self._clock(), authority=self.authority, **rest)

    def _fault(
        self, name: str, action: Callable[[], Answer | None], *, times: int | None, gate: Gate | None = None
    ) -> TenantFault:
        return self._faults.add(Fault(TenantAction(name=name, act=action), times=times, gate=gate))


def _ids(error: Answer | None) -> dict[str, str]:
    """What an error's answer says of the sign-in log; nothing if it is not in Entra's words."""
    try:
        document = json.loads(error.body) if error is not None else {}
    except ValueError:
        return {}
    return {name: document[name] for name in ("trace_id", "correlation_id") if name in document}


def _capabilities(claims: str) -> list[str]:
    """The client capabilities of a token request, as a token has them: `["cp1"]`.

    Raises:
        Refused: 90023 when the claims are no JSON object of objects.
    """
    try:
        asked = json.loads(claims or "{}").get("access_token", {}).get("xms_cc", {}).get("values", [])
        return [str(each).lower() for each in asked]
    except (ValueError, AttributeError, TypeError):
        raise Refused(90023, parameter="claims") from None


def _basic(header: str) -> tuple[str, str] | None:
    """Client id and secret of a Basic header (RFC 6749, 2.3.1: both form-encoded first)."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        client, colon, secret = base64.b64decode(encoded, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return (unquote_plus(client), unquote_plus(secret)) if colon else None
