"""The job scope: what a launch decides, and workers carry with them. It holds no secret."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from beam_entra.access.manifest import AccessManifest, Scoping
from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.identity import check_credential
from beam_entra.paths import BlobPath

__all__ = ["JobScope", "whole_seconds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobScope:
    """The frozen, picklable recipe that every worker process opens its session from.

    Attributes:
        job: The job's id: pipeline, time of launch, and six random hex digits.
        manifest: Who the job is and what it may touch, endpoints included.
        launched: When it was launched.
        deadline: When every right of the job ends. In a rolling life each session has its own, which this one does not
            bind.
    """

    job: str
    manifest: AccessManifest
    launched: datetime
    deadline: datetime

    @classmethod
    def launch(cls, manifest: AccessManifest, *, now: datetime) -> JobScope:
        """Make the scope of a new job.

        Raises:
            ConfigError: The manifest names a credential that does not exist, or without a setting it needs.
        """
        check_credential(manifest.identity)
        job = f"{manifest.pipeline}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        return cls(job=job, manifest=manifest, launched=now, deadline=whole_seconds(now + manifest.lifetime.job))

    @property
    def folder(self) -> BlobPath:
        """Where the job's audit trail lies: a folder of its own below the manifest's audit path."""
        return self.manifest.audit.child(f"{self.job}/")

    @property
    def caution(self) -> str:
        """What is wider in this job than in others, for people; empty when nothing is."""
        if self.manifest.scoping is Scoping.SAS:
            return ""
        return (
            'scoping = "bearer": requests for data carry the access token itself, which reaches as far as the identity'
            " does; no SAS holds them to one blob and one permission"
        )

    @property
    def identity(self) -> str:
        """As whom the job acts, for people."""
        who = self.manifest.identity
        return f"{self.manifest.pipeline} ({self.manifest.environment}), client {who.client}, tenant {who.tenant}"

    def to_json(self) -> str:
        """For pipeline options, which are text."""
        return json.dumps(
            {
                "job": self.job,
                "manifest": self.manifest.to_dict(),
                "launched": self.launched.isoformat(),
                "deadline": self.deadline.isoformat(),
            }
        )

    @classmethod
    @lru_cache(maxsize=16)
    def from_json(cls, text: str) -> JobScope:
        """Back from `to_json`.

        Raises:
            ConfigError: The text is no job scope.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            return cls(
                job=fields["job"],
                manifest=AccessManifest.from_dict(fields["manifest"]),
                launched=_aware(fields["launched"]),
                deadline=_aware(fields["deadline"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"the pipeline options hold no job scope that this version can read ({type(error).__name__})",
                Diagnosis(hint="launch with the version of beam_entra that the workers have"),
            ) from None


def whole_seconds(instant: datetime) -> datetime:
    """What Storage counts in: the end of a key or SAS could never be equal to a deadline between two seconds."""
    return instant.replace(microsecond=0)


def _aware(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("an instant without a time zone")
    return instant
