"""A migration in doubt on a terminal: who is silent, what happens by itself, what you may do."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape

from sojourn.cluster.doubt import sentence
from sojourn.model import Json


def draw(doubt: Json) -> str:
    """Return the help of a migration in doubt, as lines of markup."""
    return "\n".join(_lines(doubt))


def _lines(doubt: Json) -> Iterator[str]:
    yield f"[bold]{escape(sentence(doubt))}[/]"
    yield f"[dim]By itself:[/] {escape(doubt['by_itself'])}"
    for way in doubt["you_may"]:
        yield f"[dim]You may:[/] {escape(way['do'])}"
        yield f"[dim]  Its risk:[/] {escape(way['risk'])}"
    yield f"[dim]How to:[/] {doubt['how_to']}"
