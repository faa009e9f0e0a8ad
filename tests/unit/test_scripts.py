"""Lua scripts: package data that is read whole, and documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.cluster import batches, counters, ledger, queue
from sojourn.cluster.scripts import PRELUDE, scripts_of

LUA = Path(__file__).parents[2] / "sojourn/cluster/lua"
FILES = sorted(LUA.rglob("*.lua"))
SCRIPTS = [path for path in FILES if path.stem != PRELUDE]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(LUA)))
def test_every_script_documents_its_interface(path: Path) -> None:
    """A script begins with a comment on its keys, its arguments, what is atomic, and its answer."""
    comment = path.read_text().partition("\n\n")[0]
    assert [line for line in comment.splitlines() if not line.startswith("--")] == []
    for topic in ("KEYS", "ARGV", "Atomic: ", "Returns "):
        assert topic in comment


def test_every_script_belongs_to_a_module() -> None:
    """Each directory is read by the module it is named after, and by no other."""
    modules = {"queue": queue, "batches": batches, "ledger": ledger, "counters": counters}
    for name, module in modules.items():
        files = {path.stem for path in SCRIPTS if path.parent.name == name}
        assert set(module.SCRIPTS) == files
    assert {path.parent.name for path in SCRIPTS} == set(modules)


def test_constants_and_prelude_come_first() -> None:
    """A script finds what Python defines, then what all scripts of its directory share."""
    take = scripts_of("queue", SWEEP=7, ROOM="sojourn:room:")["take"]
    assert take.startswith('local SWEEP = 7\nlocal ROOM = "sojourn:room:"\n')
    assert take.endswith((LUA / "queue/take.lua").read_text())
    assert (LUA / "queue/prelude.lua").read_text() in take
