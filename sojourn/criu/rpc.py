"""CRIU by remote procedure call: one request, and its questions meanwhile (https://criu.org/RPC).

``criu swrk`` gets one end of a Unix socket for sequenced packets, reads a request from it, and ends
after the answer. It can be started long before the request is made. With ``notify_scripts`` it asks
whether to go on, at the moments at which it would call an action script
(https://criu.org/Action_scripts), and waits for the answer. The messages are those of CRIU's
``images/rpc.proto``.

* CRIU dies: its socket or its pidfd shows that at once.
* We die: at its next question CRIU finds nobody, and fails as if the answer had been no.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from sojourn.criu.protobuf import Field, encoded, fields
from sojourn.errors import CriuFailed
from sojourn.system.run import spawn

#: ``criu_req_type``.
RESTORE, NOTIFY = 2, 6

#: Fields of ``criu_req``, of ``criu_resp``, and of its ``criu_notify``.
REQUEST_TYPE, REQUEST_OPTIONS, REQUEST_GO_ON = 1, 2, 3
RESPONSE_TYPE, RESPONSE_NOTIFY = 1, 5
NOTIFY_SCRIPT, NOTIFY_PID = 1, 2

#: Longer than any message of CRIU: its longest has a line of its log.
MESSAGE_BYTES = 2**16

#: How long CRIU may take to end after its answer, in seconds.
ENDING_S = 30

#: Answers whether to go on, by the name of the moment and, at ``post-restore``, the root's PID.
Decide = Callable[[str, int], bool]


class Service:
    """A CRIU that waits for one request."""

    def __init__(self, criu: Path, output: Path, env: Mapping[str, str]) -> None:
        """Start it; what it prints is appended to ``output``. Raises CommandMissing."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            number = theirs.fileno()
            self._child = spawn(
                # /etc/criu/default.conf of one host must not change what a migration does.
                [criu, "--no-default-config", "swrk", str(number)],
                output=output,
                pass_fds=[number],
                env=env,
                own_session=False,
            )
        #: Readable once CRIU has ended: what it forked can hold the socket for longer.
        self.ended = os.pidfd_open(self._child.pid)

    def restore(self, options: bytes, decide: Decide) -> int:
        """Have a tree restored; return CRIU's exit code, negative for a signal.

        ``options`` is a ``criu_opts``, and ``decide`` is asked at each moment.
        """
        request = encoded(REQUEST_TYPE, RESTORE) + encoded(REQUEST_OPTIONS, options)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.send(request)
            while question := _question(self._heard()):
                answer = encoded(REQUEST_TYPE, NOTIFY)
                self._socket.send(answer + encoded(REQUEST_GO_ON, int(decide(*question))))
        return self._child.wait(ENDING_S)

    def _heard(self) -> bytes:
        """Return CRIU's next message; empty if it has ended."""
        ours = self._socket.fileno()
        ready, _, _ = select.select([ours, self.ended], [], [])
        return self._socket.recv(MESSAGE_BYTES) if ours in ready else b""


def _question(message: bytes) -> tuple[str, int] | None:
    """Return the moment that a message asks about, and a PID or 0; None if it asks nothing."""
    found = _by_number(message)
    if RESPONSE_TYPE not in found or found[RESPONSE_TYPE].value != NOTIFY:
        return None
    asked = _by_number(_bytes(found[RESPONSE_NOTIFY])) if RESPONSE_NOTIFY in found else {}
    if NOTIFY_SCRIPT not in asked:
        raise CriuFailed("CRIU asked whether to go on, and did not name the moment.")
    pid = asked[NOTIFY_PID].value if NOTIFY_PID in asked else 0
    return _bytes(asked[NOTIFY_SCRIPT]).decode(errors="replace"), int(pid)


def _by_number(message: bytes) -> dict[int, Field]:
    return {field.number: field for field in fields(message, 0, len(message))}


def _bytes(field: Field) -> bytes:
    if not isinstance(field.value, bytes):
        raise CriuFailed(f"A message of CRIU has a number in its field {field.number}.")
    return field.value
