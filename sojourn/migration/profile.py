"""Where the freeze of a migration went: from the traces of its two hosts to spans of time.

All of it is a pure function. Every instant is moved to the source's clock and counted from where
the freeze began. The order of what the hosts did bounds the difference of their clocks: an image
arrives before its sender knows of it, and a step begins after the one that sent for it has ended.
Within these bounds the destination's clock is taken to have shown ``images_at`` when the source's
showed ``images_sent``, as the downtime is computed (``sojourn.migration.result``), so that both
agree.

What lies in between the steps is messages and waiting: the broker, the queue of a lane, and a
record in the ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sojourn.criu.course import STOP, Course, Part
from sojourn.migration.trace import Trace
from sojourn.model import Phase, Plan, StepRecord

#: Steps that the destination began after the source had ended one, and the other way round.
THERE = (("examine", "preflight"), ("copy_images", "restore"))
BACK = (("preflight", "reserve"), ("page_server", "dump"), ("restore", "retire"))

#: The instants that the destination takes; all others are by the source's clock.
TAKEN_THERE = ("images_at", "resumed_at")

#: The steps that let CRIU work, and how the steps of a freeze divide: what is done, and with which
#: fact or phase that is over; ``ENDED`` is the end of the step.
RUNS_CRIU = {"dump", "restore", "decide"}
ENDED = "ended"
RESTORES = (
    ("check images, PIDs and files", Phase.RESTORING),
    ("criu restore", "resumed_at"),
    ("record the outcome", ENDED),
)
SECTIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "dump": (
        ("criu dump", "dump_ended"),
        ("check the tree, mend its calls", Phase.FROZEN),
        ("compare, flush and pack files", ENDED),
    ),
    "copy_images": (
        ("write down that they leave", Phase.RELEASED),
        ("send the small images", "images_sent"),
        ("record the outcome", ENDED),
    ),
    "restore": RESTORES,
    "decide": RESTORES,
    "resume": (
        ("write down that it stays", Phase.RESUMED),
        ("wake the tree", "woken_at"),
        ("look whether it lives", ENDED),
    ),
}

#: The end of what has not ended.
NEVER = float("inf")


class Kind(StrEnum):
    """What the time of a span is counted as."""

    #: CRIU worked.
    CRIU = "criu"
    #: Sojourn worked: steps, and the answers that CRIU waits for.
    SOJOURN = "sojourn"
    #: No step was at work: messages, and waiting for a worker.
    WAITING = "waiting"
    #: A step was at work, and what it did is not known: its host did not answer, or lost its logs.
    UNKNOWN = "unknown"
    #: It went on beside the rest, and is not counted.
    BESIDE = "beside"


#: What the freeze divides into.
COUNTED = (Kind.CRIU, Kind.SOJOURN, Kind.WAITING, Kind.UNKNOWN)


class Ending(StrEnum):
    """How the freeze ended."""

    #: The tree ran on the destination.
    ARRIVED = "arrived"
    #: CRIU let the tree run on, on the source.
    LET_GO = "let go"
    #: The tree was woken on the source.
    WOKEN = "woken"
    #: It is not known when it ended, or whether it has.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Span:
    """A part of the freeze, in milliseconds from its begin; ``parent`` is the number of a span."""

    number: int
    parent: int | None
    host: str
    name: str
    kind: Kind
    begin_ms: float
    end_ms: float


@dataclass(frozen=True)
class Clocks:
    """How far the destination's clock is ahead of the source's, in seconds, at least and at most.

    None where nothing bounds it.
    """

    ahead_s: float = 0.0
    at_least_s: float | None = None
    at_most_s: float | None = None


@dataclass(frozen=True)
class Profile:
    """Where a freeze went.

    ``began`` is in seconds since the epoch by the source's clock. The ``sums_ms`` of all kinds add
    up to ``freeze_ms``. ``figures`` are CRIU's own, by host and run.
    """

    freeze_ms: float
    began: float
    ending: Ending
    spans: tuple[Span, ...]
    sums_ms: dict[Kind, float]
    clocks: Clocks
    figures: dict[str, dict[str, dict[str, int]]]


@dataclass
class _Stretch:
    """A span before it is cut to the freeze, in seconds since the epoch by the source's clock."""

    host: str
    name: str
    kind: Kind
    begin: float
    end: float
    inner: list[_Stretch] = field(default_factory=list)


