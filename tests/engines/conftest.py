"""Orders to run on the engines, and a terminal to look at."""

from __future__ import annotations

from tests.launch.terminal import terminal
from tests.pipelines.conftest import shop

__all__ = ["shop", "terminal"]
