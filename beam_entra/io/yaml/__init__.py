"""Beam YAML under the job's identity: `ReadFromBlob` and `WriteToBlob` for rows, and a launcher.

python -m beam_entra.launch.yaml --yaml_pipeline_file=orders.yaml --access_manifest=orders.access.toml --runner=...
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["PROVIDERS"]

PROVIDERS = Path(__file__).with_name("providers.yaml")
"""The provider listing that Beam YAML includes."""
