"""For all tests: the kit's own pytest plugin, also where the package is not installed."""

from __future__ import annotations

from importlib.metadata import entry_points

if not any(entry.value == "beam_entra.testing.plugin" for entry in entry_points(group="pytest11")):
    pytest_plugins = ["beam_entra.testing.plugin"]
