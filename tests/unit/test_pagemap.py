"""Which memory may come later, and where the dump has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sojourn.criu import pagemap
from sojourn.criu.pagemap import PAGE, Run
from sojourn.errors import CriuFailed
from tests.images import image, message

EAGER, LAZY, IN_PARENT, ABSENT = 4, 6, 1, 2


def write(images: Path, *entries: bytes, pages: int, head: bytes = message((1, 7))) -> None:
    """Write the map of process 42, and its pages."""
    (images / "pagemap-42.img").write_bytes(image(head, *entries))
    (images / "pages-7.img").write_bytes(bytes(pages * PAGE))


def entry(page: int, count: int, flags: int) -> bytes:
    """Return an entry as CRIU 4.2 writes it."""
    return message((1, page * PAGE), (2, count), (4, flags), (5, count))


def test_lazy_pages_with_their_place(tmp_path: Path) -> None:
    """What is restored at once has its place in the image too; what the parent has does not."""
    entries = (entry(1, 2, LAZY), entry(9, 3, EAGER), entry(20, 5, IN_PARENT), entry(30, 1, LAZY))
    write(tmp_path, *entries, pages=6)
    runs = pagemap.lazy_runs(tmp_path, 42)
    assert runs == [Run(PAGE, 2 * PAGE, 0), Run(30 * PAGE, PAGE, 5 * PAGE)]
    assert pagemap.pages_image(tmp_path, 42) == tmp_path / "pages-7.img"


def test_pages_that_stayed_in_the_original(tmp_path: Path) -> None:
    """They are in no image, and come from where they are."""
    entries = (entry(1, 2, ABSENT), entry(9, 3, EAGER), entry(20, 5, ABSENT))
    write(tmp_path, *entries, pages=3)
    assert pagemap.absent_runs(tmp_path, 42) == [
        Run(PAGE, 2 * PAGE, PAGE),
        Run(20 * PAGE, 5 * PAGE, 20 * PAGE),
    ]


def test_pages_that_should_have_stayed(tmp_path: Path) -> None:
    """A restore leaves them out, and nobody would put them into place."""
    write(tmp_path, entry(1, 2, LAZY), pages=2)
    with pytest.raises(CriuFailed, match="were to stay in the original"):
        pagemap.absent_runs(tmp_path, 42)


def test_an_older_criu_counts_in_another_field(tmp_path: Path) -> None:
    """Before 4.2 the number of pages had 32 bits."""
    write(tmp_path, message((1, PAGE), (2, 2), (4, LAZY)), pages=2)
    assert pagemap.lazy_runs(tmp_path, 42) == [Run(PAGE, 2 * PAGE, 0)]


def test_pages_that_are_not_here(tmp_path: Path) -> None:
    """An image that is too short is reported before a page is missed."""
    write(tmp_path, entry(1, 2, LAZY), pages=1)
    with pytest.raises(CriuFailed, match="pages of process 42 are not all here"):
        pagemap.lazy_runs(tmp_path, 42)


@pytest.mark.parametrize(
    "raw",
    [b"", image()[:6], image(message((1, 7)))[:-1], image(message((2, 7)))],
    ids=["empty", "cut in the head", "cut in an entry", "without a name"],
)
def test_a_malformed_map(tmp_path: Path, raw: bytes) -> None:
    """Nothing is guessed from it."""
    (tmp_path / "pagemap-42.img").write_bytes(raw)
    with pytest.raises(CriuFailed):
        pagemap.lazy_runs(tmp_path, 42)


def test_an_entry_without_an_address(tmp_path: Path) -> None:
    """It is reported as unknown."""
    write(tmp_path, message((4, LAZY), (5, 1)), pages=1)
    with pytest.raises(CriuFailed, match="unknown way"):
        pagemap.lazy_runs(tmp_path, 42)
