"""A migration's timeline drawn in text: one bar per step, red while the process is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sojourn import units
from sojourn.model import StepRecord

#: How many characters the bars have for the whole timeline.
WIDTH = 24

#: Terminals narrower than this get no bars.
WIDE = 80

#: The steps between which the process does not run.
FROZEN = {"dump", "copy_images", "restore"}


@dataclass(frozen=True)
class Timeline:
    """The steps of a migration, drawn in the width of the terminal."""

    steps: Sequence[StepRecord]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw it, without the bars where sentences would have no room beside them."""
        yield _table(self.steps, bars=options.max_width >= WIDE)


def draw(steps: Sequence[StepRecord]) -> Timeline:
    """Return the timeline; bars share one scale, blue while the process runs, red while frozen."""
    return Timeline(steps)


def _table(steps: Sequence[StepRecord], *, bars: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("step", "host", *(["when"] if bars else [])):
        table.add_column(column, no_wrap=True)
    table.add_column("took", no_wrap=True, justify="right")
    table.add_column("what happened", overflow="fold")
    if not steps:
        return table
    # The scale ends with the last step that has begun: one under way is drawn up to there.
    begin = min(step.started for step in steps)
    end = max(step.ended or step.started for step in steps)
    for step in steps:
        outcome = f"[red]{escape(step.outcome)}[/]" if step.failed else escape(step.outcome)
        bar = [_bar(step, begin, end)] if bars else []
        table.add_row(step.name, step.host, *bar, units.span(step.elapsed_ms), outcome)
    return table


def _bar(step: StepRecord, begin: float, end: float) -> Text:
    # Clocks of two hosts may disagree: a span may be nothing, or even negative.
    scale = WIDTH / max(end - begin, 0.001)
    left = min(int((step.started - begin) * scale), WIDTH - 1)
    length = max(1, round(((step.ended or end) - step.started) * scale))
    style = "red" if step.name in FROZEN else "blue"
    return Text(" " * left) + Text("█" * min(length, WIDTH - left), style=style)
