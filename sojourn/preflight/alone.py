"""Whether a tree has alone all that it uses; else which trees would have it, moved together.

Half of a pipe, of shared memory or of a local connection cannot be moved. The *closure* of a
process is the smallest set of trees that hold everything in common: its own, those of the
processes that share something with it, those that share something with these, and so on. Where one
tree holds it all, that tree can be moved in place of the process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from sojourn.errors import ProcessGone
from sojourn.model import Json
from sojourn.preflight import candidate
from sojourn.preflight.finding import Finding, blocks, named
from sojourn.preflight.holders import Outside, outside, users_of
from sojourn.preflight.scan import Tree, scan
from sojourn.system import process

#: After so many rounds a closure is not searched any further: it has become half the host.
ROUNDS = 8

INIT = 1

SEPARATE = (
    "End the process that shares it, or start the program so that it shares nothing: with its "
    "input and output in files, for example."
)


@dataclass(frozen=True)
class Closure:
    """The roots of the smallest set of trees that hold everything in common.

    ``one`` is the process whose tree is the whole closure, None if there is no such process.
    """

    roots: tuple[int, ...]
    one: int | None

    def to_json(self) -> Json:
        """Return it as people and programs see it."""
        trees = [{"pid": pid, "command": _command(pid)} for pid in self.roots]
        return {"trees": trees, "one": self.one}


def check(found: Outside, closure: Closure) -> Iterator[Finding]:
    """Yield what of a tree is outside: a finding for each thing and each process that holds it."""
    hint = _hint(closure)
    for one in found.held:
        yield blocks(one.thing.code, one.sentence, hint)
    for thing in found.unheld:  # of the kernel, or sent to nobody yet
        yield blocks(thing.code, thing.to("something outside the tree"), SEPARATE)


def in_use(paths: tuple[str, ...]) -> Iterator[Finding]:
    """Yield the FIFOs of a tree that processes of this host, the destination, have open."""
    for path, pid in users_of(paths).items():
        yield blocks(
            "FIFO_IN_USE",
            f"Process {pid} ({_command(pid)}) has the FIFO {path} open; the tree would read from "
            "it, or write to it.",
            "Stop that process, or choose another destination.",
        )


def closure_of(tree: Tree, found: Outside, worker: int | None) -> Closure:
    """Return the closure of a tree, by what of it was found outside."""
    if not found.held:
        return Closure((tree.root.pid,), tree.root.pid)
    members, roots, held = set(tree.pids), {tree.root.pid}, found.held
    for _ in range(ROUNDS):
        holders = {one.pid for one in held} - members
        if not holders:
            break
        held = []
        for pid in holders:
            with contextlib.suppress(ProcessGone):
                other = scan(pid)
                members |= other.pids
                roots.add(pid)
                held += outside(other).held
    topmost = tuple(sorted(pid for pid in roots if not _ancestors(pid) & roots - {pid}))
    return Closure(topmost, _one(topmost, worker))


def _one(roots: tuple[int, ...], worker: int | None) -> int | None:
    """Return the lowest process above all roots, if its tree can be moved and is all of it."""
    shared = set.intersection(*(_ancestors(pid) for pid in roots))
    with contextlib.suppress(ProcessGone):
        # The lowest has most ancestors.
        one = max(shared, key=lambda pid: len(_ancestors(pid)), default=INIT)
        if one == INIT or candidate.refusal(one, worker):
            return None
        return None if outside(scan(one)).held else one
    return None


def _ancestors(pid: int) -> set[int]:
    with contextlib.suppress(ProcessGone):
        return set(process.ancestors(pid))
    return set()


def _hint(closure: Closure) -> str:
    if closure.one is not None:
        one = f"process {closure.one} ({_command(closure.one)})"
        return f"The tree of {one} has all of it: migrate that, or add --closure."
    together = named(f"{pid} ({_command(pid)})" for pid in closure.roots)
    return f"No single tree has all of it, which is in those of {together}. {SEPARATE}"


def _command(pid: int) -> str:
    with contextlib.suppress(ProcessGone):
        return process.command_line(pid)[:60]
    return "ended"
