"""What a tree needs of its destination: told by the source as packed JSON, since it can be thousands of paths."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, dataclass

from sojourn.model import Json
from sojourn.preflight.files import Needed
from sojourn.preflight.limits import Limits
from sojourn.preflight.locks import Lock
from sojourn.preflight.sockets import Bound


@dataclass(frozen=True)
class Needs:
    """Everything by which the destination decides. ``pids`` and ``bound`` are empty for own namespaces."""

    command: str
    processes: int
    tasks: int
    tree_bytes: int
    private_bytes: int
    pids: tuple[int, ...]
    files: tuple[Needed, ...]
    bound: tuple[Bound, ...]
    locks: tuple[Lock, ...]
    criu: str
    kernel: str
    machine: str
    cpu_flags: tuple[str, ...]
    limits: Limits

    def pack(self) -> str:
        """Return it as text that travels: compressed, since paths repeat one another."""
        plain = vars(self) | {
            "files": [file.to_json() for file in self.files],
            "bound": [each.to_json() for each in self.bound],
            "locks": [lock.to_json() for lock in self.locks],
            "limits": asdict(self.limits),
        }
        return base64.b85encode(zlib.compress(json.dumps(plain).encode())).decode()

    @classmethod
    def unpack(cls, packed: str) -> Needs:
        """Read back what ``pack`` wrote."""
        plain: Json = json.loads(zlib.decompress(base64.b85decode(packed)))
        return cls(
            **{
                **plain,
                "pids": tuple(plain["pids"]),
                "files": tuple(Needed(*file) for file in plain["files"]),
                "bound": tuple(Bound(*each) for each in plain["bound"]),
                "locks": tuple(Lock(*each) for each in plain["locks"]),
                "cpu_flags": tuple(plain["cpu_flags"]),
                "limits": Limits(**plain["limits"]),
            }
        )
