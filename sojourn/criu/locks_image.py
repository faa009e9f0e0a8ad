"""The leases that CRIU dumped, as they stand in ``filelocks.img`` (https://criu.org/Images)."""

from __future__ import annotations

import fcntl
from pathlib import Path

from sojourn.criu.protobuf import entries, fields

#: ``file_lock_entry`` of images/file-lock.proto, and ``FL_LEASE`` of CRIU's file-lock.h.
KIND, TYPE, PID, DESCRIPTOR, LEASE = 1, 2, 3, 4, 8


def leases(images: Path) -> set[tuple[int, int]]:
    """Return the PIDs and descriptors of the leases for writing; raises CriuFailed if malformed."""
    found = set()
    try:
        image = (images / "filelocks.img").read_bytes()
    except FileNotFoundError:
        return set()
    for begin, end in entries(image):
        entry = {field.number: field.value for field in fields(image, begin, end)}
        if entry.get(KIND) == LEASE and entry.get(TYPE) != fcntl.F_RDLCK:
            found.add((int(entry.get(PID, 0)), int(entry.get(DESCRIPTOR, 0))))
    return found
