"""An OpenID Connect issuer outside Entra: the Kubernetes cluster, or whatever else runs the job."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from beam_entra.clock import Clock, utc_now
from beam_entra.secret import Secret
from beam_entra.testing.certificates import RunCertificates, write_private
from beam_entra.testing.https import Answer, HttpsServer, Request, ServiceHandler
from beam_entra.testing.keys import SigningKey, key_set
from beam_entra.testing.watch import Journal

__all__ = ["TOKEN_EXCHANGE_AUDIENCE", "WorkloadIssuer"]

TOKEN_EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"  # noqa: S105  # an audience, no secret
_DISCOVERY = "/.well-known/openid-configuration"
_JSON = {"Content-Type": "application/json"}


class WorkloadIssuer:
    """Signs workload assertions and publishes its keys where a tenant's discovery finds them.

    Serves from the moment it is made until `close`, or the end of its `with` block.

    Attributes:
        fetches: The path of each request that was answered, such as a tenant's request for the keys.
    """

    def __init__(self, certificates: RunCertificates, *, clock: Clock = utc_now) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._keys = [SigningKey()]
        self._assertions: list[Secret] = []
        self.fetches: Journal[str] = Journal()
        self._server = HttpsServer(certificates.server_context(), ServiceHandler, self, name="issuer").start()

    @property
    def url(self) -> str:
        """The `iss` of its assertions."""
        return self._server.url

    @property
    def assertions(self) -> list[Secret]:
        """Every assertion it signed, for a test that searches for leaks."""
        with self._lock:
            return list(self._assertions)

    def assertion(
        self, subject: str, *, audience: str = TOKEN_EXCHANGE_AUDIENCE, life_s: float = 600, not_before_s: float = 0
    ) -> Secret:
        """Sign an assertion for `subject`.

        Args:
            life_s: From now until it expires; negative for one that has expired already.
            not_before_s: From now until it may be used.
        """
        now = self._clock().timestamp()
        claims = {
            "iss": self.url,
            "sub": subject,
            "aud": audience,
            "iat": int(now),
            "nbf": int(now + not_before_s),
            "exp": int(now + life_s),
            "jti": str(uuid.uuid4()),
        }
        with self._lock:
            signed = Secret(self._keys[-1].sign(claims), what="assertion")
            self._assertions.append(signed)
        return signed

    def write_assertion_file(
        self, path: Path, subject: str, *, audience: str = TOKEN_EXCHANGE_AUDIENCE, life_s: float = 600
    ) -> Secret:
        """Sign an assertion and put it where a worker reads it: mode 0600, replaced in a single step."""
        signed = self.assertion(subject, audience=audience, life_s=life_s)
        write_private(path, signed.reveal().encode("ascii"))
        return signed

    def rotate_keys(self, *, keep_old: bool = False) -> None:
        """Sign with a new key from now on; the old ones are published no more unless `keep_old`."""
        fresh = SigningKey()
        with self._lock:
            self._keys = [*self._keys, fresh] if keep_old else [fresh]

    def answer(self, request: Request) -> Answer:
        """Serve the discovery document and the keys."""
        if request.path == _DISCOVERY:
            body = json.dumps(
                {
                    "issuer": self.url,
                    "jwks_uri": f"{self.url}/keys",
                    "response_types_supported": ["id_token"],
                    "subject_types_supported": ["public"],
                    "id_token_signing_alg_values_supported": ["RS256"],
                }
            ).encode("ascii")
        elif request.path == "/keys":
            with self._lock:
                body = key_set(self._keys)
        else:
            return Answer(status=404)
        self.fetches.append(request.path)
        return Answer(headers=_JSON, body=body)

    def close(self) -> None:
        """Stop to serve. Safe to call twice."""
        self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
