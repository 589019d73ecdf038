"""A session: what one worker process opens from a job scope. Live credentials, their caches, the audit segment."""

from __future__ import annotations

import itertools
import logging
import os
import platform
import threading
import uuid
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NoReturn, TypeVar

from beam_entra.access.downscope import Permission, SasSpec, downscope
from beam_entra.access.manifest import Scoping
from beam_entra.audit import Receipt, SegmentFacts, SegmentWriter
from beam_entra.audit.record import (
    BundleClosed,
    BundleOpened,
    DeadlineExtended,
    KeyAcquired,
    Record,
    SasIssued,
    TokenAcquired,
)
from beam_entra.clock import MOST_SKEW, Clock, NeverBack, ServiceClock, utc_now
from beam_entra.errors import Diagnosis, IdentityExpired, IdentityUnavailable
from beam_entra.identity import STORAGE_AUDIENCE, AccessToken, CredentialSource, EntraSource, TokenBroker
from beam_entra.paths import BlobPath
from beam_entra.session.buffers import Buffers
from beam_entra.session.bundle import BundleSession
from beam_entra.session.counts import forget, tally
from beam_entra.session.deadline import Deadline
from beam_entra.session.scope import JobScope
from beam_entra.storage import AppendBlobSegments, Authorization, BlobService, DelegationKey, Exchange, Sas, mint
from beam_entra.storage.service import bearer
from beam_entra.storage.transport import connection_pool

__all__ = ["Session"]

_LONGEST_KEY = timedelta(days=7) - timedelta(minutes=30)  # Storage's limit is 7 days, counted from a start in the past
_LEAD_UP = (BundleOpened, SasIssued, BundleClosed)  # recorded before or after an access; they let no data out
_BRIEF_S = 1.0  # a pause that an interrupted job makes still
_KEPT_BYTES = 48 << 20  # of one reader: 32 MiB under way, 8 in hand, and the shorter ones that it begins with
_MINUTE = timedelta(minutes=1)
_AT_ONCE = timedelta(seconds=1)  # what is decided so long ago still holds: SAS end on whole seconds
_RENEWED_AT = 0.75  # of a SAS's life
_NEXT_RETIREMENT = timedelta(minutes=1)  # of a delegation key
_RETIRED_KEPT = timedelta(hours=1)  # no SAS lives longer, so then none is left that such a key has signed
_AUDIT_SAS = 4  # kept: that of the segment that ends, that of the one that continues it, and of seals

_LOG = logging.getLogger(__name__)

T = TypeVar("T")


