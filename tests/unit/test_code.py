"""The code itself: linters, types, layers, and what no file may contain."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from sojourn.settings import environment
from sojourn.system.run import Completed, run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PACKAGES = ("sojourn", "tasks", "workflows", "workers", "web", "lab")

FORBIDDEN = [
    re.compile(r"\b(pypi|pythonhosted|npmjs|rubygems)\.(org|com)\b"),
    re.compile(r"\b(proxy\.golang|index\.docker|registry[\w-]*\.docker|quay|ghcr|gcr)\.(org|io)/"),
    re.compile(r"--(extra-)?index-url|find-links|trusted-host"),
    re.compile(r"(?<![\w>})-])/(work/(main|shared)|opt/(pypi|wheels)|home/\w+|root/\w+|Users/\w+)"),
]


def _checked(*argv: str) -> Completed:
    """Run a tool of this virtual environment in the repository."""
    program, *rest = argv
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not installed: pip install -e '.[dev]'")
    return run([BIN / program, *rest], deadline_s=120, check=False, cwd=ROOT, env=environment())


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        (
            "mypy",
            "--explicit-package-bases",
            "tests/conftest.py",
            "tests/unit",
            "tests/integration",
            "tests/hostile",
        ),
        ("lint-imports",),
    ],
    ids=" ".join,
)
def test_a_tool_finds_nothing(command: tuple[str, ...]) -> None:
    """Linter, formatter, type checker and layers find nothing in the checkout."""
    done = _checked(*command)
    assert done.returncode == 0, done.stdout + done.stderr


def _modules(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


def test_every_module_has_its_layer() -> None:
    """A module in no layer would be covered by no contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = _contract(settings, "layers")["layers"]
    placed = {name.strip() for layer in layers for name in re.split(r"[|:]", layer)}
    modules = {f"sojourn.{path.stem}" for path in (ROOT / "sojourn").iterdir() if _is_module(path)}
    assert modules - placed == set()


def _contract(settings: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(contract for contract in settings["contracts"] if contract["type"] == kind)


def _is_module(path: Path) -> bool:
    return path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())


#: Modules of ``tasks`` that are not steps, but what all steps share.
MACHINERY = {"__init__", "delivery", "policy", "step"}


def test_every_step_is_independent_by_contract() -> None:
    """The contract that keeps steps from importing each other names all of them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    independent = _contract(settings, "independence")["modules"]
    steps = {f"tasks.{path.stem}" for path in _modules("tasks") if path.stem not in MACHINERY}
    assert set(independent) == steps


#: Programs that run inside a host of the lab without the project's settings.
ON_THEIR_OWN = ("lab/workloads/",)


def test_one_door_to_the_environment() -> None:
    """Only the settings read the environment."""
    found = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for path in _modules(*PACKAGES)
        for node in ast.walk(ast.parse(path.read_text()))
        if _reads_environment(node)
    ]
    assert [
        place for place in found if not place.startswith(("sojourn/environment.py", *ON_THEIR_OWN))
    ] == []


def _reads_environment(node: ast.AST) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "name", "")
    return name in {"environ", "environb", "getenv", "putenv", "unsetenv"}


def test_one_catch_all_at_each_edge() -> None:
    """``except Exception`` is only at the edge of a step, of a row, and of the command line."""
    found = {
        str(path.relative_to(ROOT))
        for path in _modules("sojourn", "tasks", "workflows", "workers", "web")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler) and _catches_all(node)
    }
    assert found <= {"tasks/delivery.py", "workers/reconciler.py", "sojourn/cli/program.py"}


def _catches_all(handler: ast.ExceptHandler) -> bool:
    """Whether it catches any error and does not raise it again."""
    every = handler.type is None or (
        isinstance(handler.type, ast.Name) and handler.type.id == "Exception"
    )
    return every and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))


def _tracked() -> list[Path]:
    listed = run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"],
        deadline_s=10,
        cwd=ROOT,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


#: A comment for a tool, which must stay on the line that it is about.
PRAGMA = re.compile(r" +# (noqa|type: ignore)\b.*$")


def test_no_line_of_python_is_too_long() -> None:
    """Unlike Ruff's E501 this counts lines that end with an address, and texts with ``noqa``."""
    longest = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in _tracked()
        if path.suffix == ".py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(PRAGMA.sub("", line)) > longest
    ]
    assert found == []


def test_no_file_depends_on_one_machine() -> None:
    """No file names a package registry or a path that exists on a developer's machine only."""
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in _tracked()
        if path != Path(__file__)
        for pattern in FORBIDDEN
        for match in pattern.finditer(path.read_text(errors="replace"))
    ]
    assert found == []


def test_constraints_are_names_and_versions() -> None:
    """Each constraint is a name and a version: no address, no path, no option."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"(#.*|[A-Za-z0-9._-]+==[A-Za-z0-9.+!-]+)?", line)


def test_every_test_has_a_docstring() -> None:
    """The name of a test alone does not describe what it requires."""
    silent = [
        f"{path.name}:{node.lineno}"
        for path in _modules("tests/unit", "tests/integration", "tests/hostile")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
