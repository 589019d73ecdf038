"""The threads that all bundles of a job share in one process: some fetch, some stage. None waits for another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from beam_entra.session import Session

__all__ = ["fetch_threads", "stage_threads"]

_FETCHERS = 32
_STAGERS = 16


def fetch_threads(session: Session) -> ThreadPoolExecutor:
    """For ranges that are fetched ahead."""
    return session.resource("fetch threads", _fetchers)


def stage_threads(session: Session) -> ThreadPoolExecutor:
    """For blocks that are staged."""
    return session.resource("stage threads", _stagers)


def _fetchers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_FETCHERS, thread_name_prefix="beam-entra-fetch")


def _stagers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_STAGERS, thread_name_prefix="beam-entra-stage")
