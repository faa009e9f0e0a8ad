"""Who asks for something: the user at a command line or in Flower, or the user of a program.

It is a claim. It travels inside a signed message, so nobody without the cluster's key can make or
change one; but whoever has the key can claim to be anybody.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import sys
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from sojourn.environment import variable
from sojourn.model import Json
from sojourn.text import one_line

#: How much of each text of a claim is kept.
LONGEST = 100

#: What the kernel has for a process that no login has begun.
NO_LOGIN = 2**32 - 1

#: What ``via`` is for a press of a button.
FLOWER = "Flower"


@dataclass(frozen=True)
class Caller:
    """Who asks: the login name, the uid under which they act, from which machine, and by what.

    ``uid`` is None, and ``host`` or ``via`` empty, where that is not known.
    """

    user: str
    uid: int | None = None
    host: str = ""
    via: str = ""

    def __str__(self) -> str:
        if self.via == FLOWER:
            return f"{self.user} in {FLOWER}"
        return f"{self.user}@{self.host}" if self.host else self.user

    def to_json(self) -> Json:
        """Return the claim as it travels."""
        return asdict(self)

    @classmethod
    def of(cls, claim: object) -> Caller:
        """Return what a message claims; where it is none, or none that is known, that."""
        if not isinstance(claim, dict):
            return UNKNOWN
        uid = claim.get("uid")
        texts = (_text(claim.get(name)) for name in ("user", "host", "via"))
        user, host, via = texts
        return cls(user or UNKNOWN.user, uid if type(uid) is int else None, host, via)

    @classmethod
    def named(cls, name: str) -> Caller:
        """Return who is named as ``str`` of a claim has it, such as ``alice@ops1``."""
        user, _, flower = name.partition(f" in {FLOWER}")
        if user != name and not flower:
            return cls(_text(user), via=FLOWER)
        user, at, host = name.rpartition("@")
        return cls(_text(user), host=_text(host)) if at else cls(_text(name))


#: Whoever an older version, or another program with the key, does not name.
UNKNOWN = Caller("unknown")

_ACTING: ContextVar[Caller | None] = ContextVar("acting", default=None)


@contextlib.contextmanager
def acting_for(caller: Caller) -> Iterator[None]:
    """Ask in the name of somebody else meanwhile: a web server does, for its users."""
    token = _ACTING.set(caller)
    try:
        yield
    finally:
        _ACTING.reset(token)


def current() -> Caller:
    """Return who asks now."""
    return _ACTING.get() or _here()


@cache
def _here() -> Caller:
    """Return the user of this process."""
    uid = os.geteuid()
    return Caller(_text(_login(uid)), uid, _text(socket.gethostname()), _text(_program()))


def _login(uid: int) -> str:
    """Return the name by which somebody has logged in, also behind su(1) and sudo(8)."""
    login = _login_uid()
    if login is not None:
        return _name(login)
    behind = variable("SUDO_USER") if uid == 0 else None
    return behind or _name(uid)


def _login_uid() -> int | None:
    """Return the uid that the login has left with the kernel, None without one."""
    # proc_pid_loginuid(5): inherited, and only who may control the audit of the kernel changes it.
    with contextlib.suppress(OSError, ValueError):
        uid = int(Path("/proc/self/loginuid").read_text())
        return None if uid == NO_LOGIN else uid
    return None


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _program() -> str:
    """Return the program of this process, as it was started."""
    started = Path(sys.argv[0] if sys.argv else "")
    return started.parent.name if started.name == "__main__.py" else started.name


def _text(value: object) -> str:
    return one_line(value)[:LONGEST] if isinstance(value, str) else ""
