"""Who is the job, and does anybody believe it? Manifest, network, clock, credential, token, delegation keys, time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from beam_entra.access.manifest import Scoping
from beam_entra.clock import MOST_SKEW
from beam_entra.doctor.finding import Finding, Mark, blocked, failed, failed_with, good, skipped, warned
from beam_entra.doctor.network import Place, reach
from beam_entra.doctor.visit import Visit
from beam_entra.errors import AccessDenied, BeamEntraError, ConfigError, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE
from beam_entra.identity.registry import plan
from beam_entra.session import JobScope, Session
from beam_entra.session.probing import probing_scope

__all__ = ["check_clock", "check_credential", "check_keys", "check_manifest", "check_network", "check_time", "lasting"]

_RIGHT = timedelta(seconds=5)
_ROLE_MISSING = "AuthorizationPermissionMismatch"


def check_manifest(visit: Visit) -> Iterator[Finding]:
    """It loads, and holds together with the endpoints."""
    try:
        manifest = visit.load()
        visit.scope = probing_scope(JobScope.launch(manifest, now=visit.clock()))
        visit.session = Session(visit.scope, clock=visit.clock, pause=visit.pause)
    except ConfigError as error:
        visit.lost["manifest"] = "there is no manifest to go by"
        yield failed_with("manifest", "", error, error.hint or "mend that file as it says")
        return
    grants = len(manifest.grants) + len(manifest.audiences)
    found = f"{manifest.pipeline} ({manifest.environment}), {_many(grants, 'grant')} on {', '.join(manifest.accounts)}"
    yield good("manifest", "", found, digest=manifest.digest)


def check_network(visit: Visit) -> Iterator[Finding]:
    """Authority and accounts are there, and are who they say."""
    identity = visit.manifest.identity
    if all(each.name.partition(":")[0] == "managed_identity" for each in plan(identity)):
        yield skipped("network", "authority", "not needed: a managed identity's tokens come from the machine")
    else:
        url = f"{identity.authority}/{identity.tenant}/v2.0/.well-known/openid-configuration"
        place = Place(about="authority", url=url, ca_file=identity.ca_file, setting="[identity]", as_entra=True)
        yield _reached(visit, place, "authority")
    for name, account in visit.manifest.accounts.items():
        place = Place(about=name, url=account.endpoint, ca_file=account.ca_file, setting=f"[accounts.{name}]")
        yield _reached(visit, place, f"account {name}")


def _reached(visit: Visit, place: Place, what: str) -> Finding:
    reached = reach(place, visit.clock)
    if reached.finding.mark is Mark.FAIL:
        visit.lost[what] = f"{'the ' if what == 'authority' else ''}{what} is out of reach"
    if reached.ahead is not None:
        visit.ahead[place.about] = reached.ahead
    return reached.finding


def check_clock(visit: Visit) -> Iterator[Finding]:
    """This machine and the services agree on the time."""
    if not visit.ahead:
        yield skipped("clock", "", "not known: no service that can be reached says what time it is")
        return
    service, ahead = max(visit.ahead.items(), key=lambda each: abs(each[1]))
    facts = {"ahead_s": round(ahead / timedelta(seconds=1), 1)}
    if abs(ahead) <= _RIGHT:
        yield good("clock", "", f"agrees with {' and '.join(visit.ahead)}", **facts)
        return
    found = f"about {_roughly(abs(ahead))} {'ahead of' if ahead > timedelta(0) else 'behind'} {service}"
    fix = "set this machine's clock, and let it be kept: chrony, systemd-timesyncd, w32time"
    if abs(ahead) <= MOST_SKEW + _RIGHT:
        yield warned("clock", "", found, fix, **facts)
        return
    visit.lost["clock"] = "this machine's clock is wrong"
    yield failed("clock", "", f"{found}: more than the {lasting(MOST_SKEW)} that a job puts right", fix, **facts)


def check_credential(visit: Visit) -> Iterator[Finding]:
    """The source gives a credential, and Entra a token for it."""
    identity = visit.manifest.identity
    sources = ", then ".join(each.name for each in plan(identity))
    try:
        visit.token = token = visit.live.broker.get(STORAGE_AUDIENCE)
    except BeamEntraError as error:
        visit.lost["token"] = "there is no token"  # noqa: S105 - a reason
        if not _is_of_entra(error):
            yield failed_with("credential", sources, error)
            yield blocked("token", "", "there is no credential to ask with")
            return
        if isinstance(error, IdentityUnavailable):
            yield skipped("credential", sources, "not known: Entra gave no answer that says so")
        else:
            yield good("credential", sources, "found")
        yield failed_with("token", "", error)
        return
    claims = token.claims
    yield good("credential", token.source or sources, "found", source=token.source or sources)
    who = [("client", claims.appid), ("object id", claims.oid), ("tenant", claims.tenant)]
    named = ", ".join(f"{what} {value}" for what, value in who if value) or "a token that does not say for whom"
    yield good(
        "token",
        "",
        f"{named}, until {_clock(token.expires)}",
        **{what.replace(" ", "_"): value for what, value in who if value},
        expires=_iso(token.expires),
        **({"uti": claims.uti} if claims.uti else {}),
    )


def _is_of_entra(error: BeamEntraError) -> bool:
    """Whether it came of asking Entra; else of the file, provider, vault or machine that has the credential."""
    return error.message.startswith(("Entra refused", "the token endpoint"))


def check_keys(visit: Visit) -> Iterator[Finding]:
    """Each account gives this identity user delegation keys, which sign SAS."""
    for account in visit.manifest.accounts:
        what = f"account {account}"
        if visit.manifest.scoping is Scoping.BEARER:
            yield skipped("delegation key", account, 'not needed: scoping = "bearer" presents the token itself')
        elif why := visit.why_not(what):
            yield blocked("delegation key", account, why)
        else:
            try:
                key = visit.live.key(account)
            except BeamEntraError as error:
                visit.lost[what] = f"{account} gives no delegation key"
                yield failed_with("delegation key", account, error, _delegator(visit, account, error))
            else:
                yield good("delegation key", account, f"until {_clock(key.expires)}", expires=_iso(key.expires))


def _delegator(visit: Visit, account: str, error: BeamEntraError) -> str:
    if not (isinstance(error, AccessDenied) and error.diagnosis.code == _ROLE_MISSING):
        return ""
    return f"give {who(visit)} the role Storage Blob Delegator on storage account {account}"


def who(visit: Visit) -> str:
    """To whom a role is to be given."""
    token = visit.token
    if token is not None and token.claims.oid:
        return f"object id {token.claims.oid}"
    return f"client {visit.manifest.identity.client}"


def check_time(visit: Visit) -> Iterator[Finding]:
    """How long the job may run, and how long what it is given lives."""
    life, token = visit.manifest.lifetime, visit.token
    assert token is not None  # noqa: S101 - the check needs it
    now = visit.clock()
    left = token.expires - now
    runs = f"{lasting(life.job)} after each fresh token" if life.rolling else f"{lasting(life.job)} from launch"
    lives = f"a SAS lives {lasting(life.token)}" if visit.manifest.scoping is Scoping.SAS else "no SAS is used"
    found = f"the job may run {runs}; {lives}, this token {_roughly(left)} more, then it is renewed"
    facts = {"job_s": int(life.job.total_seconds()), "token_s": int(left.total_seconds())}
    if left < life.token:
        fix = "see whether the tenant shortens this identity's tokens; else set token in [lifetime] below that"
        yield warned("time", "", f"{found}: sooner than a SAS", fix, **facts)
    else:
        yield good("time", "", found, **facts)


def _roughly(span: timedelta) -> str:
    """To the minute, from two minutes on: no Date header says it better."""
    minute = timedelta(minutes=1)
    return lasting(round(span / minute) * minute if span >= 2 * minute else span)


def lasting(span: timedelta) -> str:
    """`2 h`, `1 h 59 min`, `15 min`, `8 min 20 s`, `40 s`: the two largest units."""
    seconds = round(span / timedelta(seconds=1))
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        parts.append((count, unit))
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    shown = [f"{count} {unit}" for count, unit in parts[first : first + 2] if count]
    return " ".join(shown) or "0 s"


def _clock(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _iso(instant: datetime) -> str:
    return f"{instant.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
