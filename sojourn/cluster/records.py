"""Records as Redis holds them: each is read into a value of its type, or is unreadable.

Redis is not trusted, and other versions write into it too. A field that is not known here is left
out; a record of which something is missing, of another type, or no JSON, is None, whatever it is.
So one odd record costs one row, and whoever reads a row need not ask what its fields hold.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Strict, TypeAdapter, ValidationError

from sojourn.errors import SojournError
from sojourn.model import Failure, Json, State, Untyped

Kind = TypeVar("Kind")

#: More than any record of ours; what is longer is not parsed.
LONGEST = 16_000_000

#: No number of ours is larger: bytes, milliseconds, seconds since 1970.
LARGEST = 10**18


#: A number that is one already, and no text or truth value that could be read as one.
Number = Annotated[float, Strict()]


@dataclass(frozen=True)
class _Freeze:
    """From when to when a process did not run, in seconds since the epoch."""

    began: Number
    ended: Number | None = None


@dataclass(frozen=True)
class _Result:
    """The fields of a finished migration that are read from Redis again; others are kept as is."""

    state: State
    source: str = ""
    destination: str = ""
    mode: str = ""
    owner: str | None = None
    failure: Failure | None = None
    command: str | None = None
    downtime_ms: Number | None = None
    frozen_ms: Number | None = None
    freeze: _Freeze | None = None
    settled_ms: Number | None = None
    total_ms: Number | None = None
    pages_bytes: Number | None = None
    images_bytes: Number | None = None
    faults: Number | None = None
    wait_longest_ms: Number | None = None
    pid: Annotated[int, Strict()] | None = None
    id: str | None = None


#: The fields that a result may lack, since another version did not write them.
OPTIONAL = {field.name: field.default for field in fields(_Result) if field.name != "state"}


def decoded(text: str | None) -> Untyped:
    """Return what a JSON text holds, None for anything else."""
    if text is None or len(text) > LONGEST:
        return None
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded)
    # RecursionError: nested too deeply.
    except (ValueError, RecursionError):
        return None


def of(kind: type[Kind], value: object) -> Kind | None:
    """Return a decoded value as a dataclass or another type, None if it is no such thing."""
    try:
        adapter: TypeAdapter[Kind] = _adapter(cast("Any", kind))
        return adapter.validate_python(value)
    # ValidationError: another type. SojournError: a value that the class itself refuses.
    except (ValidationError, SojournError):
        return None


def read(kind: type[Kind], text: str | None) -> Kind | None:
    """Return what a JSON text holds as a dataclass or another type, None if it is no such thing."""
    return of(kind, decoded(text))


def mapping(text: str | None) -> Json | None:
    """Return the mapping that a JSON text holds, None for anything else."""
    value = decoded(text)
    return value if isinstance(value, dict) else None


def result(value: object) -> Json | None:
    """Return a decoded value as the result of a migration, None if it is none.

    Fields that are not known here stay.
    """
    known = of(_Result, value)
    return None if known is None or not isinstance(value, dict) else value


def complete(found: Json) -> Json:
    """Return a result with every field that is read of one; what it lacks is empty."""
    return OPTIONAL | found


def values(encoded: Mapping[str, str]) -> Json:
    """Return what the fields of a hash hold, each as JSON; those that hold none are left out."""
    found = {name: decoded(text) for name, text in encoded.items()}
    return {name: value for name, value in found.items() if value is not None}


@cache
def _adapter(kind: Untyped) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number) or abs(number) > LARGEST:
        raise ValueError(text)
    return number


def _bounded(text: str) -> int:
    number = int(text)
    if abs(number) > LARGEST:
        raise ValueError(text)
    return number
