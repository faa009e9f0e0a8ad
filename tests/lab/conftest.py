"""One lab named ``test`` for all tests here, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab import outside
from lab.errors import LabUnsuitable
from lab.lab import Lab
from sojourn.settings import variable


@pytest.fixture(scope="session")
def suitable() -> None:
    """Skip, with the reason, where there can be no lab; fail where there must be one."""
    try:
        outside.check()
    except LabUnsuitable as error:
        if variable("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def lab(suitable: None) -> Iterator[Lab]:
    """Two hosts and the hub; the workers need not be there, since nothing here migrates."""
    made = Lab("test")
    made.down()
    made.up(2, wait=False)
    yield made
    made.down()
