"""Is it there? Name, TCP, TLS and the time of day of one service. No credential is sent."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import unquote, urlsplit

from requests.utils import DEFAULT_CA_BUNDLE_PATH, get_environ_proxies, select_proxy

from beam_entra.clock import Clock
from beam_entra.doctor.finding import Fact, Finding, failed, good, warned

__all__ = ["Place", "Reached", "reach"]

_EXPIRED, _NOT_YET_VALID = 10, 9  # of OpenSSL's verification results
_OTHER_NAME = {62, 64}
_OUT_OF_ORDER = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a service is.

    Attributes:
        about: What it is called in the findings.
        url: What to ask for; any answer will do.
        ca_file: As in the manifest; "" for the CAs that are trusted anyway.
        setting: Where `ca_file` is set.
        as_entra: It is spoken to as azure-identity does: through a proxy of the environment's, and with certifi's CAs.
    """

    about: str
    url: str
    ca_file: str
    setting: str
    as_entra: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """What came of it.

    Attributes:
        ahead: By how much this machine's clock is ahead of the service's; None where that is not known.
    """

    finding: Finding
    ahead: timedelta | None = None


def reach(place: Place, clock: Clock, *, timeout_s: float = 10.0) -> Reached:
    """Look the name up, connect, check the certificate, and ask what time it is.

    Args:
        timeout_s: For each of them.
    """
    where = urlsplit(place.url)
    host, port = where.hostname or "", where.port or 443
    proxy = select_proxy(place.url, get_environ_proxies(place.url)) if place.as_entra else None
    via = urlsplit(proxy) if proxy else None
    first, first_port = (via.hostname or "", via.port or 8080) if via else (host, port)
    whom = f"{'the proxy ' if via else ''}{first}:{first_port}"
    through = f" through {whom}" if via else ""

    def no_way(found: str, fix: str) -> Reached:
        """To the place, or to the proxy before it."""
        if via:
            found = f"{host}:{port} is out of reach: {found}"
            fix = f"check HTTPS_PROXY where the job runs, or name {host} in NO_PROXY"
        return Reached(finding=failed("network", place.about, found, fix, host=host, port=port))

    def no(found: str, fix: str) -> Reached:
        return Reached(finding=failed("network", place.about, f"{found}{through}", fix, host=host, port=port))

    try:
        context = ssl.create_default_context(cafile=_trusted(place))
    except OSError as error:
        why = error.strerror or "it is no PEM file of a CA"
        fix = f"let ca_file in {place.setting} name the PEM file of a CA"
        return no(f"the CA file {place.ca_file} cannot be used: {why}", fix)
    connection = http.client.HTTPSConnection(first, first_port, timeout=timeout_s, context=context)
    if via:
        connection.set_tunnel(host, port, headers=_proxy_headers(via.username, via.password))
    try:
        connection.connect()
        secured = connection.sock
        address, reached_port = secured.getpeername()[:2]
        version = secured.version() if isinstance(secured, ssl.SSLSocket) else "TLS"
        answer, sent, received = _head(connection, where.path or "/", clock)
    except socket.gaierror:
        return no_way(
            f"the name of {whom} cannot be resolved" if via else f"the name {first} cannot be resolved",
            "check the name, and that DNS knows it here; a private endpoint's zone must be linked to this network",
        )
    except ssl.SSLCertVerificationError as error:
        found = f"the certificate of {host}:{port} is not trusted: {error.verify_message}"
        return no(found, _certificate_fix(error, place))
    except TimeoutError:
        return no_way(
            f"{whom} does not answer within {timeout_s:g} s",
            f"open the way from this machine to {first}:{first_port}: firewall, route, private endpoint",
        )
    except ConnectionRefusedError:
        return no_way(f"{whom} refuses the connection", "nothing listens there: check host and port of the endpoint")
    except ssl.SSLError as error:
        found = f"{host}:{port} does not speak TLS ({error.reason or 'it hung up'})"
        return no(found, "check the port, and what stands in between")
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or (str(error) if via else "") or type(error).__name__
        return no_way(
            f"{whom} cannot be talked to: {why}",
            f"open the way from this machine to {first}:{first_port}: firewall, route, private endpoint",
        )
    finally:
        connection.close()
    facts: dict[str, Fact] = {"host": host, "port": port, "status": answer.status}
    there = f"{host}{'' if address == host else f' at {address}'} port {reached_port}{through}"
    ahead = _ahead(answer.headers.get("Date", ""), sent, received)
    if answer.status >= _OUT_OF_ORDER:
        fix = "try again in a moment; see the service's status page"
        finding = warned("network", place.about, f"{there} answers HTTP {answer.status}", fix, **facts)
    else:
        finding = good("network", place.about, f"{there}, {version}", **facts)
    return Reached(finding=finding, ahead=ahead)


def _head(
    connection: http.client.HTTPSConnection, path: str, clock: Clock
) -> tuple[http.client.HTTPResponse, datetime, datetime]:
    """The answer, and when it was asked for and there."""
    sent = clock()
    connection.request("HEAD", path, headers={"User-Agent": "beam_entra"})
    answer = connection.getresponse()
    answer.read()
    return answer, sent, clock()


def _trusted(place: Place) -> str | None:
    """The file of CAs that the job's own requests to this place are checked with; None for the system's."""
    if place.ca_file or not place.as_entra:
        return place.ca_file or None
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH


def _certificate_fix(error: ssl.SSLCertVerificationError, place: Place) -> str:
    if error.verify_code in {_EXPIRED, _NOT_YET_VALID}:
        return "set this machine's clock if it is wrong; else the service needs a new certificate"
    if error.verify_code in _OTHER_NAME:
        return "write the endpoint with the name that the certificate is for"
    return f"name the PEM file of the CA that signed it as ca_file in {place.setting}"


def _proxy_headers(user: str | None, password: str | None) -> dict[str, str]:
    if not user:
        return {}
    pair = f"{unquote(user)}:{unquote(password or '')}".encode()
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair).decode()}"}


def _ahead(date: str, sent: datetime, received: datetime) -> timedelta | None:
    """By how much the clock is ahead: as little as an answer allows for that took its time, and is cut to seconds."""
    try:
        made = parsedate_to_datetime(date)
        least, most = sent - made - timedelta(seconds=1), received - made
    except (ValueError, TypeError):
        return None
    return max(least, min(most, timedelta(0)))
