"""Compatibility: why two hosts cannot talk to each other, so that nothing can move between them.

The registry, placement, the doctor and preflight all ask this, each with what it knows of the two
sides. What one host lacks to run another's processes is a different question, and has a direction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Endpoint:
    """What decides whether a host can talk to another one.

    ``cluster`` is the same on hosts with the same key, and empty where it is not known, as from a
    worker of an older version: then keys are not compared. So is ``criu``, the version of CRIU.
    """

    name: str
    cluster: str = ""
    criu: str = ""
    encrypts: bool = False
    certificate_has_ended: bool = False


@dataclass(frozen=True)
class Reason:
    """Why two hosts cannot talk: a stable code, a sentence, and what to do about it."""

    code: str
    sentence: str
    hint: str


def incompatibilities(one: Endpoint, other: Endpoint) -> list[Reason]:
    """Return why two hosts cannot talk to each other, the most fundamental reason first."""
    return [*_keys(one, other), *_certificates(one, other), *_versions_of_criu(one, other)]


def series(version: str) -> tuple[int, ...]:
    """Return the major and minor number of a version; ``6.18.5+deb13-amd64`` is (6, 18)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


def _keys(one: Endpoint, other: Endpoint) -> Iterator[Reason]:
    # A key signs every message, so hosts with different ones refuse what the other sends.
    if one.cluster and other.cluster and one.cluster != other.cluster:
        yield Reason(
            "OTHER_KEY",
            f"{other.name} has another key than {one.name}: each refuses the other's messages.",
            "Put the same `key` into sojourn.toml on every machine of the cluster, "
            "and restart its worker.",
        )


def _certificates(one: Endpoint, other: Endpoint) -> Iterator[Reason]:
    # A host with certificates encrypts, and talks only to hosts that do and that it can verify.
    if one.encrypts != other.encrypts:
        having, lacking = (one, other) if one.encrypts else (other, one)
        yield Reason(
            "CERTIFICATES",
            f"{having.name} has certificates and {lacking.name} has none: "
            "one would encrypt, and the other would not.",
            f"Issue them (sojourn pki issue {lacking.name}), name them in `certificates` there, "
            "and restart its worker.",
        )
    for host in (one, other):
        if host.certificate_has_ended:
            yield Reason(
                "CERTIFICATES",
                f"The certificate of {host.name} has ended, or cannot be read.",
                f"Issue a new one: sojourn pki issue {host.name}. It counts at once.",
            )


def _versions_of_criu(one: Endpoint, other: Endpoint) -> Iterator[Reason]:
    # The page server's protocol may differ between minor versions: its header changed in CRIU 4.2.
    if one.criu and other.criu and series(one.criu) != series(other.criu):
        yield Reason(
            "CRIU_VERSION",
            f"{one.name} has CRIU {one.criu} and {other.name} has {other.criu}; "
            "they are not compatible.",
            "Install the same major and minor version of CRIU on both hosts.",
        )