class Session:
    """One job in one process. Thread-safe; refuses to be pickled, since it holds live credentials.

    Args:
        scope: The job.
        clock: The worker's. What Storage and Entra decide about, the session times by theirs, as their answers tell it:
            see `ServiceClock`. How long a token lives it counts by the worker's.
        source: Where tokens come from; by default what the manifest says.
        pause: Waits so many seconds between attempts, and says True to give up; see `interrupt` for the default.

    Attributes:
        ends_before_seal: Whoever seals the trail closes this session first, as a launcher does with its own. Elsewhere
            a bundle's end is waited for, lest it be recorded behind the seal.
    """

    def __init__(
        self,
        scope: JobScope,
        *,
        clock: Clock = utc_now,
        source: CredentialSource | None = None,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        self.scope = scope
        self._closed = threading.Event()
        self._interrupted = threading.Event()
        self.clock = ServiceClock(clock, noticed=self._clock_is_off)
        self._warned: set[str] = set()
        self._deadline = Deadline(scope, self.clock())
        self._last_tenth = _last_tenth(scope)
        self.bearer = scope.manifest.scoping is Scoping.BEARER
        self.pid = os.getpid()
        self.ends_before_seal = False
        self.pause = pause or self._rest
        self.source = source or EntraSource(
            scope.manifest.identity, clock=clock, on_the_way=self._token_acquired, heard=self.clock.hear
        )
        self.service = BlobService(
            scope.manifest.accounts.__getitem__,
            exchange=Exchange(connection_pool, pause=self.pause, clock=self.clock),
            clock=self.clock,
        )
        self.broker = TokenBroker(self.source, clock=NeverBack(clock), acquired=self._token_acquired, pause=self._rest)
        self._keys: dict[str, DelegationKey] = {}
        self._retired: dict[str, datetime] = {}  # keys, since when
        self._sas_numbers = itertools.count(1)
        self._kept_until: dict[str, datetime] = {}
        self._key_locks = {account: threading.Lock() for account in scope.manifest.accounts}
        self._audit_sas: dict[BlobPath, Sas] = {}
        self._audit_sas_lock = threading.Lock()
        self.process = str(uuid.uuid4())
        self._trail = SegmentWriter(
            AppendBlobSegments(self.service, scope.folder, self._authorise_append),
            _facts(scope, self.pid),
            self.clock,
            process=self.process,
            max_bytes=scope.manifest.trail.segment_bytes,
            max_records=scope.manifest.trail.segment_records,
            max_age=scope.manifest.trail.segment_age,
        )
        self._last_receipt: Receipt | None = None
        self._record_lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._counts_lock = threading.Lock()
        self.buffers = Buffers(_KEPT_BYTES)
        self._resources: dict[str, Any] = {}
        self._resources_lock = threading.Lock()
        self._put_off: deque[Callable[[], object]] = deque()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a session is never pickled; pickle its JobScope")

    def bundle(self, step: str, *, audience: str = STORAGE_AUDIENCE) -> BundleSession:
        """Open a bundle session: a live token for `audience`, and a record that the bundle began.

        Args:
            step: What the bundle is for, in the trail.

        Raises:
            IdentityExpired: The job's deadline has passed.
            IdentityError: No token.
            AuditUnavailable: The trail cannot be written.
        """
        self._catch_up()
        return BundleSession(self, step, audience=audience)

    def record(
        self, model: type[Record], *, bundle: str | None = None, prompt: bool = True, **facts: Any
    ) -> Receipt:
        """Append to the trail. Wait on the receipt before anything of the access is let out.

        Args:
            prompt: Have it written at once; else when somebody waits, with all that are pending, or after a moment.
        """
        with self._record_lock:  # so that the last receipt is the last record's
            now = prompt and model not in _LEAD_UP
            receipt = self._last_receipt = self._trail.append(model, bundle=bundle, prompt=now, **facts)
        return receipt

    @property
    def broken(self) -> bool:
        """Whether the trail could not be written: this session accesses nothing any more. The next one may."""
        return self._trail.broken

    @property
    def latest(self) -> Receipt | None:
        """That of the last record so far."""
        return self._last_receipt

    @property
    def started(self) -> bool:
        """Whether anything has been recorded."""
        return self._last_receipt is not None

    @property
    def deadline(self) -> datetime:
        """When every right of this process ends. Of a rolling life: where the last fresh token has moved it."""
        return self._deadline.at

    @property
    def over(self) -> bool:
        """Whether the job's time is over for good; of a rolling life it is not, a fresh token may move it on."""
        return not self._deadline.rolling and self.clock() >= self.deadline

    def check_deadline(self, tried: str) -> datetime:
        """Now, if the job may still do something.

        Raises:
            IdentityExpired: It may not.
            IdentityError: Its life is a rolling one, and there is no fresh token.
        """
        self._check_clock(tried)
        now = self.clock()
        if self._deadline.rolling and now >= self.deadline:
            self.broker.get(STORAGE_AUDIENCE)  # it was idle: no token lives as long as that, so this one is fresh
            now = self.clock()
        if now >= self.deadline:
            raise IdentityExpired(
                f"the job's time ended at {self.deadline:%Y-%m-%d %H:%M:%SZ}; every access is refused since",
                Diagnosis(
                    tried=tried,
                    identity=self.scope.identity,
                    hint="give the job more time: [lifetime] job in the access manifest, then launch it again",
                ),
            )
        self._warn_of_the_end(now)
        return now

    def _check_clock(self, tried: str) -> None:
        if not self.clock.wrong:
            return
        self.service.ask_the_time(self.scope.manifest.audit.account)  # it may have been set right
        if self.clock.wrong:
            raise IdentityUnavailable(
                f"this worker's clock is {_off(self.clock.skew)} Entra's and Storage's: no SAS of it would live as "
                "long as it should",
                Diagnosis(
                    tried=tried,
                    identity=self.scope.identity,
                    hint="set the machine's clock, and have NTP keep it; what is put right is at most "
                    f"{MOST_SKEW // _MINUTE} minutes",
                ),
            )

    def _clock_is_off(self, skew: timedelta) -> None:
        if skew:
            self._warn_once(
                "clock",
                "this worker's clock is %s Entra's and Storage's. The job goes by theirs; set the machine's clock, and "
                "have NTP keep it",
                _off(skew),
            )

    def _warn_of_the_end(self, now: datetime) -> None:
        scope = self.scope
        if self._last_tenth is not None and now > self._last_tenth:
            self._warn_once(
                "end",
                "job %s has %d s left, less than a tenth of its life: at %s every access of it is refused. If it needs "
                "longer, raise [lifetime] job in the access manifest and launch it again",
                scope.job,
                (scope.deadline - now) // timedelta(seconds=1),
                f"{scope.deadline:%Y-%m-%d %H:%M:%SZ}",
            )

    def _warn_once(self, about: str, text: str, *facts: object) -> None:
        if about not in self._warned:
            self._warned.add(about)
            _LOG.warning(text, *facts)

    def key(self, account: str) -> DelegationKey:
        """The live delegation key of an account; asked for once, whatever the number of threads.

        Nobody waits here for another account's, which may be throttled.
        """
        with self._key_locks[account]:
            now = self.check_deadline(f"get a user delegation key of account {account}")
            key = self._key_at_hand(account, now)
            if key is not None:
                return key
            key, answer = self.service.delegation_key(
                account,
                partial(self.broker.get, STORAGE_AUDIENCE),
                expires=min(self.deadline, now + _LONGEST_KEY),
                client_request_id=str(uuid.uuid4()),
                renew=self.broker.renew,
            )
            self.record(
                KeyAcquired,
                key=key.key_id,
                account=account,
                token=key.token_id,
                expires=key.expires,
                **answer.ids(),
            )
            self.count("delegation_keys")
            self._keys[account] = key
            return key

    def _key_at_hand(self, account: str, now: datetime) -> DelegationKey | None:
        """The key of an account, if it lives as long as a SAS, or the job."""
        key = self._keys.get(account)
        if key is None or (key.expires <= now + self.scope.manifest.lifetime.token and key.expires < self.deadline):
            return None
        return key

    def retire_key(self, sas: Sas) -> bool:
        """Sign with a new key from now on, since Storage takes this SAS for none.

        Once a minute for each account: where a new key does not help, something else is wrong.

        Returns:
            Whether another SAS will be under another key.
        """
        account = sas.spec.account
        with self._key_locks[account]:
            now = self.clock()
            if sas.key_id not in self._retired:
                if now < self._kept_until.get(account, now):
                    return False
                self._kept_until[account] = now + _NEXT_RETIREMENT
                self._retired[sas.key_id] = now
                for key_id, since in list(self._retired.items()):
                    if now - since > _RETIRED_KEPT:
                        self._retired.pop(key_id, None)  # another account's thread may have been here
                key = self._keys.get(account)
                if key is not None and key.key_id == sas.key_id:
                    del self._keys[account]
            return True

    def issue(
        self,
        spec_for: Callable[[datetime | None], SasSpec],
        *,
        path: BlobPath,
        permission: Permission,
        bundle: str | None,
    ) -> Sas:
        """Mint a SAS and record it.

        Args:
            spec_for: Downscopes, given the end of the key that will sign, if there is one. Called before any request,
                so that a denial comes first; and again where a key or a token had to be waited for.
        """
        began = self.clock()
        at_hand = self._key_at_hand(path.account, began)
        spec = spec_for(None if at_hand is None else at_hand.expires)
        self.broker.get(STORAGE_AUDIENCE)  # no SAS without a live token, though the key may live longer
        key = self.key(path.account)
        now = self.clock()
        if key is not at_hand or abs(now - began) > _AT_ONCE:  # the clock may have been put right meanwhile
            spec = spec_for(key.expires)
        signed = not self.scope.manifest.accounts[path.account].emulator
        correlation = bundle or self.process
        sas = Sas(
            sas_id=f"sas-{next(self._sas_numbers):012x}",
            key_id=key.key_id,
            spec=spec,
            query=mint(spec, key, correlation=correlation, sign_correlation=signed),
            expires=spec.expires,
            renew_at=now + (spec.expires - now) * _RENEWED_AT,
        )
        self.record(
            SasIssued,
            bundle=bundle,
            sas=sas.sas_id,
            key=key.key_id,
            token=key.token_id,
            path=str(path),
            resource=spec.resource,
            permission=permission.value,
            expires=spec.expires,
            correlation=correlation if signed else None,
        )
        self.count("sas_issued")
        return sas

    def present_token(self, spec_for: Callable[[datetime | None], SasSpec]) -> tuple[str, Authorization]:
        """The job's own token for an access, in place of the SAS; only where the scoping is `bearer`.

        Args:
            spec_for: As for `issue`: decides before any request, and again when the token is here.

        Returns:
            Its id in the trail, and how it is presented.
        """
        if not self.bearer:
            raise ValueError("the job's token goes to no blob: its scoping is SAS")
        spec_for(None)
        token = self.broker.get(STORAGE_AUDIENCE)
        spec_for(None)  # getting it may have taken until after the deadline
        return token.token_id, bearer(token, self.broker.renew)

    def live(self, sas: Sas | None) -> bool:
        """Whether a SAS can be used for a while longer, or no later one could be had."""
        if sas is None or sas.key_id in self._retired:
            return False
        now = self.clock()
        return now < sas.renew_at or (sas.expires >= self.deadline and now < sas.expires)

    def count(self, name: str, by: int = 1) -> None:
        """Add to a counter of the session, for Beam's metrics."""
        tally(self.scope.job, name, by)
        with self._counts_lock:
            self._counts[name] += by

    def take_counts(self) -> dict[str, int]:
        """The counters since the last call."""
        with self._counts_lock:
            counts, self._counts = dict(self._counts), Counter()
            return counts

    def resource(self, name: str, make: Callable[[], T]) -> T:
        """Something that all bundles of this job share in this process, made once."""
        with self._resources_lock:
            if name not in self._resources:
                self._resources[name] = make()
            shared: T = self._resources[name]
            return shared

    def close(self) -> None:
        """Make the trail durable and end it; forget tokens, keys, SAS and what the bundles shared.

        Raises:
            AuditUnavailable: Some record is not durable.
        """
        try:
            self.end_trail()
        finally:
            self._closed.set()
            self._interrupted.set()
            self.broker.close()
            self._keys.clear()
            self._audit_sas.clear()
            for shared in self._resources.values():
                if isinstance(shared, Executor):  # an interrupt may leave it a thread that nothing else ends
                    shared.shutdown(wait=False)
            self._resources.clear()
            forget(self.scope.job)

    def interrupt(self) -> None:
        """Nobody is to wait any more: who pauses gives up, and so does who would for more than a second. Does not wait.

        What seals the trail may still try again.
        """
        self._interrupted.set()

    def _rest(self, seconds: float) -> bool:
        if not self._interrupted.is_set():
            return self._interrupted.wait(seconds)
        return seconds > _BRIEF_S or self._closed.wait(seconds)

    def end_trail(self) -> None:
        """Make the trail durable and end it: nothing can be accessed any more, since nothing can be recorded."""
        self.settle()  # whoever writes may have to record a SAS for that before he can write what is left
        self._trail.close()

    @property
    def segments(self) -> tuple[str, ...]:
        """The file names of the process's own segments so far, in order."""
        return self._trail.segments

    def settle(self) -> None:
        """Return when every record so far is durable.

        Raises:
            AuditUnavailable: Some record is not.
        """
        if self._put_off:  # asked here: `token()` settles at each call
            self._catch_up()
        if self._last_receipt is not None:
            self._last_receipt.wait()

    def put_off(self, deed: Callable[[], object]) -> None:
        """Have it done when a bundle is opened next, or the session settles or ends. Takes no lock.

        For finalizers: the garbage collector runs them in the middle of anything, also of a record's making.
        """
        self._put_off.append(deed)

    def _catch_up(self) -> None:
        while self._put_off:
            try:
                deed = self._put_off.popleft()
            except IndexError:  # another thread was quicker
                return
            deed()

    def _token_acquired(self, token: AccessToken, attempts: int = 1) -> None:
        if not self.clock.told:  # the source has told no time, and each record has one
            self.service.ask_the_time(self.scope.manifest.audit.account)
        claims, correction = token.claims, self.clock.correction
        self.record(
            TokenAcquired,
            token=token.token_id,
            audience=token.audience,
            uti=claims.uti,
            oid=claims.oid,
            appid=claims.appid,
            tenant=claims.tenant,
            expires=token.expires + correction,
            attempts=attempts,
            source=token.source or None,
        )
        self.count("tokens_acquired")
        if token.audience == STORAGE_AUDIENCE:
            self._deadline.extend(
                token.secret,
                acquired=token.acquired + correction,
                expires=token.expires + correction,
                told=lambda at: self.record(DeadlineExtended, token=token.token_id, deadline=at),
            )

    def _authorise_append(self, path: BlobPath) -> Authorization:
        """For the trail itself: create and append on one blob of the job's folder.

        Raises:
            NotGranted: The path is not in the job's folder. Nothing was sent.
        """

        def spec_for(key_expires: datetime | None) -> SasSpec:
            return downscope(
                self.scope.manifest,
                path,
                Permission.APPEND,
                now=self.check_deadline(f"append to {path}"),
                deadline=self.deadline,
                key_expires=key_expires,
                folder=self.scope.folder,
            )

        if self.bearer:
            return self.present_token(spec_for)[1]
        with self._audit_sas_lock:
            sas = self._audit_sas.get(path)
            if sas is None or not self.live(sas):
                sas = self.issue(spec_for, path=path, permission=Permission.APPEND, bundle=None)
                self._audit_sas.pop(path, None)
                self._audit_sas[path] = sas
                if len(self._audit_sas) > _AUDIT_SAS:
                    del self._audit_sas[next(iter(self._audit_sas))]
            return Authorization(sas=sas.query, resign=partial(self.retire_key, sas))


def _last_tenth(scope: JobScope) -> datetime | None:
    """When the last tenth of the job's life begins; None where its end moves on."""
    if scope.manifest.lifetime.rolling:
        return None
    return scope.deadline - (scope.deadline - scope.launched) / 10


def _off(skew: timedelta) -> str:
    """How a worker's clock is off, when the services are ahead of it by `skew`."""
    minutes, seconds = divmod(round(abs(skew).total_seconds()), 60)
    return f"{minutes} min {seconds} s {'behind' if skew > timedelta(0) else 'ahead of'}"


def _facts(scope: JobScope, pid: int) -> SegmentFacts:
    manifest = scope.manifest
    return SegmentFacts(
        job=scope.job,
        pipeline=manifest.pipeline,
        environment=manifest.environment,
        tenant=manifest.identity.tenant,
        client=manifest.identity.client,
        credential=manifest.identity.credential,
        scoping=manifest.scoping.value,
        host=platform.node() or "unknown",
        pid=pid,
        deadline=scope.deadline,
        rolling_s=manifest.lifetime.job // timedelta(seconds=1) if manifest.lifetime.rolling else None,
        manifest_digest=manifest.digest,
        accounts={name: settings.endpoint for name, settings in manifest.accounts.items()},
    )
