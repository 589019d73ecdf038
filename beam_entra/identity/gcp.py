"""Google's metadata server: an identity token of the worker's service account. google-auth speaks the protocol.

GOOGLE_APPLICATION_CREDENTIALS and gcloud's files are not looked at: the worker's own identity, or none.

See: https://cloud.google.com/compute/docs/instances/verifying-instance-identity
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from beam_entra.errors import Diagnosis, IdentityUnavailable
from beam_entra.identity.http import NoAnswer, exchange, refusal
from beam_entra.identity.redaction import redacted
from beam_entra.identity.rejection import NotHere, missing_extra

if TYPE_CHECKING:
    from beam_entra.identity.registry import Connection

__all__ = ["ask_metadata_server"]

_WHO = "Google's metadata server"
_FIX = "see that the worker runs as a service account, and with Workload Identity on GKE"


def ask_metadata_server(audience: str, connection: Connection) -> str:
    """An identity token for `audience`, full format.

    Raises:
        NotHere: Nobody answers: the worker is not on Google Cloud.
        ConfigError: google-auth is not installed.
        IdentityUnavailable, IdentityRejected: It answers with something else.
    """
    try:
        from google.auth import exceptions, transport  # noqa: PLC0415 - an extra
        from google.auth.compute_engine import IDTokenCredentials  # noqa: PLC0415 - likewise
    except ImportError:
        raise missing_extra("gcp", 'assertion_from = "gcp"') from None

    class Answer(transport.Response):  # type: ignore[misc]  # see pyproject.toml: without types
        def __init__(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
            self._status, self._headers, self._data = status, headers, data

        @property
        def status(self) -> int:
            return self._status

        @property
        def headers(self) -> Mapping[str, str]:
            return self._headers

        @property
        def data(self) -> bytes:
            return self._data

    class Request(transport.Request):  # type: ignore[misc]  # likewise
        """One attempt, past every proxy; google-auth's own way to ask would repeat by itself."""

        def __call__(
            self,
            url: str,
            method: str = "GET",
            body: bytes | None = None,
            headers: Mapping[str, str] | None = None,
            timeout: float | None = None,
            **_: Any,
        ) -> Answer:
            reply = exchange(method, url, headers=headers or {}, body=body, direct=True, timeouts=connection.timeouts)
            if reply.status != 200:
                raise refusal(reply, who=_WHO, hint=_FIX)
            return Answer(reply.status, reply.headers, reply.body)

    request = Request()
    # Without a request: with one it would ask for the account's name first, which nobody needs.
    credentials = IDTokenCredentials(None, target_audience=audience, use_metadata_identity_endpoint=True)
    try:
        credentials.refresh(request)
    except NoAnswer as silent:
        raise NotHere(
            IdentityUnavailable(
                f"{_WHO} does not answer: {silent}",
                Diagnosis(hint='assertion_from = "gcp" is for workers on Google Cloud, such as Dataflow\'s'),
            )
        ) from None
    except (exceptions.GoogleAuthError, ValueError, KeyError) as error:
        problem = redacted(str(error), str(credentials.token or ""))
    else:
        return str(credentials.token)
    raise IdentityUnavailable(f"{_WHO} gave no identity token: {problem}", Diagnosis(hint=_FIX))
