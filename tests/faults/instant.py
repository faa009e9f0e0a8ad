"""The instants at which something goes wrong: every step, and just before and after each write of a phase.

Where one step ends and the next begins on the same host nothing lies between, so there is mostly one instant for both.
"""

from __future__ import annotations

from dataclasses import dataclass

from sojourn.model import Role


@dataclass(frozen=True)
class Instant:
    """One instant: on which host it comes, and the name of its fail point (CONTRIBUTING.md).

    ``queue``  to which the next message goes, if there is one; ``source`` and ``destination`` stand for the hosts
    ``criu``   a CRIU is at work on that host just then
    ``middle`` not at the fail point but behind it, as soon as the dump is in the middle of the memory
    ``fails``  the restore can not succeed, so that the instant comes in a rollback
    ``kept``   which hosts hold a whole process then: a crash of the only one of them ends it
    """

    where: Role
    point: str
    kept: tuple[Role, ...]
    queue: str = ""
    criu: bool = False
    middle: bool = False
    fails: bool = False

    @property
    def name(self) -> str:
        """How tables name it."""
        return f"{self.where}: {'dump, in the middle' if self.middle else self.point}"


SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION

#: Whoever crashes, the other one goes on from what it has: both have it between the copy and the end of the restore.
ORIGINAL, EITHER, MOVED = (SOURCE,), (SOURCE, DESTINATION), (DESTINATION,)

INSTANTS = [
    Instant(SOURCE, "examine.begin", ORIGINAL),
    Instant(SOURCE, "examine.end", ORIGINAL, queue="destination"),
    Instant(DESTINATION, "preflight.begin", ORIGINAL),
    Instant(DESTINATION, "preflight.end", ORIGINAL),
    Instant(DESTINATION, "reserve.begin", ORIGINAL),
    Instant(DESTINATION, "reserve.end", ORIGINAL),
    Instant(DESTINATION, "page_server.begin", ORIGINAL),
    Instant(DESTINATION, "page_server.end", ORIGINAL, queue="source"),
    Instant(SOURCE, "reserve.begin", ORIGINAL),
    Instant(SOURCE, "reserve.end", ORIGINAL),
    Instant(SOURCE, "dump.begin", ORIGINAL),
    Instant(SOURCE, "freezing.before", ORIGINAL),
    Instant(SOURCE, "freezing.after", ORIGINAL),
    Instant(SOURCE, "freezing.after", ORIGINAL, criu=True, middle=True),
    Instant(DESTINATION, "freezing.after", ORIGINAL, criu=True, middle=True),
    Instant(SOURCE, "frozen.before", ORIGINAL),
    Instant(SOURCE, "frozen.after", ORIGINAL),
    Instant(SOURCE, "dump.end", ORIGINAL),
    Instant(SOURCE, "released.before", ORIGINAL),
    Instant(SOURCE, "released.after", ORIGINAL),
    Instant(SOURCE, "copy_images.end", EITHER, queue="destination.frozen"),
    Instant(DESTINATION, "restore.begin", EITHER),
    Instant(DESTINATION, "restoring.before", EITHER),
    Instant(DESTINATION, "restoring.after", EITHER),
    Instant(DESTINATION, "accepted.before", EITHER, criu=True),
    Instant(DESTINATION, "accepted.after", EITHER, criu=True),
    Instant(DESTINATION, "restored.before", EITHER, criu=True),
    Instant(DESTINATION, "restored.after", MOVED, criu=True),
    Instant(DESTINATION, "restore.end", MOVED),
    Instant(DESTINATION, "release.end", MOVED, queue="source"),
    Instant(SOURCE, "retired.before", MOVED),
    Instant(SOURCE, "retired.after", MOVED),
    Instant(SOURCE, "retire.end", MOVED),
    Instant(SOURCE, "release.end", MOVED),
    Instant(DESTINATION, "refused.before", ORIGINAL, fails=True),
    Instant(DESTINATION, "refused.after", ORIGINAL, fails=True),
    Instant(DESTINATION, "refuse.end", ORIGINAL, fails=True, queue="source.frozen"),
    Instant(SOURCE, "resumed.before", ORIGINAL, fails=True),
    Instant(SOURCE, "resumed.after", ORIGINAL, fails=True),
]


def instant(where: Role, point: str, *, middle: bool = False) -> Instant:
    """Return one instant by its place and name."""
    return next(each for each in INSTANTS if (each.where, each.point, each.middle) == (where, point, middle))
