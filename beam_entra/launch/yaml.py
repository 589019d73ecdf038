"""Run a Beam YAML pipeline as the job of an access manifest: `python -m beam_entra.launch.yaml --help`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.yaml import yaml_provider, yaml_transform
from jinja2 import TemplateError

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.io.options import EntraOptions
from beam_entra.io.yaml import PROVIDERS
from beam_entra.launch.command_line import command_line
from beam_entra.launch.pipeline import ScopedPipeline

__all__ = ["main"]


class YamlOptions(EntraOptions, PipelineOptions):  # type: ignore[misc]  # Beam's PipelineOptions is untyped
    """The flags of this launcher."""

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.prog = "python -m beam_entra.launch.yaml"
        group = parser.add_argument_group("pipeline")
        group.add_argument("--yaml_pipeline_file", metavar="FILE", help="the pipeline")
        group.add_argument(
            "--jinja_variables", metavar="JSON", default="{}", help="values for {{ ... }} in it, as a JSON object"
        )
        group.add_argument(
            "--providers", action="store_true", help="print where the provider listing is, and do nothing else"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run with these flags, or with the command line's, and print how it went."""
    flags = YamlOptions(argv)
    if flags.providers:
        print(PROVIDERS)
        return
    if not flags.yaml_pipeline_file:
        raise ConfigError("no pipeline is given", Diagnosis(hint="name its file with --yaml_pipeline_file"))
    spec = load(Path(flags.yaml_pipeline_file), flags.jinja_variables)
    settings = yaml_transform.SafeLineLoader.strip_metadata(spec.get("options", {}))
    options = YamlOptions(argv, pickle_library="cloudpickle", **settings)
    with ScopedPipeline(options=options) as p:
        yaml_transform.expand_pipeline(
            p,
            spec,
            providers=yaml_provider.merge_providers(yaml_provider.load_providers(str(PROVIDERS))),
            pipeline_path=str(flags.yaml_pipeline_file),
        )
    print(p.report)


def load(file: Path, variables: str) -> dict[str, Any]:
    """The pipeline's YAML, with these variables filled in.

    Raises:
        ConfigError: It is not there, or no pipeline.
    """
    try:
        text = yaml_transform.expand_jinja(file.read_text(encoding="utf-8"), _variables(variables), [str(file.parent)])
        spec = yaml.load(text, Loader=yaml_transform.SafeLineLoader)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}", Diagnosis(hint="check the path")) from None
    except (yaml.YAMLError, TemplateError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no YAML: {error}", Diagnosis(hint="mend it")) from None
    if not isinstance(spec, dict) or "pipeline" not in spec:
        raise ConfigError(f"{file} has no `pipeline:`", Diagnosis(hint="see pipelines/orders.yaml for one"))
    return spec


def _variables(text: str) -> dict[str, Any]:
    try:
        variables = json.loads(text)
    except ValueError:
        variables = None
    if not isinstance(variables, dict):
        raise ConfigError(
            "--jinja_variables is no JSON object", Diagnosis(hint="write --jinja_variables='{\"day\": \"2026-03-08\"}'")
        )
    return variables


if __name__ == "__main__":
    with command_line():
        main()
