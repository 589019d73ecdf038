"""For all tests: the kit's own pytest plugin, also where the package is not installed; the engines; the order."""

from __future__ import annotations

import gc
import os
import signal
import sys
from importlib.metadata import entry_points
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("BEAM_ENTRA_CACHE", str(Path(__file__).parents[1] / ".local"))

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("beam_entra", deadline=None)
hypothesis.settings.load_profile("beam_entra")

# A run in a shell's background inherits an ignored SIGINT, and so would every command that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.engines.plugin"]
if not any(entry.value == "beam_entra.testing.plugin" for entry in entry_points(group="pytest11")):
    pytest_plugins.append("beam_entra.testing.plugin")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> None:
    """Between a failed test and the DoFn that failed are fifty frames of Beam's, which tell nothing of why it did."""
    if call.excinfo is None:
        return
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "apache_beam":
            module.__tracebackhide__ = True  # type: ignore[attr-defined]  # pytest looks for it among the globals


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones begin first: where tests are spread over processes, none is left waiting for them in the end.

    So do those on Flink, which are all in one process, that of their cluster.
    """
    items.sort(key=lambda item: not (item.get_closest_marker("long") or "flink" in getattr(item, "fixturenames", ())))


def pytest_collection_finish() -> None:
    """What has been imported stays; no collection of garbage needs to look at it again, and there are many."""
    gc.collect()
    gc.freeze()
