"""Chromium and Flower: the real ones, or the reason why a test is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sojourn.settings import variable
from tests.browser.site import Browser, require_browser
from tests.integration.conftest import redis, redis_there

__all__ = ["redis", "redis_there"]

CHECKOUT = Path(__file__).parents[2]

Opens = Callable[..., Browser]


@pytest.fixture(scope="session")
def chromium() -> None:
    """Skip, with the reason, where there is no browser; fail where there must be one."""
    require_browser()


@pytest.fixture
def opens(chromium: None, tmp_path: Path) -> Iterator[Opens]:
    """Return a function that opens browser windows, which are closed at the end."""
    opened: list[Browser] = []

    def open_one(base: str, login: str = "") -> Browser:
        opened.append(Browser(base, tmp_path / f"profile-{len(opened)}", login=login))
        return opened[-1]

    yield open_one
    for browser in opened:
        browser.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return the directory of screenshots: the documentation's if ``SOJOURN_PICTURES`` is set."""
    return CHECKOUT / "docs/images" if variable("SOJOURN_PICTURES") else tmp_path
