"""Where the running kernel keeps the fields of its structures: ``/sys/kernel/btf/vmlinux``.

The format is that of https://docs.kernel.org/bpf/btf.html: a header, types one after another
without an index, and a table of names. Only what is asked for is searched, since a kernel has more
than a hundred thousand types.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

#: ``struct btf_header`` of include/uapi/linux/btf.h.
HEADER, MAGIC = struct.Struct("=HBBIIIII"), 0xEB9F

#: ``struct btf_type`` begins so, and ``struct btf_member`` is so: a name, a type, an offset.
TYPE = MEMBER = struct.Struct("=III")

#: Kinds of types that are asked for.
STRUCT, FUNCTION = 4, 12

#: How many bytes follow a type of a kind: as often as it has members, or once.
EACH_MEMBER = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
ONCE = {1: 4, 3: 12, 14: 4, 17: 4}


class Types:
    """The types of a kernel, of which those named are found. Raises ValueError for other data."""

    def __init__(self, data: bytes, names: set[str]) -> None:
        magic, _, _, begin, types_at, types_bytes, names_at, names_bytes = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ValueError("This is not BTF.")
        self._types = data[begin + types_at : begin + types_at + types_bytes]
        self._names = data[begin + names_at : begin + names_at + names_bytes]
        self._places = [0, *self._each()]  # type 0 is void, and not listed
        self._found = dict(self._of_names(names))

    def offset(self, structure: str, member: str) -> int:
        """Return where a member begins, in bytes. Raises LookupError if there is none."""
        place = self._places[self._found[STRUCT, structure]]
        found = self._offset(place, member)
        if found is None:
            raise LookupError(f"{structure} has no member {member}.")
        return found

    def function(self, name: str) -> int:
        """Return the number of a function's type. Raises LookupError."""
        return self._found[FUNCTION, name]

    def _each(self) -> Iterator[int]:
        at, end = 0, len(self._types)
        while at < end:
            yield at
            _, info, _ = TYPE.unpack_from(self._types, at)
            kind, members = info >> 24 & 0x1F, info & 0xFFFF
            at += TYPE.size + EACH_MEMBER.get(kind, 0) * members + ONCE.get(kind, 0)

    def _of_names(self, names: set[str]) -> Iterator[tuple[tuple[int, str], int]]:
        wanted = {self._names.find(f"\0{name}\0".encode()) + 1: name for name in names}
        wanted.pop(0, None)  # what is in no table of names
        for number, at in reversed(list(enumerate(self._places[1:], 1))):
            name, info, _ = TYPE.unpack_from(self._types, at)
            if name in wanted:
                yield (info >> 24 & 0x1F, wanted[name]), number

    def _offset(self, at: int, wanted: str) -> int | None:
        """Return where a member begins, also one of a structure without a name inside this one."""
        _, info, _ = TYPE.unpack_from(self._types, at)
        # With this bit set the highest eight bits of an offset are the size of a bit field.
        has_bit_fields = info >> 31
        for index in range(info & 0xFFFF):
            name, kind, bits = MEMBER.unpack_from(self._types, at + TYPE.size * (index + 1))
            begin: int = (bits & 0xFFFFFF if has_bit_fields else bits) // 8
            if not name:
                inner = self._offset(self._places[kind], wanted)
                if inner is not None:
                    return begin + inner
            elif self._name(name) == wanted:
                return begin
        return None

    def _name(self, at: int) -> str:
        return self._names[at : self._names.index(b"\0", at)].decode()
