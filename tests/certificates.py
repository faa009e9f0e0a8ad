"""Certificates for tests: an authority of the test's own, and what it has issued."""

from __future__ import annotations

from pathlib import Path

from sojourn.pki import Authority
from sojourn.tls import Certificates


def issue(authority: Authority, name: str, *addresses: str, days: int = 1) -> Certificates:
    """Return new certificates of a host; with no days, they have ended already."""
    return Certificates(authority.issue(name, addresses, days))


def authority(directory: Path, *, days: int = 30) -> Authority:
    """Return a new authority."""
    return Authority.create(directory, days)
