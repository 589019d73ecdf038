"""The house: imports point one way, and the rooms that decide what is allowed load without Beam and Azure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "beam_entra"

# A room may import the rooms of the rows above its own, and itself.
ROWS: tuple[tuple[str, ...], ...] = (
    ("errors", "secret", "clock", "cpus"),
    ("paths",),
    ("access",),
    ("identity", "audit"),
    ("storage",),
    ("session",),
    ("doctor",),
    ("io",),
    ("launch",),
    ("cli", "pipelines", "benchmarks"),
)
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}
RANK["testing"] = RANK["session"]  # it is shipped to users, and knows nothing of Beam
BELOW_BEAM_AND_AZURE = ("beam_entra.access", "beam_entra.paths", "beam_entra.audit.record", "beam_entra.audit.verify")


def modules(folder: Path) -> list[Path]:
    """The Python files of a folder."""
    return sorted(folder.rglob("*.py"))


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a file imports, at whatever depth, for types only or not."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room_of(name: str) -> str:
    """The room that a dotted name is in; empty for what is not ours, and for the package itself."""
    first, *rest = name.split(".")
    if first in {"pipelines", "benchmarks"}:
        return first
    return rest[0] if first == "beam_entra" and rest and (rest[0] in RANK) else ""


def name_of(file: Path) -> str:
    """The dotted name of a file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_room_has_a_row():
    """A room that is added must say where it stands."""
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} <= RANK.keys()


def test_the_map_for_contributors_is_the_house():
    """The table of docs/contributing.md has each room once, in an order in which none imports one below it."""
    text = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    table = text[text.index("## The rooms") : text.index("## Tests")]
    rows = re.findall(r"^\| (`[a-z]+(?:/|\.py)`.*?) \|", table, re.MULTILINE)
    named = [room for row in rows for room in re.findall(r"`([a-z]+)(?:/|\.py)`", row)]
    assert sorted([*named, "testing", "pipelines", "benchmarks"]) == sorted(RANK)
    assert [RANK[room] for room in named] == sorted(RANK[room] for room in named)


@pytest.mark.parametrize("file", modules(PACKAGE), ids=name_of)
def test_imports_point_one_way(file):
    """A module imports its own room and the rooms below it, never one above or beside it."""
    own = room_of(name_of(file))
    for line, name in imports(file):
        other = room_of(name)
        if own and other and other != own:
            assert RANK[other] < RANK[own], f"{name_of(file)} line {line} imports {name}"


def test_pipelines_are_at_the_top():
    """Nothing of the package imports a sample pipeline."""
    for file in modules(PACKAGE):
        assert not [name for _, name in imports(file) if room_of(name) in {"pipelines", "benchmarks"}]


def test_only_the_testing_kit_speaks_through_azure_blob():
    """azure.storage.blob is imported in the testing kit alone, which stands for Storage."""
    importers = {
        room_of(name_of(file))
        for file in modules(PACKAGE)
        for _, name in imports(file)
        if name.startswith("azure.storage")
    }
    assert importers == {"testing"}


def test_only_identity_speaks_to_entra():
    """azure.identity and MSAL are imported in identity/ alone."""
    importers = {
        room_of(name_of(file))
        for file in modules(PACKAGE)
        for _, name in imports(file)
        if name.startswith(("azure.identity", "msal"))
    }
    assert importers == {"identity"}


def test_beam_is_known_to_io_and_launch_alone():
    """Below io/ nobody knows Beam, so that sessions serve whoever is not a pipeline, too."""
    importers = {
        room_of(name_of(file))
        for file in modules(PACKAGE)
        for _, name in imports(file)
        if name.startswith("apache_beam")
    }
    assert importers == {"io", "launch"}


@pytest.mark.parametrize("name", BELOW_BEAM_AND_AZURE)
def test_what_decides_loads_without_beam_and_azure(name):
    """In a fresh interpreter neither is loaded, by whatever detour."""
    program = (
        f"import sys, {name}\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('apache_beam', 'azure', 'msal', 'urllib3', 'requests')])"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_package_holds_names_only():
    """`import beam_entra` runs nothing: its file holds `__all__`, imports for type checkers, and the lazy look-up."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    kinds = [type(node).__name__ for node in tree.body]
    assert set(kinds) <= {"Expr", "Import", "ImportFrom", "If", "Assign", "FunctionDef"}
    assert [node.name for node in tree.body if isinstance(node, ast.FunctionDef)] == ["__getattr__"]
    targets = [target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    assert targets == ["__all__"]


def test_the_package_names_what_it_exports():
    """The names for type checkers and `__all__` are the same, sorted."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in {"beam_entra.io", "beam_entra.launch"}
        for alias in node.names
    ]
    exported = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert exported == sorted(typed)


@pytest.mark.parametrize("file", modules(PACKAGE), ids=name_of)
def test_every_module_says_what_it_offers(file):
    """Each module has a docstring, and an `__all__` unless it is a program."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assigned = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    names = {target.id for target in assigned if isinstance(target, ast.Name)}
    assert "__all__" in names or file.name == "__main__.py"


def test_hidden_imports_are_seen():
    """The check itself: an import inside a function or under TYPE_CHECKING counts."""
    for_types = {name for _, name in imports(PACKAGE / "session" / "bundle.py")}
    assert "beam_entra.session.session.Session" in for_types
    in_a_function = {name for _, name in imports(PACKAGE / "testing" / "plugin.py")}
    assert "beam_entra.testing.local.LocalCloud" in in_a_function
