"""Whom a host calls after the end: only what its own settings name, never what a caller asks for.

A worker is root, in the network of the hosts. An executable must be as safe as a command in root's
crontab, so it is examined before each call, and by ``sojourn doctor``.
"""

from __future__ import annotations

import base64
import binascii
import stat
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

#: How many bytes a secret has, as Standard Webhooks asks for.
SHORTEST_SECRET, LONGEST_SECRET = 24, 64

#: How a secret may begin, by the same specification.
SECRET_PREFIX = "whsec_"  # noqa: S105  it is no secret

#: Who may write to an executable, or to a directory above it: nobody but root.
OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class Target:
    """An executable or a web address, as it stands in the settings."""

    where: str

    @property
    def is_webhook(self) -> bool:
        """Whether it is a web address."""
        return not self.where.startswith("/")

    @property
    def url(self) -> SplitResult:
        """The parts of a web address."""
        return urlsplit(self.where)

    @property
    def name(self) -> str:
        """Its name in logs and metrics: of an address without the path, which may be a secret."""
        return f"{self.url.scheme}://{self.url.netloc}" if self.is_webhook else self.where


def targets(text: str) -> tuple[Target, ...]:
    """Return what a setting names, without repetitions. Raises ValueError for what cannot be."""
    found = tuple(Target(where) for where in dict.fromkeys(text.split()))
    for target in found:
        if target.is_webhook:
            _check_url(target)
    return found


def secret_of(text: str) -> bytes:
    """Return the bytes of a secret, which is text in base64. Raises ValueError."""
    try:
        secret = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not SHORTEST_SECRET <= len(secret) <= LONGEST_SECRET:
        raise ValueError(
            f"it is {SHORTEST_SECRET} to {LONGEST_SECRET} bytes in base64: openssl rand -base64 32"
        )
    return secret


def unsafe(executable: Path) -> str:
    """Return why root must not run an executable, as a sentence; empty if there is no reason.

    Raises OSError if it cannot be examined, such as one that does not exist.
    """
    found = executable.stat()
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IXUSR:
        return f"{executable} is no executable file."
    # A link counts as what it points to, and so does each directory on the way there.
    for path in (executable.resolve(), *executable.resolve().parents, *executable.parents):
        if why := _changeable(path):
            return why
    return ""


def _changeable(path: Path) -> str:
    """Return who but root can change or replace this, as a sentence."""
    found = path.stat()
    if found.st_uid != 0:
        return f"{path} belongs to user {found.st_uid}, not to root."
    # In a sticky directory nobody replaces what is root's.
    if found.st_mode & OTHERS and not found.st_mode & stat.S_ISVTX:
        return f"Others than root can write to {path}: mode {stat.S_IMODE(found.st_mode):04o}."
    return ""


def _check_url(target: Target) -> None:
    try:
        url, port = target.url, target.url.port
    except ValueError:
        raise ValueError(f"{target.where!r} is no web address") from None
    if url.scheme not in {"http", "https"} or not url.hostname or port == 0:
        raise ValueError(
            f"{target.where!r} is neither the absolute path of an executable nor an address with "
            "http or https"
        )
    if "@" in url.netloc:
        raise ValueError("a web address has no user and no password: notices are signed")
    if not target.where.isascii() or not target.where.isprintable():
        raise ValueError(f"{target.where!r} has letters that a web address must encode")
