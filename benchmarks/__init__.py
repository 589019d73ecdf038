"""Side by side with Beam's own azfs: `make bench`. See docs/benchmarks.md for the figures and how they are taken."""

from __future__ import annotations

__all__: list[str] = []
