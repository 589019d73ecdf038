"""How a job is launched and watched: the scoped pipeline, its workers, its progress, and the end of it."""

from __future__ import annotations

from beam_entra.launch.command_line import command_line
from beam_entra.launch.pipeline import JobReport, ScopedPipeline

__all__ = ["JobReport", "ScopedPipeline", "command_line"]