def of(plan: Plan, traces: Mapping[str, Trace]) -> Profile | None:
    """Return the profile of a migration's freeze; None if nothing shows that it was frozen."""
    source, destination = traces[plan.source], traces[plan.destination]
    clocks = clocks_of(source, destination)
    destination = _moved(destination, clocks.ahead_s)
    instants = destination.facts | source.facts | _theirs(source, destination, clocks)
    began = _began(source, instants)
    if began is None:
        return None
    source = _aligned(source, began)
    ended, ending = _ended(source, destination, instants)
    ended = max(began, ended)
    spans = _spans([source, destination], instants, began, ended)
    freeze_ms = _ms(ended - began)
    figures = {trace.host: trace.figures for trace in (source, destination) if trace.figures}
    return Profile(freeze_ms, began, ending, spans, sums_of(spans), clocks, figures)


def clocks_of(source: Trace, destination: Trace) -> Clocks:
    """Return how far the clocks of two hosts differ, by the order of what was done there."""
    most = [there - here for here, there in _steps_in_order(source, destination, THERE)]
    least = [there - here for there, here in _steps_in_order(destination, source, BACK)]
    at_least, at_most = max(least, default=None), min(most, default=None)
    facts = destination.facts | source.facts
    if "images_at" in facts and "images_sent" in facts:
        ahead = at_least = facts["images_at"] - facts["images_sent"]
    else:
        # Not measured, as with scp(1): they agree, unless the order shows that they do not.
        ahead = max(0.0, at_least or 0.0)
        ahead = ahead if at_most is None else min(ahead, at_most)
    return Clocks(ahead, at_least, at_most if at_most is None else max(ahead, at_most))


def sums_of(spans: Sequence[Span]) -> dict[Kind, float]:
    """Return how the freeze divides by kinds: at each instant the innermost span counts."""
    changes = sorted(_changes(spans))
    at_work: Counter[tuple[int, Kind]] = Counter()
    sums: dict[Kind, float] = dict.fromkeys(COUNTED, 0.0)
    for (at, step, level), (until, *_) in zip(changes, [*changes[1:], *changes[-1:]], strict=True):
        at_work[level] += step
        inside = [one for one, count in at_work.items() if count]
        if inside:
            sums[max(inside)[1]] += until - at
    return {kind: round(ms, 3) for kind, ms in sums.items()}


def _changes(spans: Iterable[Span]) -> Iterator[tuple[float, int, tuple[int, Kind]]]:
    """Yield when the number of spans of a depth and a kind goes up or down."""
    depths: dict[int | None, int] = {None: -1}
    for span in spans:
        depths[span.number] = depth = depths[span.parent] + 1
        if span.kind is not Kind.BESIDE:
            yield span.begin_ms, 1, (depth, span.kind)
            yield span.end_ms, -1, (depth, span.kind)


def _steps_in_order(
    first: Trace, second: Trace, pairs: Iterable[tuple[str, str]]
) -> Iterator[tuple[float, float]]:
    """Yield when a step ended on one host, and when one began on the other that came after it."""
    for before, after in pairs:
        ended, began = _step(first, before), _step(second, after)
        if ended and began and ended.ended is not None:
            yield ended.ended, began.started


def _step(trace: Trace, name: str) -> StepRecord | None:
    return next((step for step in trace.steps if step.name == name), None)


def _course(trace: Trace, verb: str) -> Course | None:
    return next((course for course in trace.courses if course.verb == verb), None)


