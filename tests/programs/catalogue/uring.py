"""How a program is started to which there is no io_uring."""

from __future__ import annotations

#: Runs a program to which io_uring_setup(2) does not exist, as a unit with
#: ``SystemCallFilter=~io_uring_setup`` has it: the filter lets everything else pass.
WITHOUT_URING = "setpriv --seccomp-filter $D/filter"
FILTER = """
python3 - <<'END'
import os, struct
rows = [(0x20, 0, 0, 4), (0x15, 0, 3, 0xC000003E), (0x20, 0, 0, 0), (0x15, 0, 1, 425)]
rows += [(0x06, 0, 0, 0x50000 | 38), (0x06, 0, 0, 0x7FFF0000)]
with open(os.environ["D"] + "/filter", "wb") as file:
    file.write(b"".join(struct.pack("HBBI", *row) for row in rows))
END
"""
WITHOUT_HOW = "under a filter of system calls"
