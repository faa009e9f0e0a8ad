"""Every code of a failure is explained, with what to do about it, and no other code is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sojourn.criu.diagnosis import messages
from sojourn.preflight.finding import CHECKS

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("sojourn", "tasks", "workflows", "workers", "web", "lab")
TROUBLESHOOTING = CHECKOUT / "docs/troubleshooting.md"

CODE = re.compile(r"[A-Z][A-Z0-9]+(_[A-Z0-9]+)*")

#: Functions and classes that take a code, with the position of that argument.
TAKERS = {
    "Failure": 0,
    "Refused": 2,
    "CriuFailed": 2,
    "blocks": 0,
    "needs_option": 0,
    "Finding": 0,
    "Reason": 0,
}


def written() -> set[str]:
    """Return every code in the source: of a class of errors, or an argument of a taker."""
    trees = (
        ast.parse(path.read_text())
        for package in PACKAGES
        for path in (CHECKOUT / package).rglob("*.py")
    )
    return {
        code
        for tree in trees
        for node in ast.walk(tree)
        for code in _codes(node)
        if CODE.fullmatch(code)
    }


def _codes(node: ast.AST) -> Iterator[str]:
    if (
        isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and _names_code(node.targets[0].id)
    ):
        yield from _text(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TAKERS:
        yield from (
            code for argument in node.args[TAKERS[node.func.id] :][:1] for code in _text(argument)
        )


def _names_code(name: str) -> bool:
    return name in {"code", "IS_CORDONED"}


def _text(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def explained(heading: str) -> set[str]:
    """Return the codes of the table below a heading."""
    text = TROUBLESHOOTING.read_text().split(f"\n### {heading}\n")[1].split("\n##")[0]
    cells = re.findall(r"^\| (`[A-Z][^|]*`) \|", text, re.MULTILINE)
    return {code for cell in cells for code in re.findall(r"`(\w+)`", cell)}


def test_every_check_is_explained_and_no_other() -> None:
    """The table of troubleshooting.md has all codes of the checks."""
    assert explained("Of the checks") == set(CHECKS)


def test_every_code_is_explained_and_no_other() -> None:
    """Those of the checks, of Sojourn and of CRIU's messages have separate tables."""
    known = written() | set(CHECKS) | {row.code for row in messages()}
    found = explained("Of the checks") | explained("Of Sojourn") | explained("Of CRIU")
    assert found == known
