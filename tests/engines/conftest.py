"""Orders to run on the engines."""

from __future__ import annotations

from tests.pipelines.conftest import shop

__all__ = ["shop"]
