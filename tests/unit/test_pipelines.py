"""The tables of ``workflows/pipelines.py``: their order, and what holds for every one of them."""

from __future__ import annotations

import pytest

from sojourn.model import Plan
from workflows.canvas import DESTINATION, SOURCE, Both, Pipeline, Step
from workflows.pipelines import PIPELINES, POST_COPY, STOP_AND_COPY


def _rows(pipeline: Pipeline) -> list[str]:
    return [f"{step.do.name}@{step.on}" for step in pipeline.steps()]


def test_the_procedure() -> None:
    """The order of CRIU's disk-less migration (https://criu.org/Disk-less_migration)."""
    assert _rows(STOP_AND_COPY) == [
        *("examine@source", "preflight@destination"),
        *("reserve@destination", "page_server@destination", "reserve@source"),
        *("dump@source", "copy_images@source", "restore@destination"),
        *("settle@destination", "release@destination", "confirm@destination"),
        *("retire@source", "release@source"),
    ]


def test_post_copy() -> None:
    """The same, with the pager connected before the freeze, and the original kept until the end."""
    assert _rows(POST_COPY) == [
        *("examine@source", "preflight@destination"),
        *("reserve@destination", "page_server@destination"),
        *("reserve@source", "page_sender@source", "connect_pager@destination"),
        *("dump@source", "copy_images@source", "restore@destination", "settle@destination"),
        *("release@destination", "confirm@destination", "retire@source", "release@source"),
    ]
    assert _rows(POST_COPY.backward()) == _rows(STOP_AND_COPY.backward())


def test_the_way_back() -> None:
    """Undos in the opposite order, by the lane that is kept free for frozen trees."""
    back = STOP_AND_COPY.backward()
    assert _rows(back) == [
        *("refuse@destination", "resume@source", "release@source"),
        *("stop_page_server@destination", "release@destination"),
    ]
    assert all(step.frozen and step.do.undo for step in back.steps())


def test_every_mode_has_a_pipeline() -> None:
    """A plan accepts the modes for which there is a table, and no others."""
    assert set(PIPELINES) == set(Plan.MODES)


@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
def test_what_waits_frozen_has_its_own_lane(pipeline: Pipeline) -> None:
    """From behind the dump to the commit, each message goes by the lane for frozen trees."""
    steps = [*pipeline.steps()]
    names = [step.do.name for step in steps]
    inside = steps[names.index("dump") + 1 : names.index("restore") + 1]
    assert inside
    assert all(step.frozen for step in inside)


def test_no_chord_inside_the_freeze() -> None:
    """On Redis a chord's errback waits for the whole header, and so would the frozen tree."""
    reserve = next(STOP_AND_COPY.steps()).do
    with pytest.raises(ValueError, match="must not wait for a chord"):
        Both([Step(reserve, SOURCE, frozen=True)], [Step(reserve, DESTINATION)])
