"""The profile of a migration's freeze, drawn: ``sojourn show ID --profile``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import typer
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sojourn import units
from sojourn.cli import output
from sojourn.cli.output import coloured, complaints, console
from sojourn.cluster.account import Account
from sojourn.errors import HostUnreachable, UsageError
from sojourn.migration import profile, trace
from sojourn.migration.profile import COUNTED, Ending, Kind, Profile, Span
from sojourn.migration.trace import Trace
from sojourn.model import Json, Plan
from sojourn.text import printable

#: How a kind is drawn, with colours and without, and what it is called.
STYLES = {
    Kind.CRIU: "red",
    Kind.SOJOURN: "blue",
    Kind.WAITING: "yellow",
    Kind.UNKNOWN: "magenta",
    Kind.BESIDE: "dim",
}
FILLED = {
    Kind.CRIU: "█",
    Kind.SOJOURN: "▓",
    Kind.WAITING: "░",
    Kind.UNKNOWN: "▒",
    Kind.BESIDE: "─",
}
NAMES = {
    Kind.CRIU: "CRIU's work",
    Kind.SOJOURN: "Sojourn's work",
    Kind.WAITING: "messages and waiting",
    Kind.UNKNOWN: "not known",
    Kind.BESIDE: "beside it, not counted",
}

#: How many processes are shown: those that took longest.
PROCESSES_SHOWN = 4

#: How many characters the bars have at most, and with how many there are none.
WIDEST_BAR, THINNEST_BAR = 72, 12

#: What the longest name may take beside the bars, and the space between two columns.
LONGEST_NAME = 48
SPACE = 2

#: How the first and the last line are called.
BEGINS, ENDS = "the freeze begins", "the freeze ends"

#: What is shorter, in milliseconds, is not drawn: it would be shown as zero.
SHORTEST_MS = 0.05

#: What CRIU's figures are called.
FIGURES = {
    "freezing_us": "stopping every thread",
    "frozen_us": "stopped",
    "memdump_us": "memory in all",
    "memwrite_us": "sending it",
    "pages_scanned": "pages looked at",
    "pages_written": "pages sent",
    "forking_us": "making processes",
    "restore_us": "restore in all",
    "pages_restored": "pages read in",
}


def show(account: Account, *, as_json: bool) -> None:
    """Print the profile of a migration that has ended, or is in doubt.

    Raises UsageError for one that is under way, and Exit where a host does not answer.
    """
    if not account.state.final:
        raise UsageError(
            f"Migration {account.id} is {account.state}: its profile is made when it has ended.",
            f"Follow it with `sojourn watch {account.id[:8]}`.",
        )
    traces, silent = _traces(account)
    found = profile.of(account.plan, traces)
    if as_json:
        output.as_json(to_json(account, found, silent))
    else:
        _print(account, found)
        for host in silent:
            complaints.print(
                f"[bold red]{host} does not answer[/]: of its steps only what the ledger has is "
                "shown. Does its worker run?",
                soft_wrap=True,
            )
    if silent:
        raise typer.Exit(HostUnreachable.exit_code)


def _traces(account: Account) -> tuple[dict[str, Trace], list[str]]:
    """Return the traces of both hosts, and which hosts are silent.

    Of a host that does not answer, or has no record of it, the ledger has the steps.
    """
    from workflows.profile import traces_of

    found = traces_of(account.id, [account.plan.source, account.plan.destination])
    traces = {
        host: one if one and one.steps else trace.by_ledger(host, account.steps)
        for host, one in found.items()
    }
    return traces, [host for host, one in found.items() if one is None]


def to_json(account: Account, found: Profile | None, silent: Sequence[str]) -> Json:
    """Return the profile for machines; without a freeze it has no spans."""
    plan = account.plan
    head = {
        "id": account.id,
        "state": account.state,
        "source": plan.source,
        "destination": plan.destination,
        "silent": list(silent),
    }
    return head | (asdict(found) if found else NO_FREEZE)


#: What stands in the JSON of a migration whose process was not frozen.
NO_FREEZE: Json = {
    "freeze_ms": None,
    "began": None,
    "ending": None,
    "spans": [],
    "sums_ms": {},
    "clocks": None,
    "figures": {},
}


def _print(account: Account, found: Profile | None) -> None:
    console.print(
        f"[bold]{account.plan.describe()}[/]  {coloured(account.state)}  [dim]{account.id}[/]"
    )
    if found is None:
        console.print("Nothing shows that the process was frozen in this migration.")
        return
    console.print(_head(found, account.plan), soft_wrap=True)
    console.print()
    console.print(Drawing(found))
    console.print()
    console.print(sums(found))
    console.print()
    for line in (*_figures(found), *_clocks(found, account.plan)):
        console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)


def _head(found: Profile, plan: Plan) -> str:
    began = time.strftime("%H:%M:%S", time.localtime(found.began)) + f"{found.began % 1:.3f}"[1:]
    endings = {
        Ending.ARRIVED: f"until the tree ran on {plan.destination}",
        Ending.LET_GO: f"until CRIU let the tree run on, on {plan.source}",
        Ending.WOKEN: f"until the tree was woken on {plan.source}",
        Ending.UNKNOWN: "up to the last that is known; how it ended is not",
    }
    return f"Frozen for {found.freeze_ms:.1f} ms: from {began} {endings[found.ending]}."


@dataclass(frozen=True)
class Row:
    """A line of the drawing; ``depth`` is how far its name is moved in."""

    span: Span
    depth: int
    name: str


@dataclass(frozen=True)
class Drawing:
    """The spans of a profile as bars on one scale, in the width of the terminal."""

    profile: Profile

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it: where the bars would be too short to show anything, only the numbers."""
        shown = list(rows(self.profile.spans))
        cells = [
            ("at", f"{self.profile.freeze_ms:.1f}"),
            ("ms", *(_took(row.span) for row in shown)),
            ("host", *(row.span.host for row in shown)),
            (BEGINS, *(_indented(row)[:LONGEST_NAME] for row in shown)),
        ]
        taken = sum(max(map(len, column)) + SPACE for column in cells)
        width = min(WIDEST_BAR, options.max_width - taken)
        yield _table(shown, self.profile, width if width >= THINNEST_BAR else 0)


