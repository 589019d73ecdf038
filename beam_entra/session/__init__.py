"""Where identity, access, audit and storage meet: JobScope -> Session -> BundleSession."""

from __future__ import annotations

from beam_entra.session.bundle import BundleSession, CommittedBlob, Fetched
from beam_entra.session.copying import copy_blob
from beam_entra.session.counts import tallied, tally
from beam_entra.session.interim import PeriodicSeals, seal_running
from beam_entra.session.marker import read_marker, versions_there
from beam_entra.session.registry import adopt_session, close_session, has_ended, live_scopes, open_session
from beam_entra.session.scope import JobScope
from beam_entra.session.sealing import StorageTrail, open_trail, seal_job, seal_late
from beam_entra.session.session import Session
from beam_entra.session.watching import TrailWatch

__all__ = [
    "BundleSession",
    "CommittedBlob",
    "Fetched",
    "JobScope",
    "PeriodicSeals",
    "Session",
    "StorageTrail",
    "TrailWatch",
    "adopt_session",
    "close_session",
    "copy_blob",
    "has_ended",
    "live_scopes",
    "open_session",
    "open_trail",
    "read_marker",
    "seal_job",
    "seal_late",
    "seal_running",
    "tallied",
    "tally",
    "versions_there",
]
