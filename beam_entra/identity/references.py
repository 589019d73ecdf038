"""Secrets by reference: the manifest names where a secret is, the worker reads it there."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.secret import Secret

__all__ = ["resolve_path", "resolve_secret"]


def resolve_secret(reference: str, *, setting: str, environ: Mapping[str, str] = os.environ) -> Secret:
    """Read the secret that `reference` names.

    Args:
        reference: `env:NAME`, or `file:PATH` (a file that only its owner can read).
        setting: The manifest's key, for the error.
        environ: The process environment.

    Raises:
        ConfigError: The reference names nothing, or a file that others can read.
    """
    scheme, _, name = reference.partition(":")
    if scheme == "env" and name:
        text = environ.get(name, "").strip()
        if not text:
            raise ConfigError(
                f"[identity] {setting} refers to the environment variable {name}, which is not set on this worker",
                Diagnosis(hint=f"set {name} where the workers run, or refer to a file with file:PATH"),
            )
        return Secret(text, what=setting)
    if scheme == "file" and name:
        return Secret(_read_private_file(Path(name), setting), what=setting)
    raise ConfigError(
        f"[identity] {setting} is no reference that this credential understands",
        Diagnosis(hint="name the secret by reference: env:NAME or file:PATH; secrets themselves do not belong in it"),
    )


def resolve_path(value: str, *, setting: str, environ: Mapping[str, str] = os.environ) -> Path:
    """The path that a setting gives: itself, or what the variable of `env:NAME` holds.

    Raises:
        ConfigError: The variable is not set.
    """
    scheme, _, name = value.partition(":")
    if scheme == "env":
        path = environ.get(name, "").strip()
        if not path:
            raise ConfigError(
                f"[identity] {setting} refers to the environment variable {name}, which is not set on this worker",
                Diagnosis(hint=f"set {name} to the path of the file, or write the path into the manifest"),
            )
        return Path(path)
    return Path(name if scheme == "file" else value)


def _read_private_file(path: Path, setting: str) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"[identity] {setting} refers to the file {path}, which cannot be read: {problem}",
            Diagnosis(hint="check the path and that the worker's user may read the file"),
        ) from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(
            f"[identity] {setting} refers to the file {path}, which others on the machine can read",
            Diagnosis(hint=f"chmod 600 {path}, and replace the secret if others may have seen it"),
        )
    if not text:
        raise ConfigError(
            f"[identity] {setting} refers to the file {path}, which is empty",
            Diagnosis(hint="write the secret into the file"),
        )
    return text
