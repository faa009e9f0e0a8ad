"""The instants at which something goes wrong: every step, and around each write of a phase.

Between the end of a step and the beginning of the next one only a message is under way, so most of
these pairs share one instant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sojourn.model import Role

MODES = STOP_AND_COPY, POST_COPY = "stop-and-copy", "post-copy"

#: The fail point at which a pager begins to fill.
FILL_BEGINS = "fill.begin"


@dataclass(frozen=True)
class Instant:
    """One instant: on which host it comes, and the name of its fail point (CONTRIBUTING.md).

    ``mode``   the mode of the migration
    ``queue``  the next message goes to it, if there is one; ``source``, ``destination``: the hosts
    ``criu``   a CRIU is at work on that host just then
    ``middle`` after the fail point, as soon as the dump is in the middle
    ``pager``  memory is coming into place on the destination just then
    ``sender`` a sender of post-copy is there on that host just then
    ``beside`` the other host pauses: only what happens on one host alone differs from there
    ``unfilled`` the pager is kept from its work meanwhile, so that memory is missing
    ``fails``  the restore cannot succeed, so that the instant comes in a rollback
    ``kept``   the hosts that hold a whole process then: a crash of the only one of them ends it
    """

    where: Role
    point: str
    kept: tuple[Role, ...]
    queue: str = ""
    criu: bool = False
    middle: bool = False
    pager: bool = False
    sender: bool = False
    beside: bool = False
    unfilled: bool = False
    fails: bool = False
    mode: str = STOP_AND_COPY

    def __str__(self) -> str:
        """Return the name among those of all modes."""
        return self.name if self.mode == STOP_AND_COPY else f"{self.mode}, {self.name}"

    @property
    def name(self) -> str:
        """The name in the tables of its mode."""
        return f"{self.where}: {'dump, in the middle' if self.middle else self.point}"

    @property
    def pauses(self) -> Role:
        """The host on which the fail point is."""
        if self.middle:
            return Role.SOURCE
        other = Role.DESTINATION if self.where is Role.SOURCE else Role.SOURCE
        return other if self.beside else self.where

    @property
    def in_window(self) -> bool:
        """Whether the process runs and needs both hosts."""
        return not self.kept


SOURCE, DESTINATION = Role.SOURCE, Role.DESTINATION

#: If one host crashes, the other one continues from what it has. In stop-and-copy both have the
#: whole process between the copy of the images and the end of the restore; in post-copy neither has
#: it between the commit and the last page.
ORIGINAL, EITHER, MOVED = (SOURCE,), (SOURCE, DESTINATION), (DESTINATION,)
NEITHER: tuple[Role, ...] = ()

INSTANTS = [
    Instant(SOURCE, "examine.begin", ORIGINAL),
    Instant(SOURCE, "examine.end", ORIGINAL, queue="destination"),
    Instant(DESTINATION, "preflight.begin", ORIGINAL),
    Instant(DESTINATION, "preflight.end", ORIGINAL, queue="source"),
    Instant(DESTINATION, "reserve.begin", ORIGINAL),
    Instant(DESTINATION, "reserve.end", ORIGINAL, queue="destination"),
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
    Instant(SOURCE, "dump.end", ORIGINAL, queue="source.frozen"),
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
    Instant(DESTINATION, "restore.end", MOVED, queue="source"),
    Instant(DESTINATION, "fill.begin", MOVED, pager=True),
    Instant(DESTINATION, "fill.middle", MOVED, pager=True),
    Instant(DESTINATION, "fill.end", MOVED, pager=True),
    Instant(DESTINATION, "settle.end", MOVED, queue="destination"),
    Instant(DESTINATION, "release.end", MOVED, queue="destination"),
    Instant(DESTINATION, "confirm.end", MOVED),
    Instant(SOURCE, "retired.before", MOVED),
    Instant(SOURCE, "retired.after", MOVED),
    Instant(SOURCE, "retire.end", MOVED, queue="source"),
    Instant(SOURCE, "release.end", MOVED),
    Instant(DESTINATION, "refused.before", ORIGINAL, fails=True),
    Instant(DESTINATION, "refused.after", ORIGINAL, fails=True),
    Instant(DESTINATION, "refuse.end", ORIGINAL, fails=True, queue="source.frozen"),
    Instant(SOURCE, "resumed.before", ORIGINAL, fails=True),
    Instant(SOURCE, "resumed.after", ORIGINAL, fails=True),
]

#: The instants of post-copy that differ from those above: while sender and pager are there.
INSTANTS += [
    replace(one, mode=POST_COPY)
    for one in (
        Instant(DESTINATION, "page_server.end", ORIGINAL, queue="destination"),
        Instant(SOURCE, "page_sender.begin", ORIGINAL),
        Instant(SOURCE, "page_sender.end", ORIGINAL, queue="destination", sender=True),
        Instant(DESTINATION, "connect_pager.begin", ORIGINAL),
        Instant(DESTINATION, "connect_pager.end", ORIGINAL, queue="source"),
        Instant(SOURCE, "dump.begin", ORIGINAL, sender=True),
        Instant(SOURCE, "freezing.after", ORIGINAL, criu=True, middle=True),
        Instant(SOURCE, "frozen.after", ORIGINAL, sender=True),
        Instant(SOURCE, "copy_images.end", ORIGINAL, queue="destination.frozen", sender=True),
        Instant(DESTINATION, "restoring.after", ORIGINAL),
        Instant(DESTINATION, "accepted.before", ORIGINAL, criu=True),
        Instant(DESTINATION, "accepted.after", ORIGINAL, criu=True),
        Instant(DESTINATION, "restored.after", NEITHER, criu=True, unfilled=True),
        Instant(DESTINATION, "restore.end", NEITHER, queue="destination", unfilled=True),
        Instant(DESTINATION, FILL_BEGINS, NEITHER, pager=True),
        Instant(SOURCE, FILL_BEGINS, NEITHER, pager=True, sender=True, beside=True),
        Instant(DESTINATION, "fill.middle", NEITHER, pager=True),
        Instant(SOURCE, "fill.middle", NEITHER, pager=True, sender=True, beside=True),
        Instant(DESTINATION, "fill.end", MOVED, pager=True),
        Instant(DESTINATION, "settle.end", MOVED, queue="source"),
        Instant(SOURCE, "retired.before", MOVED, sender=True),
        Instant(SOURCE, "retired.after", MOVED, sender=True),
        Instant(SOURCE, "release.end", MOVED),
        Instant(DESTINATION, "refused.after", ORIGINAL, fails=True),
        Instant(DESTINATION, "refuse.end", ORIGINAL, fails=True, queue="source.frozen"),
        Instant(SOURCE, "resumed.before", ORIGINAL, fails=True, sender=True),
    )
]


def instant(where: Role, point: str, mode: str = STOP_AND_COPY) -> Instant:
    """Return one instant by its host, its name in tables and its mode."""
    name = f"{where}: {point}"
    return next(one for one in INSTANTS if one.name == name and one.mode == mode)
