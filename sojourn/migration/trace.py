"""What one host knows of when it did what in a migration, for its profile. Nothing is touched."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field

from sojourn.criu import course, stats
from sojourn.criu.course import Course, Part
from sojourn.migration.context import Host
from sojourn.model import Json, Role, StepRecord

#: The runs of CRIU that a host may have in a migration.
RUNS = ("dump", "page-server", "restore")

#: The facts that are instants within the freeze, each by the clock of the host that took it.
INSTANTS = (
    *("freeze_started", "frozen_at", "dump_ended"),
    *("images_sent", "images_at"),
    *("resumed_at", "woken_at"),
)


@dataclass(frozen=True)
class Trace:
    """A host's part of a migration, in seconds since the epoch by its clock.

    ``phases`` are the instants at which its journal had a phase, and ``figures`` what CRIU measured
    itself. What this host has of the other one's facts is among its own.
    """

    host: str
    steps: tuple[StepRecord, ...]
    phases: dict[str, float] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    courses: tuple[Course, ...] = ()
    figures: dict[str, dict[str, int]] = field(default_factory=dict)

    def to_json(self) -> Json:
        """Return the trace as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Json) -> Trace:
        """Read back what ``to_json`` wrote."""
        steps = tuple(StepRecord(**step) for step in data["steps"])
        courses = tuple(
            Course(**{**run, "parts": tuple(Part(**part) for part in run["parts"])})
            for run in data["courses"]
        )
        return cls(**{**data, "steps": steps, "courses": courses})


def of(host: Host, migration: str) -> Trace | None:
    """Return this host's trace of a migration; None if its journal has none of that id.

    Logs that are gone, with a reboot or by their age, leave a trace without courses.
    """
    entry = next(filter(None, (host.journal.entry(migration, role) for role in Role)), None)
    if entry is None:
        return None
    work = host.directory(entry.id).work
    known = host.journal.known(entry)
    measured = {run: stats.figures(work, run) for run in stats.ENTRY}
    if entry.plan.post_copy:
        # CRIU 4.2 stops this clock twice in a lazy dump, and adds the time of day.
        measured["dump"].pop("frozen_us", None)
    return Trace(
        host.name,
        tuple(host.journal.steps(entry.id)),
        host.journal.phase_times(entry),
        {name: known[name] for name in INSTANTS if known.get(name)},  # type: ignore[literal-required]
        tuple(filter(None, (course.of(work, run) for run in RUNS))),
        {run: found for run, found in measured.items() if found},
    )


def by_ledger(host: str, steps: Collection[StepRecord]) -> Trace:
    """Return what the ledger alone has of a host that did not answer."""
    return Trace(host, tuple(step for step in steps if step.host == host))
