"""TLS between hosts: each shows the certificate that the cluster's authority gave it, and checks the other's.

The directory of the setting ``certificates`` holds, as PEM, what ``sojourn pki`` makes:

``ca.crt``    the authority; several, one after another, while one takes the place of another
``host.pem``  this host's private key and its certificate, which bears the host's name; 0600, and one file, so that a
              renewed one takes the place of the old in one instant

They are read anew for each connection, so what is renewed counts at once. TLS 1.3 only, without tickets: a connection
is as good as its certificates are now (RFC 8446).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import ChannelFailed

DOCTOR = "`sojourn doctor` on both hosts looks at their certificates."


@dataclass(frozen=True)
class Certificates:
    """What this host shows of itself, and whose word it takes for others."""

    directory: Path

    @property
    def authority(self) -> Path:
        """Who is believed."""
        return self.directory / "ca.crt"

    @property
    def host(self) -> Path:
        """Who we are, and what proves it."""
        return self.directory / "host.pem"

    def context(self, protocol: int) -> ssl.SSLContext:
        """Return what Python needs to know for TLS with others of the cluster. Raises ChannelFailed, SSLError."""
        for path in (self.authority, self.host):
            if not path.is_file():
                raise ChannelFailed(f"There is no {path} on this host.", DOCTOR)
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.host)
        return context


@dataclass(frozen=True)
class Party:
    """One side of a conversation: our certificates, and the host that must be at the other end.

    Both functions raise ChannelFailed, also if our own certificates are not there or are none.
    """

    certificates: Certificates
    peer: str

    @classmethod
    def of(cls, directory: str | Path | None, peer: str) -> Party | None:
        """Return who we are by the certificates of a directory; None without one: then nothing is encrypted."""
        return cls(Certificates(Path(directory)), peer) if directory else None

    def connect(self, peer: socket.socket) -> ssl.SSLSocket:
        """Return the connection that we have made, encrypted."""
        with _in_words(self.peer):
            return self.certificates.context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(peer, server_hostname=self.peer)

    def accept(self, peer: socket.socket) -> ssl.SSLSocket:
        """Return the connection of a caller, encrypted."""
        with _in_words(self.peer):
            context = self.certificates.context(ssl.PROTOCOL_TLS_SERVER)
            context.num_tickets = 0
            encrypted = context.wrap_socket(peer, server_side=True)
        if self.peer not in _names(encrypted):
            encrypted.close()
            raise ChannelFailed(f"Who called is not {self.peer}: the certificate bears another name.", DOCTOR)
        return encrypted


def for_redis(directory: Path | None) -> dict[str, str]:
    """Return redis-py's options for TLS: with our certificates if we have any, and the system's authorities if not."""
    required = {"ssl_cert_reqs": "required"}
    if directory is None:
        return required
    ours = Certificates(directory)
    return required | {"ssl_ca_certs": str(ours.authority), "ssl_certfile": str(ours.host)}


def until(peer: socket.socket) -> float:
    """Return when the certificate of a connection's other end ends, in seconds since 1970."""
    told = peer.getpeercert() if isinstance(peer, ssl.SSLSocket) else None
    return float(ssl.cert_time_to_seconds(str((told or {})["notAfter"])))


def why(error: OSError) -> str:
    """Return what TLS or the network says, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error) or "it ended"


def _names(peer: ssl.SSLSocket) -> set[str]:
    """Return the names that a peer's certificate bears; it was checked already who says so."""
    told = peer.getpeercert() or {}
    return {str(name[1]) for name in told.get("subjectAltName", ()) if name[0] == "DNS"}


@contextlib.contextmanager
def _in_words(peer: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ChannelFailed(f"No TLS with {peer}: {why(error)}.", DOCTOR) from None
