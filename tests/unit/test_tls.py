"""The page channel inside TLS, over real sockets: authentication, and what an eavesdropper sees."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.errors import ChannelFailed
from sojourn.security.pki import Authority
from sojourn.security.tls import Certificates, TlsIdentity, for_redis, until
from sojourn.transfer import channel, greeting
from sojourn.transfer.channel import Listener
from tests.certificates import authority as new_authority
from tests.certificates import issue

SECRET = channel.secret_for("the cluster's key", "0123abcd")
HOST = "127.0.0.1"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Make the cluster's authority."""
    return new_authority(tmp_path / "pki")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    """Make an authority of another cluster."""
    return new_authority(tmp_path / "other")


@pytest.fixture
def alpha(authority: Authority) -> Certificates:
    """Issue the source's certificates."""
    return issue(authority, "alpha")


@pytest.fixture
def beta(authority: Authority) -> Certificates:
    """Issue the destination's certificates."""
    return issue(authority, "beta")


@contextlib.contextmanager
def _listening(tls_identity: TlsIdentity | None) -> Iterator[Listener]:
    with contextlib.closing(Listener(HOST, SECRET, tls_identity)) as server:
        yield server


def _arrives(server: Listener, tls_identity: TlsIdentity | None) -> socket.socket:
    """Connect as the source; return the destination's end when a message has arrived."""
    with channel.connect(HOST, server.port, SECRET, "pages", tls_identity) as source:
        destination = server.accept(time.monotonic() + 5).socket
        source.sendall(b"memory")
        assert destination.recv(6) == b"memory"
    return destination


def _tapped(port: int, heard: bytearray) -> int:
    """Return the port of a relay that forwards everything and keeps a copy."""
    tap = socket.create_server((HOST, 0))

    def carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                heard.extend(data)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def tapping() -> None:
        with tap, tap.accept()[0] as caller, socket.create_connection((HOST, port)) as called:
            back = threading.Thread(target=carry, args=(called, caller))
            back.start()
            carry(caller, called)
            back.join()

    threading.Thread(target=tapping, daemon=True).start()
    return int(tap.getsockname()[1])


@pytest.mark.parametrize("encrypted", [True, False])
def test_an_eavesdropper(alpha: Certificates, beta: Certificates, encrypted: bool) -> None:
    """It sees the memory without certificates, and nothing of it with them."""
    heard = bytearray()
    source, destination = (
        (TlsIdentity(alpha, "beta"), TlsIdentity(beta, "alpha")) if encrypted else (None, None)
    )
    with (
        _listening(destination) as server,
        channel.connect(HOST, _tapped(server.port, heard), SECRET, "pages", source) as sending,
        server.accept(time.monotonic() + 5).socket as receiving,
    ):
        sending.sendall(b"a password" * 100)
        assert receiving.recv(1000).startswith(b"a password")
        # The caller's greeting comes before TLS, the destination's answer does not.
        assert heard.count(greeting.MAGIC) == (1 if encrypted else 2)
        assert (b"a password" in heard) == (not encrypted)


def test_the_version(alpha: Certificates, beta: Certificates) -> None:
    """TLS 1.3, without tickets, which would resume a session without a certificate."""
    with (
        _listening(TlsIdentity(beta, "alpha")) as server,
        _arrives(server, TlsIdentity(alpha, "beta")) as destination,
    ):
        assert isinstance(destination, ssl.SSLSocket)
        assert destination.version() == "TLSv1.3"
        assert destination.context.num_tickets == 0
        assert destination.gettimeout() is None


def test_the_expiry_of_the_peer(alpha: Certificates, beta: Certificates) -> None:
    """It is that of the peer's certificate."""
    with (
        _listening(TlsIdentity(beta, "alpha")) as server,
        _arrives(server, TlsIdentity(alpha, "beta")) as destination,
    ):
        assert abs(until(destination) - time.time() - 86_400) < 60


def test_a_source_of_another_cluster(
    stranger: Authority, alpha: Certificates, beta: Certificates
) -> None:
    """It is rejected though it trusts us, and the real source is accepted after it."""
    false = issue(stranger, "alpha")
    shutil.copy(beta.authority, false.authority)
    with _listening(TlsIdentity(beta, "alpha")) as server:
        with pytest.raises(ChannelFailed, match="unknown ca"):
            channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(false, "beta"))
        _arrives(server, TlsIdentity(alpha, "beta")).close()


def test_a_destination_of_another_cluster(stranger: Authority, alpha: Certificates) -> None:
    """It is not trusted, though it trusts us."""
    false = issue(stranger, "beta")
    shutil.copy(alpha.authority, false.authority)
    with (
        _listening(TlsIdentity(false, "alpha")) as server,
        pytest.raises(
            ChannelFailed, match="TLS with beta failed: unable to get local issuer certificate"
        ),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(alpha, "beta"))


def test_a_source_that_is_another_host(
    authority: Authority, alpha: Certificates, beta: Certificates
) -> None:
    """A host of the cluster that is not the expected one is rejected."""
    gamma = issue(authority, "gamma")
    with _listening(TlsIdentity(beta, "alpha")) as server:
        with pytest.raises(ChannelFailed):
            channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(gamma, "beta"))
        _arrives(server, TlsIdentity(alpha, "beta")).close()