def rows(spans: Sequence[Span]) -> Iterator[Row]:
    """Yield the lines of a drawing: of many processes those that took longest, and one for all."""
    depths: dict[int | None, int] = {None: -1}
    left_out = _left_out(spans)
    for span in spans:
        depths[span.number] = depth = depths[span.parent] + 1
        others = left_out.get(span.number)
        if others is None and span.end_ms - span.begin_ms >= SHORTEST_MS:
            yield Row(span, depth, printable(span.name))
        elif others:
            more = units.counted(len(others), "more process", "more processes")
            yield Row(_together(others), depth, more)


def _left_out(spans: Sequence[Span]) -> dict[int, list[Span]]:
    """Return the spans that get no line of their own.

    The first process of those that are left out together stands for all of them; the others, and
    what lies in any of them, stand for nothing.
    """
    siblings: dict[int, list[Span]] = {}
    for span in spans:
        if span.parent is not None and span.name.startswith("process "):
            siblings.setdefault(span.parent, []).append(span)
    left_out: dict[int, list[Span]] = {}
    for processes in siblings.values():
        shown = sorted(processes, key=lambda one: one.begin_ms - one.end_ms)[:PROCESSES_SHOWN]
        others = [one for one in processes if one not in shown]
        left_out |= {one.number: others if one is others[0] else [] for one in others}
    for span in spans:
        if span.parent in left_out:
            left_out[span.number] = []
    return left_out


def _together(spans: Sequence[Span]) -> Span:
    begin, end = min(one.begin_ms for one in spans), max(one.end_ms for one in spans)
    return replace(spans[0], begin_ms=begin, end_ms=end)


