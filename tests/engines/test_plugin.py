"""The plugin itself, without an engine."""

from __future__ import annotations

import pytest

from tests.engines import plugin


def test_clusters_are_known_when_xdist_looks_for_groups(pytestconfig: pytest.Config) -> None:
    """Else each process would have a cluster of its own. Where there is no xdist, nobody looks."""
    asked = [each.plugin for each in pytestconfig.hook.pytest_collection_modifyitems.get_hookimpls()][::-1]
    looks = [at for at, each in enumerate(asked) if type(each).__name__ == "WorkerInteractor"]
    assert all(asked.index(plugin) < at for at in looks)
    assert bool(looks) == hasattr(pytestconfig, "workerinput")
