"""``python -m manual.recording``: record ``sojourn lab demo`` as docs/images/demo.svg (root).

The picture is the output of one real run, to the first arrival: each line appears when it was
printed, though nobody has to wait for longer than ``LONGEST_WAIT_S``. A viewer without animation
shows all lines at once. What is left out is marked with […].
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from subprocess import PIPE, Popen

from sojourn.environment import environment

PICTURE = Path(__file__).parents[1] / "docs/images/demo.svg"

#: Between these two lines lies what is shown, without what lies between the next two.
FIRST, LAST = "== A process with", "✓ the pause is reported"
LEFT_OUT = ("What is left on the source", "✓ same PID")

COLUMNS = 112
LONGEST_WAIT_S = 2.0

#: Of a character and of the frame around the text, in pixels.
WIDTH, HEIGHT, FRAME = 7.23, 17, 18

#: How lines look that begin with a mark of their own.
STYLES = {"==": "heading", "$": "command", "✓": "kept", "✗": "broken"}

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">
<title>A process moves from alpha to beta: the output of make demo</title>
<!-- Written by python -m manual.recording. -->
<style>
  rect {{ fill: #16191d }}
  text {{ fill: #d5d9de; font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
          white-space: pre; animation: appear 1ms backwards }}
  .heading {{ fill: #ffffff; font-weight: bold }}
  .command {{ fill: #6cc7f5 }}
  .kept {{ fill: #7fd88f }}
  .broken {{ fill: #ff7b72 }}
  @keyframes appear {{ from {{ opacity: 0 }} }}
  @media (prefers-reduced-motion: reduce) {{ text {{ animation: none }} }}
</style>
<rect width="100%" height="100%" rx="8"/>
"""


@dataclass(frozen=True)
class Line:
    """One line of output, and when it was printed, in seconds."""

    at_s: float
    text: str


def main() -> int:
    """Record one run, and write the picture unless the run failed."""
    with Popen(
        [sys.executable, "-m", "sojourn", "lab", "demo", *sys.argv[1:]],
        stdout=PIPE,
        text=True,
        env={**environment(), "PYTHONUNBUFFERED": "1"},
    ) as demo:
        assert demo.stdout
        lines = [Line(time.monotonic(), text.rstrip()) for text in demo.stdout]
    if demo.returncode == 0:
        PICTURE.write_text(drawn(hurried(shown(lines))))
    return demo.returncode


def shown(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield the lines that the picture shows, cut to its width."""
    began = hidden = False
    for line in lines:
        began = began or line.text.startswith(FIRST)
        if began and line.text.startswith(LEFT_OUT[0]):
            hidden = True
            yield Line(line.at_s, "[…]")
        hidden = hidden and not line.text.startswith(LEFT_OUT[1])
        if began and not hidden:
            yield Line(line.at_s, _cut(line.text))
        if began and line.text.startswith(LAST):
            return


def hurried(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield the lines at times that begin at 0, with longer waits cut short."""
    now_s, before = 0.0, None
    for line in lines:
        if before is not None:
            now_s += min(line.at_s - before, LONGEST_WAIT_S)
        before = line.at_s
        yield Line(now_s, line.text)


def drawn(lines: Iterable[Line]) -> str:
    """Return the picture."""
    rows = list(lines)
    width, height = int(COLUMNS * WIDTH) + 2 * FRAME, len(rows) * HEIGHT + 2 * FRAME
    body = "".join(_row(number, line) for number, line in enumerate(rows) if line.text)
    return f"{HEAD.format(width=width, height=height)}{body}</svg>\n"


def _cut(text: str) -> str:
    return text if len(text) <= COLUMNS else f"{text[: COLUMNS - 3]}[…]"


def _row(number: int, line: Line) -> str:
    style = STYLES.get(line.text.split(" ")[0])
    look = f' class="{style}"' if style else ""
    when = f' style="animation-delay:{line.at_s:.2f}s"'
    # Fixed to its length, so that columns stand below each other in every font.
    length = f' textLength="{len(line.text) * WIDTH:.1f}" lengthAdjust="spacingAndGlyphs"'
    y = FRAME + (number + 1) * HEIGHT - 5
    return (
        f'<text x="{FRAME}" y="{y}"{length}{look}{when}>{escape(line.text, quote=False)}</text>\n'
    )


if __name__ == "__main__":
    sys.exit(main())
