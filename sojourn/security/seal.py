"""Seals: how a record that was kept by somebody else shows that a host of this cluster wrote it.

Whoever can write to Redis can put anything there. So what is read back from it and acted upon ends
with a seal: a MAC (HMAC-SHA256) over the record's kind, what it is about, who sealed it and when,
and its text. A seal is of no use for another kind of record, another migration, or another host.

A sealed record is still JSON, with one member more at its end, so that people, other programs and
Redis's own scripts read it as before::

    {"pid": 4242, "source": "alpha", "seal": "1 alpha 1767225600.0 5f0c..."}

The seal has its version, the name of who sealed, when (seconds since the epoch) and the MAC. Each
host seals with a key of its own, which is derived from the cluster's: a host that makes a mistake
cannot speak for another one. Whoever has the cluster's key can derive all of them.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from dataclasses import dataclass, field
from functools import cache

from sojourn.errors import SojournError
from sojourn.model import Json

VERSION = "1"

#: Where a text ends with a seal. The name is that of a host, or of an operator's machine.
SEALED = re.compile(r', "seal": "1 ([A-Za-z0-9._-]{1,253}) (\d{1,12}\.\d{1,7}) ([0-9a-f]{64})"\}\Z')


class NotSealed(SojournError):
    """A record has no seal, or not the one that it must have."""

    code = "NOT_SEALED"


@dataclass(frozen=True)
class Opened:
    """What was sealed, by which host, and when (seconds since the epoch, by that host's clock)."""

    content: Json
    by: str
    at: float


@dataclass(frozen=True)
class Seal:
    """Seals records in the name of one host, and opens what any host of the cluster has sealed."""

    key: str = field(repr=False)
    host: str

    def close(self, kind: str, about: str, content: Json) -> str:
        """Return a record as sealed JSON text; ``content`` has at least one member."""
        return self.close_text(kind, about, json.dumps(content))

    def close_text(self, kind: str, about: str, text: str) -> str:
        """Return a text sealed, which is JSON of an object that has at least one member."""
        when = f"{time.time():.6f}"
        mac = self._mac(kind, about, self.host, when, text)
        return f'{text[:-1]}, "seal": "{VERSION} {self.host} {when} {mac}"}}'

    def open(
        self, kind: str, about: str, text: str, *, by: str = "", within_s: float | None = None
    ) -> Opened:
        """Return what was sealed as a record of this kind, about this.

        With ``by`` that host must have sealed it; with ``within_s`` not longer ago than that.
        Raises NotSealed, before anything of the text is interpreted.
        """
        sealed, host, when = self.open_text(kind, about, text)
        if by and host != by:
            raise NotSealed(f"The {kind} of {about} was sealed by {host}, not by {by}.")
        if within_s is not None and time.time() - when > within_s:
            raise NotSealed(f"The {kind} of {about} was sealed too long ago.")
        return Opened(json.loads(sealed), host, when)

    def open_text(self, kind: str, about: str, text: str) -> tuple[str, str, float]:
        """Return what was sealed, by which host, and when. Raises NotSealed."""
        found = SEALED.search(text)
        if found is None:
            raise NotSealed(f"The {kind} of {about} carries no seal.")
        (host, when, mac), sealed = found.groups(), text[: found.start()] + "}"
        if not hmac.compare_digest(mac, self._mac(kind, about, host, when, sealed)):
            raise NotSealed(f"The seal on the {kind} of {about} is wrong.")
        return sealed, host, float(when)

    def _mac(self, kind: str, about: str, host: str, when: str, text: str) -> str:
        # A list of JSON contains no zero byte, so no other parts give the same bytes.
        named = json.dumps([VERSION, kind, about, host, when])
        data = f"{named}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.digest(_key_of(self.key, host), data, "sha256").hex()


@cache
def _key_of(key: str, host: str) -> bytes:
    """Return the key with which one host seals."""
    return hmac.digest(key.encode(), f"seals of {host}".encode(), "sha256")