def _moved(trace: Trace, ahead_s: float) -> Trace:
    """Return the trace of a host whose clock is ahead as another clock would have shown it."""
    steps = (
        replace(step, started=step.started - ahead_s, ended=step.ended and step.ended - ahead_s)
        for step in trace.steps
    )
    return replace(
        trace,
        steps=tuple(steps),
        phases={name: at - ahead_s for name, at in trace.phases.items()},
        courses=tuple(replace(one, opened=one.opened - ahead_s) for one in trace.courses),
    )


def _theirs(source: Trace, destination: Trace, clocks: Clocks) -> dict[str, float]:
    """Return the instants that the destination took, moved to the source's clock."""
    known = destination.facts | source.facts
    return {name: known[name] - clocks.ahead_s for name in TAKEN_THERE if name in known}


def _began(source: Trace, instants: Mapping[str, float]) -> float | None:
    """Return when the freeze began; None if there is no sign of one."""
    if "freeze_started" in instants:
        return instants["freeze_started"]
    measured, dump = source.figures.get("dump", {}), _course(source, "dump")
    if "dump_ended" in instants and "frozen_us" in measured:
        return instants["dump_ended"] - (measured["freezing_us"] + measured["frozen_us"]) / 1e6
    if dump:
        return next((dump.opened + part.begin_s for part in dump.parts if part.name == STOP), None)
    step = _step(source, "dump")
    # Not before the step, if this is all that is known: the ledger's word for a silent host.
    return step.started if step and not _is_detailed(source) else None


def _ended(
    source: Trace, destination: Trace, instants: Mapping[str, float]
) -> tuple[float, Ending]:
    """Return when the freeze ended, and how; as far as is known, if that is not."""
    dump, restore = _course(source, "dump"), _step(destination, "restore")
    if "resumed_at" in instants:
        return instants["resumed_at"], Ending.ARRIVED
    if dump and dump.let_go_s is not None:
        return dump.opened + dump.let_go_s, Ending.LET_GO
    if "woken_at" in instants:
        return instants["woken_at"], Ending.WOKEN
    if restore and restore.ended and not restore.failed:
        return restore.ended, Ending.ARRIVED
    steps = (*source.steps, *destination.steps)
    return max(step.ended or step.started for step in steps), Ending.UNKNOWN


def _aligned(source: Trace, began: float) -> Trace:
    """Return the source's trace with its dump's log placed where the freeze began."""
    return replace(source, courses=tuple(_placed(course, began) for course in source.courses))


def _placed(course: Course, began: float) -> Course:
    stop = next((part for part in course.parts if part.name == STOP), None)
    return replace(course, opened=began - stop.begin_s) if stop else course


def _is_detailed(trace: Trace) -> bool:
    return bool(trace.facts or trace.courses)


def _spans(
    traces: Iterable[Trace], instants: Mapping[str, float], began: float, ended: float
) -> tuple[Span, ...]:
    """Return all that went on in the freeze, each span in front of those that lie in it."""
    all_of_it = [one for trace in traces for one in _stretches(trace, instants)]
    kept = [cut for one in all_of_it if (cut := _cut(one, began, ended))]
    kept += _gaps(kept, began, ended)
    kept.sort(key=lambda one: (one.kind is Kind.BESIDE, one.begin, one.end))
    spans: list[Span] = []
    for one in kept:
        _number(one, None, began, spans)
    return tuple(spans)


def _stretches(trace: Trace, instants: Mapping[str, float]) -> Iterator[_Stretch]:
    """Yield the steps of a host, divided as far as is known, and what went on beside them."""
    for step in trace.steps:
        whole = _Stretch(trace.host, step.name, Kind.SOJOURN, step.started, _end(step, trace))
        whole.inner = list(_divided(trace, whole, instants))
        if step.ended is None or (step.name in RUNS_CRIU and not whole.inner):
            whole.kind = Kind.UNKNOWN
        yield whole
    page_server = _course(trace, "page-server")
    for part in _logged(trace.host, page_server) if page_server else ():
        yield replace(part, name=f"page server: {part.name}", kind=Kind.BESIDE)


