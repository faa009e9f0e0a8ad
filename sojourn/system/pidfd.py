"""A process held by a descriptor (pidfd_open(2)): whether and how it ended, for a stranger.

How a process ended is reported to its parent alone, except by ``PIDFD_GET_INFO`` of kernel 6.15 and
later, and only to who has held a descriptor of it since before it was reaped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import struct
import time
from dataclasses import dataclass

#: ``PIDFD_GET_INFO`` and ``PIDFD_INFO_EXIT`` of include/uapi/linux/pidfd.h: the first 64 bytes of
#: ``struct pidfd_info``, with the mask at their begin and the wait status at their end.
GET_INFO, INFO_EXIT, INFO_BYTES, STATUS_AT = 0xC040FF0B, 1 << 3, 64, 60

#: How long its parent may take to reap it; the status is known only then.
REAPED_WITHIN_S = 0.05


@dataclass
class Held:
    """A process to hold; ``descriptor`` is None until it was there. PID 0 is never held."""

    pid: int
    descriptor: int | None = None

    def open(self) -> None:
        """Hold the process if it is there and is not held yet."""
        if self.pid and self.descriptor is None:
            with contextlib.suppress(ProcessLookupError):
                self.descriptor = os.pidfd_open(self.pid)

    def close(self) -> None:
        """Let it go."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None

    def ended_within(self, seconds: float) -> bool:
        """Wait for its end; False if it lives on, or was never held."""
        if self.descriptor is None:
            return False
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(max(0, seconds) * 1000))

    def how_it_ended(self) -> str:
        """Return "signal 9" or "exit code 1"; empty if the kernel does not tell."""
        until = time.monotonic() + REAPED_WITHIN_S
        while (status := self._status()) is None and time.monotonic() < until:
            time.sleep(0.002)
        if status is None:
            return ""
        if os.WIFSIGNALED(status):
            return f"signal {os.WTERMSIG(status)}"
        return f"exit code {os.WEXITSTATUS(status)}"

    def _status(self) -> int | None:
        """Return the wait status of wait(2), None while it is not known."""
        if self.descriptor is None:
            return None
        info = bytearray(struct.pack("<Q", INFO_EXIT).ljust(INFO_BYTES, b"\0"))
        try:
            fcntl.ioctl(self.descriptor, GET_INFO, info)
        except OSError:  # an older kernel
            return None
        (mask,) = struct.unpack_from("<Q", info)
        (status,) = struct.unpack_from("<i", info, STATUS_AT)
        return int(status) if mask & INFO_EXIT else None
