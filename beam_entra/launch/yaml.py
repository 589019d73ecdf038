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

_OWN = ("flags", "pickle_library", "self")  # of `main`, when it makes the options


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
    options = YamlOptions(argv, pickle_library="cloudpickle", **_options_of(spec))
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
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is no YAML: {_problem(error)}", Diagnosis(hint="mend it")) from None
    except (TemplateError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no template: {error}", Diagnosis(hint="mend it")) from None
    if not isinstance(spec, dict) or "pipeline" not in spec:
        raise ConfigError(f"{file} has no `pipeline:`", Diagnosis(hint="see pipelines/orders.yaml for one"))
    return spec


def _problem(error: yaml.YAMLError) -> str:
    """What and where; the text around it, which PyYAML quotes, has the variables filled in, whatever they hold."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    return f"{error.problem} at line {error.problem_mark.line + 1} of what the variables make of it"


def _options_of(spec: dict[str, Any]) -> dict[str, Any]:
    """The pipeline options that the file sets. They would count for more than the command line's.

    Raises:
        ConfigError: Some are for whoever launches the pipeline to say: under which manifest it runs, first of all. Or
            they are none.
    """
    options = yaml_transform.SafeLineLoader.strip_metadata(spec.get("options") or {})
    if not isinstance(options, dict):
        raise ConfigError("`options:` is no mapping", Diagnosis(hint="write one option a line: `streaming: true`"))
    if strange := {type(name).__name__ for name in options if not isinstance(name, str)}:
        raise ConfigError(
            f"an option's name under `options:` is no text, but {', '.join(sorted(strange))}",
            Diagnosis(hint="write a name before each colon; in quotes if it is a word that means something to YAML"),
        )
    ours = argparse.ArgumentParser(add_help=False)
    EntraOptions._add_argparse_args(ours)
    taken = sorted(options.keys() & {*_OWN, *(action.dest for action in ours._actions)})
    if taken:
        told = {action.dest: action.option_strings[0] for action in ours._actions if action.help != argparse.SUPPRESS}
        flags = ", ".join(told[name] for name in taken if name in told)
        raise ConfigError(
            f"the pipeline sets {', '.join(taken)} itself, under `options:`",
            Diagnosis(
                hint="take it out; "
                + (f"whoever launches the pipeline says so: {flags}" if flags else "the launcher has its own")
            ),
        )
    return options


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