def _end(step: StepRecord, trace: Trace) -> float:
    """Return when a step had ended at the latest: its worker may have died in it."""
    if step.ended is not None:
        return step.ended
    return min((one.started for one in trace.steps if one.started > step.started), default=NEVER)


def _divided(trace: Trace, step: _Stretch, instants: Mapping[str, float]) -> Iterator[_Stretch]:
    """Yield the parts of a step one after another, up to the first whose end is not known.

    An instant outside of the step belongs to another one, which did the same later.
    """
    known = {**trace.phases, **instants, ENDED: step.end}
    begin = step.begin
    for name, until in SECTIONS.get(step.name, ()):
        course = _course(trace, name.removeprefix("criu "))
        end = known.get(until, _log_end(course, begin, step.end))
        if end is None or not begin <= end <= step.end:
            return
        kind = Kind.CRIU if name.startswith("criu ") else Kind.SOJOURN
        part = _Stretch(trace.host, name, kind, begin, end)
        part.inner = _to_the_edges(part, _logged(trace.host, course)) if course else []
        yield part
        begin = end


def _log_end(course: Course | None, earliest: float, latest: float) -> float | None:
    """Return when a run that failed ended, by its log, within bounds; None without a log."""
    if course is None or not course.parts:
        return None
    end = course.opened + max(part.end_s for part in course.parts)
    return max(earliest, min(latest, end))


def _to_the_edges(run: _Stretch, parts: list[_Stretch]) -> list[_Stretch]:
    """Return the parts of a run with what is before the first line of its log, and after its last.

    CRIU starts before it has a log, and does not log that the last thing has ended.
    """
    if not parts:
        return []
    start = _Stretch(run.host, "start", run.kind, run.begin, parts[0].begin)
    return [start, *parts[:-1], replace(parts[-1], end=max(run.end, parts[-1].end))]


def _logged(host: str, course: Course) -> list[_Stretch]:
    """Return the parts of a run of CRIU as a tree."""
    whole = _Stretch(host, course.verb, Kind.CRIU, course.opened, course.opened)
    way = [whole]
    for part in course.parts:
        del way[part.depth + 1 :]
        begin, end = course.opened + part.begin_s, course.opened + part.end_s
        way.append(_Stretch(host, part.name, _kind(part), begin, end))
        way[-2].inner.append(way[-1])
    return whole.inner


def _kind(part: Part) -> Kind:
    return Kind.SOJOURN if part.ours else Kind.CRIU


def _cut(stretch: _Stretch, begin: float, end: float) -> _Stretch | None:
    """Return what of a stretch lies between two instants, None if nothing does."""
    begin, end = max(stretch.begin, begin), min(stretch.end, end)
    if end <= begin:
        return None
    inner = [cut for one in stretch.inner if (cut := _cut(one, begin, end))]
    return replace(stretch, begin=begin, end=end, inner=inner)


def _gaps(stretches: Iterable[_Stretch], began: float, ended: float) -> Iterator[_Stretch]:
    """Yield what lies between the steps."""
    steps = sorted(
        (one for one in stretches if one.kind is not Kind.BESIDE), key=lambda one: one.begin
    )
    last: _Stretch | None = None
    covered = began
    for step in steps:
        if step.begin > covered:
            origin = f" from {last.host}" if last and last.host != step.host else ""
            name = f"message{origin} for {step.name}"
            yield _Stretch(step.host, name, Kind.WAITING, covered, step.begin)
        if step.end > covered:
            last, covered = step, step.end
    if covered < ended and last:
        yield _Stretch(last.host, f"after {last.name}", Kind.WAITING, covered, ended)


def _number(one: _Stretch, parent: int | None, began: float, spans: list[Span]) -> None:
    """Append a stretch and what lies in it."""
    number = len(spans)
    begin_ms, end_ms = _ms(one.begin - began), _ms(one.end - began)
    spans.append(Span(number, parent, one.host, one.name, one.kind, begin_ms, end_ms))
    for inner in one.inner:
        _number(inner, number, began, spans)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
