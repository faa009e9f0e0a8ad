"""TLS between hosts: both sides present a certificate of the cluster's authority.

The directory of the setting ``certificates`` holds, as PEM, what ``sojourn pki`` creates:

``ca.crt``    the authority's certificate; several in one file while one authority replaces another
``host.pem``  this host's private key and its certificate, which names the host; 0600, and in one
              file, so that both are renewed in one instant

They are read for every connection, so a renewal takes effect at once. TLS 1.3 only, without
tickets, which would resume a session whose certificate has expired since (RFC 8446).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import ChannelFailed

DOCTOR = "Run `sojourn doctor` on both hosts: it checks their certificates."


@dataclass(frozen=True)
class Certificates:
    """The certificate and key of this host, and the authority that it trusts."""

    directory: Path

    @property
    def authority(self) -> Path:
        """The file with the trusted authority."""
        return self.directory / "ca.crt"

    @property
    def host(self) -> Path:
        """The file with this host's private key and certificate."""
        return self.directory / "host.pem"

    def context(self, protocol: int) -> ssl.SSLContext:
        """Return the context for TLS with hosts of the cluster. Raises ChannelFailed, SSLError."""
        for path in (self.authority, self.host):
            if not path.is_file():
                raise ChannelFailed(f"There is no {path} on this host.", DOCTOR)
        # Not ``create_default_context``, which would trust the system's authorities too.
        context = ssl.SSLContext(protocol)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.host)
        return context


@dataclass(frozen=True)
class TlsIdentity:
    """One side of a connection: our certificates, and the host that must be at the other end.

    Both functions raise ChannelFailed, also if our own certificates are missing or malformed.
    """

    certificates: Certificates
    peer: str

    @classmethod
    def of(cls, directory: str | Path | None, peer: str) -> TlsIdentity | None:
        """Return the identity from a directory; None without one: then nothing is encrypted."""
        return cls(Certificates(Path(directory)), peer) if directory else None

    def connect(self, peer: socket.socket) -> ssl.SSLSocket:
        """Return a connection to the peer, encrypted."""
        with _failures_of(self.peer):
            # This protocol checks that the certificate has the name ``server_hostname``.
            return self.certificates.context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(
                peer, server_hostname=self.peer
            )

    def accept(self, peer: socket.socket) -> ssl.SSLSocket:
        """Return a connection from the peer, encrypted."""
        with _failures_of(self.peer):
            context = self.certificates.context(ssl.PROTOCOL_TLS_SERVER)
            # A ticket comes after the handshake and makes the socket readable although there is
            # nothing to read, which would mislead the relay's select(2).
            context.num_tickets = 0
            encrypted = context.wrap_socket(peer, server_side=True)
        # Python checks a server's name only, not that of a client.
        if self.peer not in _names(encrypted):
            encrypted.close()
            raise ChannelFailed(
                f"The caller is not {self.peer}: its certificate has another name.", DOCTOR
            )
        return encrypted


def for_redis(directory: Path | None) -> dict[str, str]:
    """Return redis-py's options for TLS; without certificates, with the system's authorities."""
    required = {"ssl_cert_reqs": "required"}
    if directory is None:
        return required
    ours = Certificates(directory)
    # No ``ssl_keyfile``: the key is in the same file as the certificate.
    return required | {"ssl_ca_certs": str(ours.authority), "ssl_certfile": str(ours.host)}


def until(peer: socket.socket) -> float:
    """Return when the certificate of a connection's peer expires, in seconds since 1970."""
    certificate = peer.getpeercert() if isinstance(peer, ssl.SSLSocket) else None
    return float(ssl.cert_time_to_seconds(str((certificate or {})["notAfter"])))


def why(error: OSError) -> str:
    """Return the reason that TLS or the network gives, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    return error.strerror or str(error) or "the connection ended"


def _names(peer: ssl.SSLSocket) -> set[str]:
    """Return the names in a peer's certificate, whose issuer the handshake has checked."""
    names = (peer.getpeercert() or {}).get("subjectAltName", ())
    return {str(name[1]) for name in names if name[0] == "DNS"}


@contextlib.contextmanager
def _failures_of(peer: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ChannelFailed(f"TLS with {peer} failed: {why(error)}.", DOCTOR) from None