def test_a_destination_that_is_another_host(authority: Authority, alpha: Certificates) -> None:
    """It is rejected by the source; the sentence names the expected host."""
    gamma = issue(authority, "gamma")
    with (
        _listening(TlsIdentity(gamma, "alpha")) as server,
        pytest.raises(ChannelFailed, match="TLS with beta failed: Hostname mismatch"),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(alpha, "beta"))


def test_the_secret_is_needed_too(alpha: Certificates, beta: Certificates) -> None:
    """The right hosts of another migration are rejected."""
    other = channel.secret_for("the cluster's key", "0123abce")
    with (
        _listening(TlsIdentity(beta, "alpha")) as server,
        pytest.raises(ChannelFailed),
    ):
        channel.connect(HOST, server.port, other, "pages", TlsIdentity(alpha, "beta"))


def test_a_renewed_certificate_counts_at_once(authority: Authority, alpha: Certificates) -> None:
    """An expired one is rejected; its successor works for a destination that already listens."""
    issue(authority, "beta", days=0)
    with _listening(TlsIdentity(Certificates(authority.directory / "beta"), "alpha")) as server:
        with pytest.raises(ChannelFailed, match="TLS with beta failed: certificate has expired"):
            channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(alpha, "beta"))
        issue(authority, "beta")
        _arrives(server, TlsIdentity(alpha, "beta")).close()


def test_two_authorities_while_one_replaces_the_other(
    authority: Authority, stranger: Authority, alpha: Certificates
) -> None:
    """Hosts that trust both can connect, whichever issued their certificates."""
    both = (authority.directory / "ca.crt").read_text() + (
        stranger.directory / "ca.crt"
    ).read_text()
    beta = issue(stranger, "beta")
    for certificates in (alpha, beta):
        certificates.authority.write_text(both)
    with _listening(TlsIdentity(beta, "alpha")) as server:
        _arrives(server, TlsIdentity(alpha, "beta")).close()


def test_a_source_without_certificates(
    alpha: Certificates, beta: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is rejected, and learns so within the time of a handshake."""
    monkeypatch.setattr(channel, "HANDSHAKE_S", 0.5)
    with _listening(TlsIdentity(beta, "alpha")) as server:
        with pytest.raises(ChannelFailed):
            channel.connect(HOST, server.port, SECRET, "pages")
        _arrives(server, TlsIdentity(alpha, "beta")).close()


def test_a_destination_without_certificates(alpha: Certificates) -> None:
    """The source does not connect to it."""
    with (
        _listening(None) as server,
        pytest.raises(ChannelFailed, match="TLS with beta failed: wrong version number"),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(alpha, "beta"))


@pytest.mark.parametrize("file", ["ca.crt", "host.pem"])
def test_a_file_that_is_missing(alpha: Certificates, beta: Certificates, file: str) -> None:
    """The sentence names the file."""
    (alpha.directory / file).unlink()
    with (
        _listening(TlsIdentity(beta, "alpha")) as server,
        pytest.raises(
            ChannelFailed, match=re.escape(f"There is no {alpha.directory / file} on this host.")
        ),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(alpha, "beta"))


@pytest.mark.parametrize("file", ["ca.crt", "host.pem"])
def test_a_malformed_file(alpha: Certificates, beta: Certificates, file: str) -> None:
    """The reason that TLS gives is reported in one sentence."""
    (alpha.directory / file).write_text("hello")
    with (
        _listening(TlsIdentity(beta, "alpha")) as server,
        pytest.raises(ChannelFailed, match="TLS with beta failed: "),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", TlsIdentity(alpha, "beta"))


def test_images_inside_tls(tmp_path: Path, alpha: Certificates, beta: Certificates) -> None:
    """Files of more than one piece arrive unchanged."""
    sent, place = tmp_path / "pages-1.img", tmp_path / "arrived"
    sent.write_bytes(bytes(range(256)) * 5000)
    place.mkdir()
    arrived: list[channel.Manifest] = []

    def receive(server: Listener) -> None:
        with server.accept(time.monotonic() + 5).socket as destination:
            arrived.append(channel.receive_files(destination, place, 5))
            channel.confirm(destination)

    with _listening(TlsIdentity(beta, "alpha")) as server:
        receiving = threading.Thread(target=receive, args=(server,))
        receiving.start()
        with channel.connect(
            HOST, server.port, SECRET, "images", TlsIdentity(alpha, "beta")
        ) as source:
            manifest = channel.send_files(source, [sent], 5)
        receiving.join()
    assert arrived == [manifest] == [{"pages-1.img": 1_280_000}]
    assert (place / "pages-1.img").read_bytes() == sent.read_bytes()


def test_the_options_for_redis(alpha: Certificates) -> None:
    """They are our certificates, or else the system's authorities; never without a check."""
    assert for_redis(None) == {"ssl_cert_reqs": "required"}
    assert for_redis(alpha.directory) == {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": str(alpha.authority),
        "ssl_certfile": str(alpha.host),
    }
