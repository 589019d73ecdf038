"""The launcher of Beam YAML: what a pipeline's file may not say, and what an error may not repeat."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from beam_entra.errors import ConfigError
from beam_entra.launch.yaml import load, main

PIPELINE = "pipeline:\n  transforms:\n    - type: Create\n      config: {elements: [1]}\n"


def written(folder: Path, text: str) -> Path:
    """A file with this pipeline."""
    file = folder / "pipeline.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ("access_manifest", "says so: --access_manifest"),
        ("access_endpoints", "says so: --access_endpoints"),
        ("preflight", "says so: --preflight"),
        ("job_report", "says so: --job_report"),
        ("entra_job_scope", "the launcher has its own"),
        ("pickle_library", "the launcher has its own"),
        ("flags", "the launcher has its own"),
        ("self", "the launcher has its own"),
    ],
)
def test_a_pipeline_does_not_choose_its_manifest(tmp_path: Path, option: str, hint: str) -> None:
    """Options of the file come before those of the command line: it may not say as whom it runs, and where."""
    file = written(tmp_path, f"{PIPELINE}options:\n  streaming: false\n  {option}: {tmp_path / 'other.toml'}\n")
    with pytest.raises(ConfigError, match=f"the pipeline sets {option} itself") as caught:
        main([f"--yaml_pipeline_file={file}", f"--access_manifest={tmp_path / 'reviewed.toml'}"])
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(hint)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("options", ["streaming", "[streaming]"])
def test_options_that_are_none(tmp_path: Path, options: str) -> None:
    """One error, and not a traceback out of Beam."""
    file = written(tmp_path, f"{PIPELINE}options: {options}\n")
    with pytest.raises(ConfigError, match="is no mapping"):
        main([f"--yaml_pipeline_file={file}"])


@pytest.mark.parametrize(("name", "kind"), [("on", "bool"), ("7", "int"), ("null", "NoneType")])
def test_options_whose_name_is_no_text(tmp_path: Path, name: str, kind: str) -> None:
    """YAML has more keys than options have names."""
    file = written(tmp_path, f"{PIPELINE}options:\n  {name}: 1\n")
    with pytest.raises(ConfigError, match=f"is no text, but {kind}"):
        main([f"--yaml_pipeline_file={file}"])


def test_the_command_lines_manifest_is_the_one(tmp_path: Path) -> None:
    """The file's other options are taken, and the manifest is looked for where the launcher said."""
    file = written(tmp_path, f"{PIPELINE}options:\n  streaming: false\n")
    with pytest.raises(ConfigError, match=r"reviewed\.toml: there is no such access manifest"):
        main([f"--yaml_pipeline_file={file}", f"--access_manifest={tmp_path / 'reviewed.toml'}"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pipeline:\n  a: {{ word }}: b\n", "mapping values are not allowed here at line 2"),
        ("pipeline: [{{ word }}\n", "at line 1"),
        ("pipeline: {{ word }}\n  x: [\n", "at line 2"),
        ("pipeline: {{ nothing }} {{ word }}\n", "'nothing' is undefined"),
        ("{{ word }}\n", "has no `pipeline:`"),
    ],
)
def test_no_error_repeats_what_was_filled_in(tmp_path: Path, text: str, says: str) -> None:
    """PyYAML quotes the line that it does not understand; a variable may hold whatever it holds."""
    word = "correct-horse-battery"
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, text), json.dumps({"word": word}))
    assert says in str(caught.value)
    assert word not in str(caught.value)
    assert caught.value.__cause__ is None
