"""Text from outside, such as command lines, names, logs and records, as it may be shown.

A process chooses its own command line, and whoever makes a file its name: they can hold sequences
that move a terminal's cursor, letters that turn the direction of what follows, or a line that looks
like one of ours. What a terminal, a log or a page shows passes through here, once.
"""

from __future__ import annotations

#: Spaces besides the usual one, which Python does not count as printable but which do no harm.
SPACES = frozenset(map(chr, (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)))

#: How much of a value that was given a sentence shows.
SHOWN = 80

#: What texts of more than one line may hold.
LINES = "\n\t"


def printable(text: str) -> str:
    """Return a text with a replacement character for each that is not shown; lines are kept."""
    if _is_plain(text):
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if _is_hidden(letter) and letter not in LINES else letter
        for letter in text
    )


def one_line(text: str) -> str:
    """Return a text as one line, with what is not shown written as Python's escapes."""
    if _is_plain(text) and "\n" not in text and "\t" not in text:
        return text
    return "".join(
        letter.encode("unicode_escape").decode() if _is_hidden(letter) else letter
        for letter in text
    )


def quoted(value: object) -> str:
    """Return a value that was given for a sentence, in quotes if it is a text, and cut if long."""
    shown = repr(value)
    return shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}…"


def cleaned(value: object) -> object:
    """Return plain JSON with every text in it printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {cleaned(name): cleaned(each) for name, each in value.items()}
    return [cleaned(each) for each in value] if isinstance(value, list | tuple) else value


def _is_plain(text: str) -> bool:
    """Whether there is nothing to do, as for nearly every text: a quick look."""
    return text.isascii() and text.replace("\n", "").replace("\t", "").isprintable()


def _is_hidden(letter: str) -> bool:
    """Whether it is a control or format character, half of one, or an end of a line."""
    return not letter.isprintable() and letter not in SPACES
