"""The time left of a batch: it falls, and rises for a reason only."""

from __future__ import annotations

import random

from sojourn.cluster.countdown import Countdown, Left, weight


def test_nothing_is_known_before_anything_was_done() -> None:
    """What had been done before the first look does not count."""
    countdown = Countdown()
    assert countdown.look(100.0, 50.0, 100.0) is None
    assert countdown.look(110.0, 50.0, 100.0) is None
    assert countdown.look(119.0, 50.5, 100.0) is None, "too little to know the pace"
    left = countdown.look(120.0, 60.0, 100.0)
    assert left is not None
    assert (left.seconds, left.why) == (80.0, "")


def test_it_falls_second_by_second_while_the_pace_varies() -> None:
    """Migrations end at odd times, as they do: what is shown never rises."""
    chance, countdown, done, shown = random.Random(1), Countdown(), 0.0, float("inf")
    countdown.look(0.0, 0.0, 1000.0)
    for now in range(1, 1000):
        done = now + chance.uniform(-3, 3) if now % 7 == 0 else done
        left = countdown.look(float(now), max(0.0, done), 1000.0)
        if left:
            assert left.seconds < shown, now
            shown = left.seconds
    assert shown < 20


def test_it_rises_for_a_reason_which_it_names() -> None:
    """Something is tried again, or the pace is not what it was; then it falls again."""
    countdown = Countdown()
    countdown.look(0.0, 0.0, 100.0)
    assert countdown.look(10.0, 10.0, 100.0) == Left(90.0)
    assert countdown.look(11.0, 11.0, 150.0) == Left(139.0, "there is more to do than before")
    assert countdown.look(12.0, 6.0, 150.0) == Left(288.0, "there is more to do than before")
    countdown = Countdown()
    countdown.look(0.0, 0.0, 100.0)
    assert countdown.look(10.0, 10.0, 100.0) == Left(90.0)
    countdown.look(11.0, 11.0, 150.0)
    assert countdown.look(60.0, 20.0, 150.0) == Left(390.0, "it goes slower than before")
    assert countdown.look(70.0, 20.0, 150.0) == Left(380.0, "it goes slower than before")
    better = countdown.look(80.0, 60.0, 150.0)
    assert better is not None
    assert (120.0 < better.seconds < 370.0, better.why) == (True, "")


def test_small_migrations_are_work_too() -> None:
    """Ten small ones weigh more than one."""
    assert 10 * weight(1e6) > weight(10e6) > weight(0) > 0
