"""Certificates for tests: a separate authority, and what it has issued."""

from __future__ import annotations

from pathlib import Path

from sojourn.security.pki import Authority
from sojourn.security.tls import Certificates


def issue(authority: Authority, name: str, *addresses: str, days: int = 1) -> Certificates:
    """Return new certificates of a host; with 0 days they have expired already."""
    return Certificates(authority.issue(name, addresses, days))


def authority(directory: Path, *, days: int = 30) -> Authority:
    """Return a new authority."""
    return Authority.create(directory, days)
