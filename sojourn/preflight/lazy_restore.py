"""Whether the process can run on the destination before all of its memory is in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sojourn import units
from sojourn.criu.commands import Criu
from sojourn.model import Plan
from sojourn.preflight.finding import Finding, Verdict, note, ok
from sojourn.preflight.needs import Needs

#: What kernel and CRIU must have (``criu check --feature``): userfaultfd(2), with its messages.
FEATURE = "uffd-noncoop"

#: How much more memory a tree may take after the restore than before it, as a share of its size and
#: in bytes: pages that processes have shared since a fork come into place once for each of them.
UNSHARED_SHARE, UNSHARED_BYTES = 0.05, 64 * 2**20


def check(needs: Needs, criu: Criu, *, wanted: bool, plan: Plan) -> Iterator[Finding]:
    """Yield a note if the freeze will last until all memory is in place, though not ``wanted``.

    In post-copy it never does, whatever that costs; what is missing for it stops the migration.
    """
    if plan.post_copy:
        yield from _copies(needs, plan)
    elif wanted and not criu.has(FEATURE):
        yield note(
            "LAZY_RESTORE",
            "The kernel here has no userfaultfd(2) with messages, so the process must wait until "
            "all of its memory is in place.",
            "Choose a destination that has it (`criu check --feature uffd-noncoop`), or expect a "
            "longer freeze.",
        )
    elif wanted and not _is_worth_it(needs.tree_bytes, needs.forked_bytes):
        yield note(
            "LAZY_RESTORE",
            f"Its processes have {units.size(needs.forked_bytes)} of memory in common since a "
            "fork, so they must wait until all of it is in place; else each would have its own.",
            "Expect a longer freeze.",
        )
    else:
        yield ok("LAZY_RESTORE", "what it needs to run before all of its memory is in place")


def _copies(needs: Needs, plan: Plan) -> Iterator[Finding]:
    """Yield a note on the memory that processes will not share any more."""
    if _is_worth_it(needs.tree_bytes, needs.forked_bytes):
        return
    more = units.size(needs.forked_bytes)
    yield note(
        "LAZY_RESTORE",
        f"Its processes have memory in common since a fork; each gets a copy of its own, which "
        f"takes {more} more than on {plan.source}.",
        "With the mode stop-and-copy it stays in common, and the freeze is longer.",
    )


def is_chosen(found: Iterable[Finding], *, wanted: bool) -> bool:
    """Return whether the process will run early: it is wanted, and no note speaks against it."""
    return wanted and not any(
        one.code == "LAZY_RESTORE" and one.verdict is Verdict.NOTE for one in found
    )


def _is_worth_it(tree_bytes: int, forked_bytes: int) -> bool:
    """Return whether a tree stays near its size if each process gets its own copy of each page."""
    return forked_bytes <= max(UNSHARED_BYTES, tree_bytes * UNSHARED_SHARE)
