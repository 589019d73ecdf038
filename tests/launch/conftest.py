"""Jobs are launched on the same lake that reading and writing are tested on."""

from __future__ import annotations

from tests.io.conftest import bundle, lake
from tests.launch.terminal import terminal

__all__ = ["bundle", "lake", "terminal"]
