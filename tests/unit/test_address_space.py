"""What is missing in a process's memory, against a list of single pages that is plainly right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sojourn.criu.pagemap import PAGE, Run
from sojourn.system.userfaultfd import Event, Message
from sojourn.transfer.address_space import AddressSpace

PAGES = 40

#: A change: its kind, and three numbers of pages.
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["forget", "move", "remove"]),
        st.integers(0, PAGES),
        st.integers(0, PAGES),
        st.integers(1, PAGES),
    ),
    max_size=12,
)
LAYOUT = st.sets(st.integers(0, PAGES - 1))


def runs_of(pages: set[int]) -> list[Run]:
    """Return pages as runs, each with its place in an image that has one page after another."""
    runs: list[Run] = []
    for offset, page in enumerate(sorted(pages)):
        if runs and runs[-1].address + runs[-1].length == page * PAGE:
            last = runs.pop()
            runs.append(Run(last.address, last.length + PAGE, last.offset))
        else:
            runs.append(Run(page * PAGE, PAGE, offset * PAGE))
    return runs


def pages_in(space: AddressSpace) -> dict[int, int]:
    """Return the missing pages, and where the image has each; no page is missing twice."""
    found: dict[int, int] = {}
    for run in space.runs:
        for at in range(0, run.length, PAGE):
            assert run.address + at not in found
            found[run.address + at] = run.offset + at
    assert list(space.runs) == sorted(space.runs, key=lambda run: -run.address)
    return found


@given(LAYOUT, CHANGES)
def test_it_follows_every_change(
    layout: set[int], changes: list[tuple[str, int, int, int]]
) -> None:
    """Whatever a process does to its mappings, each missing page keeps its content."""
    space = AddressSpace.of(runs_of(layout))
    plain = {page * PAGE: place * PAGE for place, page in enumerate(sorted(layout))}
    for kind, first, second, count in changes:
        start, other, length = first * PAGE, second * PAGE, count * PAGE
        if kind == "move":
            if abs(start - other) < length:
                continue  # mremap(2) refuses places that overlap
            moved = {
                page - start + other: place
                for page, place in plain.items()
                if start <= page < start + length
            }
            gone = [*range(start, start + length, PAGE), *range(other, other + length, PAGE)]
            plain = {page: place for page, place in plain.items() if page not in gone} | moved
            space.apply(Message(Event.REMAP, start, other, length))
            continue
        if kind == "forget":
            taken = space.forget(start, start + length)
            assert all(start <= run.address < start + length for run in taken)
        else:
            space.apply(Message(Event.UNMAP, start, start + length, 0))
        plain = {page: place for page, place in plain.items() if not start <= page < start + length}
    assert pages_in(space) == plain


@given(LAYOUT, st.integers(0, PAGES))
def test_what_is_missing_at_an_address(layout: set[int], page: int) -> None:
    """A page that is missing is found with its place; another one is zero."""
    space = AddressSpace.of(runs_of(layout))
    found = space.at(page * PAGE)
    if page not in layout:
        assert found is None
        return
    assert found is not None
    assert found.address == page * PAGE
    assert found.offset == sorted(layout).index(page) * PAGE
    assert (page + found.length // PAGE) not in layout


def test_a_child_goes_its_own_way() -> None:
    """What the parent gives back after the fork is still the child's, and the other way round."""
    parent = AddressSpace.of([Run(0, 4 * PAGE, 0)])
    child = parent.fork()
    parent.forget(0, PAGE)
    child.forget(3 * PAGE, 4 * PAGE)
    assert parent.runs == [Run(PAGE, 3 * PAGE, PAGE)]
    assert child.runs == [Run(0, 3 * PAGE, 0)]


def test_the_lowest_comes_first() -> None:
    """The fill goes on where programs do: upwards."""
    space = AddressSpace.of([Run(8 * PAGE, PAGE, PAGE), Run(0, PAGE, 0)])
    assert space.next() == Run(0, PAGE, 0)
    space.forget(0, PAGE)
    assert space.next() == Run(8 * PAGE, PAGE, PAGE)
    space.forget(8 * PAGE, 9 * PAGE)
    assert space.next() is None
