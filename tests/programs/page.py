"""docs/programs.md: what became of every program, in one table."""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence

from tests.programs.program import Result

HEAD = """# Programs

Made by `make programs`, on {day}, with Linux {kernel} and CRIU {criu}: programs from packages of
Debian {debian}, each started in a way in which people start it, checked, and migrated in the mode
`{mode}` from one host of [the lab](lab.md) to another. **{right} of {count} were moved right or
refused right{wrong}.**

*Moved right*: it does its work on the destination, with what it held in its memory before (a value
that was set, the moment at which it was started, a count without a gap); nothing of it is on the
source any more, nobody has started it again there, and neither host has anything left behind.
*Refused right*: before the freeze, with a code that names what cannot be right there, and the
original works on as before. Options that a hint asks for were given. Where there is another way
out, it was gone, and the last column says which.

{moved} moved, {after} of them when what the first check had found was taken care of; {refused} stay
where they are.

| program | version | started as | outcome | pause | found at first | way out, or why it stays |
|---|---|---|---|---|---|---|
"""

TAIL = """
The pause is `frozen_ms`: how long the whole tree was frozen, on a machine with {cpus} cores that
carries both hosts. A lock on the storage that they share is in force on both, since they have one
kernel; `/run`, `/tmp` and `/dev/shm` are each host's own. [Checks](reference/checks.md) has what
each code means.
"""

LACKING = """
The root of the machine on which this was made lacks CAP_SYS_RESOURCE, as in many containers; CRIU
cannot read the limits of other users' processes then. Programs that give up root were made to stay
root where an option can do that; for the others there is `PRIVILEGES`.
"""


#: How findings name processes, whose numbers are others each time.
PROCESS = re.compile(r"[Pp]rocess \d+ \(([^)]*)\)")
USER = re.compile(r" \(descriptor \d+ of process \d+\)")


def page(results: Sequence[Result], mode: str, day: str, criu: str, debian: str, cpus: int) -> str:
    """Return the page for all programs."""
    wrong = [one for one in results if one.wrong]
    moved = [one for one in results if one.moved and not one.wrong]
    after = [one for one in moved if one.stopped]
    head = HEAD.format(
        mode=mode,
        day=day,
        kernel=".".join(platform.release().split(".")[:2]),
        criu=criu,
        debian=debian,
        right=len(results) - len(wrong),
        count=len(results),
        wrong="; what is wrong stands below" if wrong else "",
        moved=len(moved),
        after=len(after),
        refused=len(results) - len(wrong) - len(moved),
    )
    rows = "".join(map(_row, results))
    lacking = LACKING if any("PRIVILEGES" in one.stopped for one in results) else ""
    return head + rows + TAIL.format(cpus=cpus) + lacking + _wrong(wrong)


def _row(one: Result) -> str:
    pause = f"{one.frozen_ms:.0f} ms" if one.frozen_ms is not None and one.moved else ""
    codes = " ".join(f"`{code}`" for code in one.stopped)
    cells = [one.name, one.version, one.how, one.outcome, pause, codes, _way(one)]
    return f"| {' | '.join(cells)} |\n"


def _way(one: Result) -> str:
    """Return by what it could be moved, or why it could not."""
    if not one.moved:
        return _plain(USER.sub("", PROCESS.sub(r"\1", one.sentence)))
    return "; ".join(filter(None, [" ".join(f"`{option}`" for option in one.options), one.way]))


def _wrong(wrong: Sequence[Result]) -> str:
    if not wrong:
        return ""
    lines = "".join(f"| {one.name} | {_plain(one.wrong)} |\n" for one in wrong)
    return f"\n## What is wrong\n\n| program | what was seen |\n|---|---|\n{lines}"


def _plain(text: str) -> str:
    """Return a sentence as a cell of a table."""
    return re.sub(r"[|<>\s]+", " ", text)[:400].strip()
