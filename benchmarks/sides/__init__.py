"""The sides of the rows: ours, Beam's azfs, and floors."""

from __future__ import annotations

__all__: list[str] = []
