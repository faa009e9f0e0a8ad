"""A migration's timeline drawn in text: a bar per step, and the freeze shaded across all of them.

What is red is frozen: the part of a bar that lies in the freeze, and the shade where no step was.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sojourn import units
from sojourn.cluster import freeze
from sojourn.cluster.account import Account
from sojourn.cluster.freeze import Freeze
from sojourn.model import StepRecord

#: How many characters the bars have for the whole timeline.
WIDTH = 24

#: Terminals narrower than this get no bars.
WIDE = 80


@dataclass(frozen=True)
class Timeline:
    """The steps of a migration and its freeze, drawn in the width of the terminal."""

    steps: Sequence[StepRecord]
    freeze: Freeze | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, without the bars where sentences would have no room beside them."""
        yield _table(self.steps, self.freeze, bars=options.max_width >= WIDE)


def draw(account: Account) -> Timeline:
    """Return the timeline; bars share one scale, blue while the process runs, red while frozen."""
    return Timeline(account.steps, freeze.of(account, time.time()))


@dataclass(frozen=True)
class Scale:
    """From instants, in seconds, to the characters of a bar."""

    begin: float
    end: float

    def cells(self, begin: float, end: float) -> range:
        """Return the characters of a span: at least one, whatever two clocks say."""
        scale = WIDTH / max(self.end - self.begin, 0.001)
        left = max(0, min(int((begin - self.begin) * scale), WIDTH - 1))
        return range(left, max(left + 1, min(WIDTH, round((end - self.begin) * scale))))


def _table(steps: Sequence[StepRecord], frozen: Freeze | None, *, bars: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("step", "host", *(["when"] if bars else [])):
        table.add_column(column, no_wrap=True)
    table.add_column("took", no_wrap=True, justify="right")
    table.add_column("what happened", overflow="fold")
    if not steps:
        return table
    scale = _scale(steps, frozen)
    red = scale.cells(frozen.began, frozen.ended) if frozen else range(0)
    for step in steps:
        outcome = f"[red]{escape(step.outcome)}[/]" if step.failed else escape(step.outcome)
        bar = [_bar(scale.cells(step.started, step.ended or scale.end), red)] if bars else []
        table.add_row(step.name, step.host, *bar, units.span(step.elapsed_ms), outcome)
    return table


def _scale(steps: Sequence[StepRecord], frozen: Freeze | None) -> Scale:
    """Return the scale, up to the last step that has begun, or to the end of a longer freeze."""
    ends = [step.ended or step.started for step in steps]
    return Scale(min(step.started for step in steps), max([*ends, *_end(frozen)]))


def _end(frozen: Freeze | None) -> list[float]:
    return [frozen.ended] if frozen else []


def _bar(step: range, red: range) -> Text:
    bar = Text()
    for cell in range(max(step.stop, red.stop)):
        filled = "█" if cell in step else "░" if cell in red else " "
        bar.append(filled, style="red" if cell in red else "blue")
    return bar
