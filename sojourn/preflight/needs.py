"""What a tree needs of its destination.

The source sends it as compressed JSON, since it can be thousands of paths.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass

from sojourn.model import Json
from sojourn.preflight.files import Needed
from sojourn.preflight.leases import Lease
from sojourn.preflight.limits import Limits
from sojourn.preflight.locks import Lock
from sojourn.preflight.memory_files import MemoryFile
from sojourn.preflight.names import Name
from sojourn.preflight.sockets import Bound
from sojourn.preflight.unread import Fifo
from sojourn.preflight.wanted import Wanted


@dataclass(frozen=True)
class Needs:
    """All that the destination checks.

    ``pids`` is empty for a tree in its own PID namespace, ``bound`` for one in its own network.
    ``never_lazy_bytes`` is what crosses in the freeze in any mode (``never_lazy``); it is asked for
    in post-copy only.
    """

    command: str
    processes: int
    tasks: int
    tree_bytes: int
    private_bytes: int
    forked_bytes: int
    pids: tuple[int, ...]
    files: tuple[Needed, ...]
    memory: tuple[MemoryFile, ...]
    bound: tuple[Bound, ...]
    fifos: tuple[Fifo, ...]
    locks: tuple[Lock, ...]
    leases: tuple[Lease, ...]
    names: tuple[Name, ...]
    criu: str
    kernel: str
    machine: str
    cpu_flags: tuple[str, ...]
    limits: Limits
    wanted: tuple[Wanted, ...] = ()
    never_lazy_bytes: int = 0

    def pack(self) -> str:
        """Return it as text for the broker: compressed, since paths repeat one another."""
        plain = vars(self) | {
            "files": [file.to_json() for file in self.files],
            "memory": [file.to_json() for file in self.memory],
            "bound": [socket.to_json() for socket in self.bound],
            "fifos": [fifo.to_json() for fifo in self.fifos],
            "locks": [lock.to_json() for lock in self.locks],
            "leases": [lease.to_json() for lease in self.leases],
            "names": [name.to_json() for name in self.names],
            "limits": asdict(self.limits),
            "wanted": [one.to_json() for one in self.wanted],
        }
        # A message is JSON, which holds no bytes; base 85 makes five characters of four of them.
        return base64.b85encode(zlib.compress(json.dumps(plain).encode())).decode()

    @classmethod
    def unpack(cls, packed: str) -> Needs:
        """Read back what ``pack`` wrote."""
        plain: Json = json.loads(zlib.decompress(base64.b85decode(packed)))
        return cls(
            **{
                **plain,
                "pids": tuple(plain["pids"]),
                "files": tuple(Needed.from_json(file) for file in plain["files"]),
                "memory": tuple(MemoryFile.from_json(file) for file in plain["memory"]),
                "bound": tuple(Bound(*socket) for socket in plain["bound"]),
                "fifos": tuple(Fifo.from_json(fifo) for fifo in plain["fifos"]),
                "locks": tuple(Lock(*lock) for lock in plain["locks"]),
                "leases": tuple(Lease.from_json(lease) for lease in plain["leases"]),
                "names": tuple(Name.from_json(name) for name in plain["names"]),
                "cpu_flags": tuple(plain["cpu_flags"]),
                "limits": Limits(**plain["limits"]),
                "wanted": tuple(Wanted(*one) for one in plain["wanted"]),
            }
        )
