"""Imports point down only, and each foreign library is known to few files."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import autoprune

ROOT = Path(autoprune.__file__).parent

LAYERS: list[set[str]] = [
    {
        "bootstrap",
        "errors",
        "files",
        "journal",
        "lines",
        "memory",
        "process_wide",
        "progress",
        "ranks",
        "sparsity",
        "spill",
        "strict_json",
    },
    {
        "attention",
        "conditioning",
        "residual",
        "language",
        "algorithms",
        "allocation",
        "statistics",
        "distribution",
        "layer_statistics",
        "solvers",
        "models",
        "data",
        "generate",
    },
    {"stream", "backward", "gradients", "channels", "damage", "layer", "equal_harm", "judge", "trial"},
    {
        "inputs",
        "prune_blocks",
        "output",
        "budget",
        "card",
        "tasks",
        "harness",
        "evaluation",
        "evaluate_each",
        "measurements",
        "allocate",
        "auto",
        "share_out",
        "side_by_side",
        "bench",
        "diagnosis",
        "figures",
    },
    {"search", "scoring", "discover", "api", "report", "speed", "sweeps"},
    {"demo", "terminal", "live", "cli", "__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}

COMMANDS = {"demo", "diagnose", "evaluate", "library", "prune", "report", "search", "speed", "sweep"}
"""Files of the command line."""

MODULES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """The entry of the table a file belongs to; "" for the package's own __init__."""
    return "" if path == Path("__init__.py") else path.parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            # `from autoprune import x` may mean the module x
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(path: Path) -> set[str]:
    """Entries of the table a file imports, itself aside."""
    names = {name.split(".")[1] for name in imported(path) if name.startswith("autoprune.")}
    return names - {part(path)}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_has_a_layer(path: Path):
    assert part(path) in LEVEL or not part(path)


def test_the_table_has_no_module_that_does_not_exist():
    assert set(LEVEL) == {part(path) for path in MODULES} - {""}


@pytest.mark.parametrize("path", [path for path in MODULES if part(path)], ids=str)
def test_imports_point_down(path: Path):
    for name in own(path):
        assert name in LEVEL, f"{path} imports {name}"
        assert LEVEL[name] <= LEVEL[part(path)], f"{path} (layer {LEVEL[part(path)]}) imports {name} ({LEVEL[name]})"


def test_no_two_modules_import_each_other():
    uses: dict[str, set[str]] = {}
    for path in MODULES:
        uses.setdefault(part(path), set()).update(own(path))
    finished: set[str] = set()
    while ready := {name for name in uses if name not in finished and uses[name] <= finished}:
        finished |= ready
    assert finished == set(uses), f"in a cycle: {set(uses) - finished}"


@pytest.mark.parametrize("path", [path for path in MODULES if part(path) == "language"], ids=str)
def test_the_language_knows_nothing_but_errors(path: Path):
    assert own(path) <= {"errors"}


@pytest.mark.parametrize(
    ("library", "files"),
    [
        (
            "transformers",
            {
                "models/disk.py",
                "models/layout.py",
                "models/linears.py",
                "models/opening.py",
                "generate.py",
                "cli/shared.py",
                "search/proposers/local.py",
                "speed/stopwatch.py",
            },
        ),
        ("greenlet", {"stream.py"}),
        ("click", {f"cli/{name}.py" for name in COMMANDS | {"main", "shared"}}),
        ("rich", {"cli/demo.py", "cli/evaluate.py", "terminal.py", "live.py"}),
        ("matplotlib", {"figures/picture.py"}),
        ("jinja2", {"report/page.py"}),
        ("datasets", {"data.py"}),
        ("safetensors", {"models/opening.py", "models/soundness.py", "generate.py", "scoring/store.py"}),
        ("sqlite3", {"search/archive.py"}),
        ("zstandard", {"speed/disk.py"}),
        ("openai", {"search/proposers/openai.py"}),
        ("lm_eval", {"harness.py"}),
        ("ray", {"search/executors/on_ray.py"}),
        ("llguidance", {"search/proposers/local.py"}),
    ],
)
def test_foreign_libraries_are_known_to_few_files(library: str, files: set[str]):
    users = {str(path) for path in MODULES if any(name.split(".")[0] == library for name in imported(path))}
    assert users == files


def test_the_command_line_uses_transformers_only_to_quiet_it():
    tree = ast.parse((ROOT / "cli/shared.py").read_text("utf-8"))
    quiet = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "quiet")

    def uses(node: ast.AST) -> int:
        return sum(
            isinstance(child, ast.ImportFrom) and str(child.module).startswith("transformers")
            for child in ast.walk(node)
        )

    assert uses(tree) == uses(quiet) == 1


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_nothing_is_executed_as_python(path: Path):
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"eval", "exec", "compile", "__import__"}


SEARCH = [path for path in MODULES if path.parent == Path("search")]


@pytest.mark.parametrize("path", SEARCH, ids=str)
def test_a_search_knows_neither_models_nor_pruning(path: Path):
    """Proposers and executors do, in folders of their own."""
    assert own(path) <= {"bootstrap", "errors", "files", "language"}
    assert not {"torch", "transformers"} & {name.split(".")[0] for name in imported(path)}
