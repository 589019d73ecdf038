"""Puts the witnesses that are npm packages under .local/witnesses: `make npm-witnesses`.

They are pinned by the lock file in `npm/`; what is there of this lock file is kept.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from beam_entra.errors import ConfigError
from beam_entra.testing.node import default_cache, install_packages

__all__ = ["PINNED", "installed_modules", "main"]

PINNED = Path(__file__).parent / "npm"
_LAST = Path("node_modules", "oidc-provider", "package.json")


def installed_modules() -> Path:
    """The folder node_modules, which need not be there."""
    digest = hashlib.sha256((PINNED / "package-lock.json").read_bytes()).hexdigest()
    return default_cache() / "witnesses" / f"npm-{digest[:12]}" / "node_modules"


def main() -> int:
    """Install them; the exit code says whether they are there."""
    try:
        install_packages(installed_modules().parent, PINNED, main=_LAST, what="the witnesses")
    except ConfigError as error:
        print(f"{error}\n    fix: {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
