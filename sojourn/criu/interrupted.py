"""The registers of interrupted system calls in CRIU's images (``core-TID.img``).

Which registers they get is in ``sojourn.system.restart``. The image is written beside the old one
and takes its place by rename(2): whoever dies in here leaves one or the other. An image in which
the call is made once more does not look interrupted any more, so nothing is done twice.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from pathlib import Path

from sojourn.criu.protobuf import HEADER_BYTES, encoded, entries, fields, replaced
from sojourn.errors import CriuFailed
from sojourn.system.ptrace import NAMES, Registers

#: ``core_entry.thread_info`` and ``thread_info_x86.gpregs`` of images/core.proto and
#: images/core-x86.proto.
THREAD_INFO, GPREGS = 2, 2

#: The fields of ``user_x86_regs_entry``, numbered in the order of ``NAMES``.
NUMBERS = {name: number for number, name in enumerate(NAMES, start=1)}

#: How the image of a thread whose call failed with EINTR has ``ax``, in 64 and in 32 bits. To look
#: for that costs a tenth of reading all fields, and a frozen tree may have a thousand threads.
FAILED = tuple(encoded(NUMBERS["ax"], 2**bits - errno.EINTR) for bits in (64, 32))


def mend(image: Path, change: Callable[[Registers], Registers | None]) -> bool:
    """Give a thread the registers that ``change`` returns, None for no change; return whether.

    ``change`` is asked only about a call that failed with EINTR. Raises CriuFailed if the image of
    such a thread is malformed.
    """
    content = image.read_bytes()
    if not any(failed in content for failed in FAILED):
        return False
    begin, end = next(entries(content), (0, 0))
    core = content[begin:end]
    info = _inner(core, THREAD_INFO)
    values = _values(_inner(info, GPREGS))
    after = change({name: values[number] for name, number in NUMBERS.items()})
    if after is None:
        return False
    values |= {NUMBERS[name]: value for name, value in after.items()}
    general = b"".join(encoded(number, value) for number, value in values.items())
    core = replaced(core, THREAD_INFO, replaced(info, GPREGS, general))
    size = struct.pack("<I", len(core))
    _write(image, content[:HEADER_BYTES] + size + core + content[end:])
    return True


def _inner(message: bytes, number: int) -> bytes:
    """Return the first message of that number within another one."""
    for field in fields(message, 0, len(message)):
        if field.number == number and isinstance(field.value, bytes):
            return field.value
    raise CriuFailed("CRIU wrote the registers of a thread in an unknown way.")


def _values(general: bytes) -> dict[int, int]:
    """Return the registers by the numbers of their fields, and what stands with them, in order."""
    found = list(fields(general, 0, len(general)))
    values = {field.number: field.value for field in found if isinstance(field.value, int)}
    if len(values) != len(found) or not values.keys() >= set(NUMBERS.values()):
        raise CriuFailed("CRIU wrote the registers of a thread in an unknown way.")
    return values


def _write(image: Path, content: bytes) -> None:
    draft = image.with_suffix(".new")
    draft.write_bytes(content)
    draft.chmod(image.stat().st_mode & 0o777)
    draft.replace(image)
