"""Jobs are launched on the same lake that reading and writing are tested on."""

from __future__ import annotations

from tests.io.conftest import bundle, lake

__all__ = ["bundle", "lake"]
