"""The base install is light: a source whose library is missing says how to install it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from beam_entra.access import IdentitySettings
from beam_entra.clock import utc_now
from beam_entra.errors import ConfigError
from beam_entra.identity import EntraSource
settings = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
who = "11111111-2222-4333-8444-555555555555"
identity = IdentitySettings(tenant=who, client=who, credential=sys.argv[2], settings=settings,
                            authority="https://127.0.0.1:9")
try:
    EntraSource(identity, clock=utc_now).acquire("https://storage.azure.com")
except ConfigError as error:
    print(error)
"""

CASES = {
    "gcp": (
        "google,google.auth",
        ["federated", "assertion_from", "gcp"],
        'assertion_from = "gcp" needs a library that is not installed here',
    ),
    "aws": (
        "boto3,botocore",
        ["federated", "assertion_from", "aws", "aws_region", "eu-central-1"],
        'assertion_from = "aws" needs a library that is not installed here',
    ),
    "a chain with gcp": (
        "google,google.auth",
        ["chain", "chain", "federated:gcp, developer"],
        'assertion_from = "gcp" needs a library that is not installed here',
    ),
}


def ran(program: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_a_missing_extra_says_how_to_install_it(case):
    """Also in a chain: what is missing from the installation is not passed over."""
    modules, arguments, says = CASES[case]
    shown = ran(WITHOUT, modules, *arguments)
    assert shown.startswith(says)
    assert f"pip install 'beam-entra[{'aws' if case == 'aws' else 'gcp'}]'" in shown


def test_without_key_vaults_library():
    """The error names the setting and the extra. The vault's token is not asked for in vain."""
    shown = ran(
        WITHOUT,
        "azure.keyvault,azure.keyvault.secrets",
        "client_secret",
        *("client_secret", "keyvault:https://contoso.vault.azure.net/secrets/job"),
        *("keyvault_credential", "managed_identity"),
    )
    assert shown.startswith("[identity] client_secret: a keyvault: reference needs a library that is not installed")
    assert "pip install 'beam-entra[keyvault]'" in shown


def test_the_libraries_of_extras_are_loaded_when_they_are_asked():
    """Importing the package loads none of them."""
    program = (
        "import sys, beam_entra.identity\n"
        "print([m for m in ('google.auth', 'boto3', 'botocore', 'azure.keyvault.secrets') if m in sys.modules])"
    )
    assert ran(program).strip() == "[]"


@pytest.mark.parametrize(
    ("extra", "library"), [("gcp", "google-auth"), ("aws", "boto3"), ("keyvault", "azure-keyvault-secrets")]
)
def test_the_library_comes_with_its_extra_alone(extra, library):
    """The base install asks for none of them."""
    wanted = [each for each in map(Requirement, requires("beam-entra") or []) if each.name == library]
    assert wanted
    assert not [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    assert [each for each in wanted if each.marker and each.marker.evaluate({"extra": extra})]