def _table(shown: Iterable[Row], found: Profile, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, SPACE, 0, 0), header_style="dim")
    for column in ("at", "ms"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("host", no_wrap=True)
    table.add_column("what", overflow="fold")
    if width:
        table.add_column(_ruler(found.freeze_ms, width), no_wrap=True)
    table.add_row(*_edge(0.0, f"[bold]{BEGINS}[/]"))
    for row in shown:
        span = row.span
        name = Text(_indented(row), style=STYLES[span.kind])
        bar = [_bar(span, found.freeze_ms, width)] if width else []
        table.add_row(f"{span.begin_ms:.1f}", _took(span), span.host, name, *bar)
    if found.ending is not Ending.UNKNOWN:
        table.add_row(*_edge(found.freeze_ms, f"[bold]{ENDS}[/]"))
    return table


def _indented(row: Row) -> str:
    return "  " * row.depth + row.name


def _took(span: Span) -> str:
    return f"{span.end_ms - span.begin_ms:.1f}"


def _edge(at_ms: float, name: str) -> tuple[str, str, str, str]:
    return (f"{at_ms:.1f}", "", "", name)


def _ruler(freeze_ms: float, width: int) -> str:
    """Return the head of the bars: where the freeze begins and where it ends."""
    end = f"{freeze_ms:.0f} ms"
    return "0" + end.rjust(width - 1)


def _bar(span: Span, freeze_ms: float, width: int) -> Text:
    scale = width / max(freeze_ms, 0.001)
    left = min(int(span.begin_ms * scale), width - 1)
    length = max(1, round((span.end_ms - span.begin_ms) * scale))
    filled = FILLED[span.kind] * min(length, width - left)
    return Text(" " * left) + Text(filled, style=STYLES[span.kind])


def sums(found: Profile) -> Table:
    """Return how the freeze divides; what is shown adds up to the last digit."""
    table = Table(box=None, pad_edge=False, padding=(0, SPACE, 0, 0), show_header=False)
    for justify in ("left", "left", "right", "right"):
        table.add_column(justify=justify, no_wrap=True)
    for kind, ms in _rounded(found.sums_ms).items():
        share = f"{100 * ms / max(found.freeze_ms, 0.1):.0f} %"
        if ms or kind is not Kind.UNKNOWN:
            mark = Text(FILLED[kind] * 2, style=STYLES[kind])
            table.add_row(mark, NAMES[kind], f"{ms:.1f} ms", share)
    total = sum(_rounded(found.sums_ms).values())
    table.add_row("", "[bold]the freeze[/]", f"[bold]{total:.1f} ms[/]", "")
    if any(span.kind is Kind.BESIDE for span in found.spans):
        mark = Text(FILLED[Kind.BESIDE] * 2, style=STYLES[Kind.BESIDE])
        table.add_row(mark, f"[dim]{NAMES[Kind.BESIDE]}[/]", "", "")
    return table


def _rounded(sums_ms: Mapping[Kind, float]) -> dict[Kind, float]:
    """Return the sums to a tenth of a millisecond, so that they still add up to their total."""
    found, exact, shown = {}, 0.0, 0
    for kind in COUNTED:
        exact += sums_ms[kind]
        found[kind] = (round(exact * 10) - shown) / 10
        shown = round(exact * 10)
    return found


def _figures(found: Profile) -> Iterator[str]:
    """Yield what CRIU measured itself."""
    for host, runs in found.figures.items():
        for run, figures in runs.items():
            told = ", ".join(f"{_named(name)} {_value(name, figures[name])}" for name in figures)
            yield f"CRIU's own figures of the {run} on {host}: {told}."


def _named(figure: str) -> str:
    return FIGURES.get(figure, figure)


def _value(figure: str, value: int) -> str:
    return f"{value / 1000:.1f} ms" if figure.endswith("_us") else f"{value}"


def _clocks(found: Profile, plan: Plan) -> Iterator[str]:
    """Yield what is known of the difference of the clocks."""
    clocks, source, destination = found.clocks, plan.source, plan.destination
    least, most = (bound and 1000 * bound for bound in (clocks.at_least_s, clocks.at_most_s))
    if least is not None and most is not None:
        bounds = f"between {least:+.1f} and {most:+.1f} ms"
    elif least is not None or most is not None:
        bounds = f"at least {least:+.1f} ms" if most is None else f"at most {most:+.1f} ms"
    else:
        yield f"Nothing shows how far the clocks of {source} and {destination} differ."
        return
    yield (
        f"{destination}'s clock is {bounds} ahead of {source}'s, by the order of what was done; "
        f"{destination}'s times are moved by {0.0 - 1000 * clocks.ahead_s:+.1f} ms."
    )
