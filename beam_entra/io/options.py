"""The flags that every scoped pipeline has."""

from __future__ import annotations

import argparse
import os
from typing import Any, TypeVar

from apache_beam.options.pipeline_options import PipelineOptions

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.session import JobScope

__all__ = ["ENDPOINTS_VARIABLE", "EntraOptions"]

ENDPOINTS_VARIABLE = "BEAM_ENTRA_ENDPOINTS"
_VIEWS = "_views"

SomeOptions = TypeVar("SomeOptions", bound=PipelineOptions)


class EntraOptions(PipelineOptions):  # type: ignore[misc]  # Beam's PipelineOptions is untyped
    """Pipeline options with the access manifest.

    Derive your own options from it, and from PipelineOptions beside it: Beam looks for flags only in classes derived
    from that directly, and warns of all others.

        class OrdersOptions(EntraOptions, PipelineOptions): ...
    """

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("identity and access")
        group.add_argument(
            "--access_manifest",
            metavar="FILE",
            help="the TOML file that says who the job is and what it may read and write",
        )
        group.add_argument(
            "--access_endpoints",
            metavar="FILE",
            default=os.environ.get(ENDPOINTS_VARIABLE),
            help="a TOML file that says where Entra and Storage are, if not at their public addresses, such as the one "
            f"that `beam-entra local up` writes (default: what {ENDPOINTS_VARIABLE} names)",
        )
        group.add_argument(
            "--preflight",
            action="store_true",
            help="before the launch, check what `beam-entra doctor` checks, print it, and launch nothing if it fails",
        )
        group.add_argument(
            "--job_report", metavar="FILE", help="when the job has ended, write to this file, as JSON, how it went"
        )
        group.add_argument(
            "--no_progress", action="store_true", help="show no line on the terminal of how the job stands"
        )
        group.add_argument("--entra_job_scope", help=argparse.SUPPRESS)  # set at launch, read by workers

    def view_as(self, cls: type[SomeOptions]) -> SomeOptions:
        """As Beam's, whose views share what they show. Each is made once.

        Beam asks for some hundred while a pipeline is built, and parses the flags for each.
        """
        views: dict[type[PipelineOptions], Any] = self.__dict__.setdefault(_VIEWS, {})
        if cls not in views or views[cls]._all_options is not self._all_options:  # made before these were there
            views[cls] = super().view_as(cls)
        view: SomeOptions = views[cls]
        return view

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != _VIEWS}

    def load_manifest(self) -> AccessManifest:
        """The manifest that the flags name, with its endpoints.

        Raises:
            ConfigError: There is none, or it does not hold together.
        """
        flags = self.view_as(EntraOptions)
        if not flags.access_manifest:
            raise ConfigError(
                "the job has no access manifest, so it may do nothing",
                Diagnosis(hint="name one with --access_manifest FILE"),
            )
        manifest = AccessManifest.load(flags.access_manifest)
        return manifest.at(Endpoints.load(flags.access_endpoints)) if flags.access_endpoints else manifest

    def job_scope(self) -> JobScope:
        """The scope that the launch put here.

        Raises:
            ConfigError: The pipeline was not launched as a `ScopedPipeline`.
        """
        text = self.view_as(EntraOptions).entra_job_scope
        if not text:
            raise ConfigError(
                "this pipeline has no job scope, so it may access nothing",
                Diagnosis(hint="make it with beam_entra.ScopedPipeline(options=...) in place of beam.Pipeline"),
            )
        return JobScope.from_json(text)
