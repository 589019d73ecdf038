"""For all tests: the kit's own pytest plugin, also where the package is not installed; one Azurite for all of them."""

from __future__ import annotations

import os
import signal
from importlib.metadata import entry_points
from pathlib import Path

os.environ.setdefault("BEAM_ENTRA_CACHE", str(Path(__file__).parents[1] / ".local"))

# A run in a shell's background inherits an ignored SIGINT, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

if not any(entry.value == "beam_entra.testing.plugin" for entry in entry_points(group="pytest11")):
    pytest_plugins = ["beam_entra.testing.plugin"]
