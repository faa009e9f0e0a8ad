"""The page channel inside TLS, over real sockets: who is let in, who is not, and what a listener hears."""

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

from sojourn import channel
from sojourn.channel import Listener
from sojourn.errors import ChannelFailed
from sojourn.pki import Authority
from sojourn.tls import Certificates, Party, for_redis, until
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
    """Issue the source's."""
    return issue(authority, "alpha")


@pytest.fixture
def beta(authority: Authority) -> Certificates:
    """Issue the destination's."""
    return issue(authority, "beta")


@contextlib.contextmanager
def _listening(party: Party | None) -> Iterator[Listener]:
    with contextlib.closing(Listener(HOST, SECRET, party)) as server:
        yield server


def _arrives(server: Listener, party: Party | None) -> socket.socket:
    """Connect as the source, and return the destination's end when a word has crossed."""
    with channel.connect(HOST, server.port, SECRET, "pages", party) as source:
        destination = server.accept(time.monotonic() + 5).socket
        source.sendall(b"memory")
        assert destination.recv(6) == b"memory"
    return destination


def _tapped(port: int, heard: bytearray) -> int:
    """Return the port of one who passes everything on and keeps a copy."""
    tap = socket.create_server((HOST, 0))

    def carry(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while words := one.recv(65536):
                heard.extend(words)
                other.sendall(words)
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
def test_who_listens_in(alpha: Certificates, beta: Certificates, encrypted: bool) -> None:
    """Hears the memory without certificates, and nothing of it with them."""
    heard = bytearray()
    source, destination = (Party(alpha, "beta"), Party(beta, "alpha")) if encrypted else (None, None)
    with (
        _listening(destination) as server,
        channel.connect(HOST, _tapped(server.port, heard), SECRET, "pages", source) as sending,
        server.accept(time.monotonic() + 5).socket as receiving,
    ):
        sending.sendall(b"a password" * 100)
        assert receiving.recv(1000).startswith(b"a password")
        assert (b"a password" in heard, channel.MAGIC in heard) == (not encrypted, not encrypted)


def test_the_version(alpha: Certificates, beta: Certificates) -> None:
    """Nothing older than TLS 1.3, and without tickets, by which one could come back without a certificate."""
    with _listening(Party(beta, "alpha")) as server, _arrives(server, Party(alpha, "beta")) as destination:
        assert isinstance(destination, ssl.SSLSocket)
        assert destination.version() == "TLSv1.3"
        assert destination.context.num_tickets == 0
        assert destination.gettimeout() is None


def test_when_it_ends(alpha: Certificates, beta: Certificates) -> None:
    """The other's certificate says it."""
    with _listening(Party(beta, "alpha")) as server, _arrives(server, Party(alpha, "beta")) as destination:
        assert abs(until(destination) - time.time() - 86_400) < 60


def test_a_source_of_another_cluster(stranger: Authority, alpha: Certificates, beta: Certificates) -> None:
    """It is turned away though it believes us, and the real one is let in after it."""
    false = issue(stranger, "alpha")
    shutil.copy(beta.authority, false.authority)
    with _listening(Party(beta, "alpha")) as server:
        with pytest.raises(ChannelFailed, match="unknown ca"):
            channel.connect(HOST, server.port, SECRET, "pages", Party(false, "beta"))
        _arrives(server, Party(alpha, "beta")).close()


def test_a_destination_of_another_cluster(stranger: Authority, alpha: Certificates) -> None:
    """It is not believed, though it believes us."""
    false = issue(stranger, "beta")
    shutil.copy(alpha.authority, false.authority)
    with (
        _listening(Party(false, "alpha")) as server,
        pytest.raises(ChannelFailed, match="No TLS with beta: unable to get local issuer certificate"),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", Party(alpha, "beta"))


def test_a_source_that_is_another_host(authority: Authority, alpha: Certificates, beta: Certificates) -> None:
    """A host of the cluster is not any host of the cluster."""
    gamma = issue(authority, "gamma")
    with _listening(Party(beta, "alpha")) as server:
        with pytest.raises(ChannelFailed):
            channel.connect(HOST, server.port, SECRET, "pages", Party(gamma, "beta"))
        _arrives(server, Party(alpha, "beta")).close()


def test_a_destination_that_is_another_host(authority: Authority, alpha: Certificates) -> None:
    """The same the other way round; the sentence says who was expected."""
    gamma = issue(authority, "gamma")
    with (
        _listening(Party(gamma, "alpha")) as server,
        pytest.raises(ChannelFailed, match="No TLS with beta: Hostname mismatch"),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", Party(alpha, "beta"))


def test_the_secret_is_asked_for_too(alpha: Certificates, beta: Certificates) -> None:
    """The two hosts, but another migration."""
    other = channel.secret_for("the cluster's key", "0123abce")
    with (
        _listening(Party(beta, "alpha")) as server,
        pytest.raises(ChannelFailed),
    ):
        channel.connect(HOST, server.port, other, "pages", Party(alpha, "beta"))


def test_what_is_renewed_counts_at_once(authority: Authority, alpha: Certificates) -> None:
    """One that has ended opens nothing; the next one does, for a destination that listens already."""
    issue(authority, "beta", days=0)
    with _listening(Party(Certificates(authority.directory / "beta"), "alpha")) as server:
        with pytest.raises(ChannelFailed, match="No TLS with beta: certificate has expired"):
            channel.connect(HOST, server.port, SECRET, "pages", Party(alpha, "beta"))
        issue(authority, "beta")
        _arrives(server, Party(alpha, "beta")).close()


def test_two_authorities_while_one_takes_the_place_of_the_other(
    authority: Authority, stranger: Authority, alpha: Certificates
) -> None:
    """Hosts that believe both understand each other, whoever has issued their certificates."""
    both = (authority.directory / "ca.crt").read_text() + (stranger.directory / "ca.crt").read_text()
    beta = issue(stranger, "beta")
    for each in (alpha, beta):
        each.authority.write_text(both)
    with _listening(Party(beta, "alpha")) as server:
        _arrives(server, Party(alpha, "beta")).close()


def test_a_source_without_certificates(
    alpha: Certificates, beta: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is turned away, and learns it in the time of a handshake."""
    monkeypatch.setattr(channel, "HANDSHAKE_S", 0.5)
    with _listening(Party(beta, "alpha")) as server:
        with pytest.raises(ChannelFailed):
            channel.connect(HOST, server.port, SECRET, "pages")
        _arrives(server, Party(alpha, "beta")).close()


def test_a_destination_without_certificates(alpha: Certificates) -> None:
    """Is not talked to."""
    with _listening(None) as server, pytest.raises(ChannelFailed, match="No TLS with beta: wrong version number"):
        channel.connect(HOST, server.port, SECRET, "pages", Party(alpha, "beta"))


@pytest.mark.parametrize("file", ["ca.crt", "host.pem"])
def test_a_file_that_is_not_there(alpha: Certificates, beta: Certificates, file: str) -> None:
    """The sentence names it."""
    (alpha.directory / file).unlink()
    with (
        _listening(Party(beta, "alpha")) as server,
        pytest.raises(ChannelFailed, match=re.escape(f"There is no {alpha.directory / file} on this host.")),
    ):
        channel.connect(HOST, server.port, SECRET, "pages", Party(alpha, "beta"))


@pytest.mark.parametrize("file", ["ca.crt", "host.pem"])
def test_a_file_that_is_none(alpha: Certificates, beta: Certificates, file: str) -> None:
    """What TLS says of it comes as one sentence."""
    (alpha.directory / file).write_text("hello")
    with _listening(Party(beta, "alpha")) as server, pytest.raises(ChannelFailed, match="No TLS with beta: "):
        channel.connect(HOST, server.port, SECRET, "pages", Party(alpha, "beta"))


def test_images_inside_tls(tmp_path: Path, alpha: Certificates, beta: Certificates) -> None:
    """Files of more than one piece arrive as they are."""
    sent, place = tmp_path / "pages-1.img", tmp_path / "arrived"
    sent.write_bytes(bytes(range(256)) * 5000)
    place.mkdir()
    arrived: list[channel.Manifest] = []

    def receive(server: Listener) -> None:
        with server.accept(time.monotonic() + 5).socket as destination:
            arrived.append(channel.receive_files(destination, place, 5))
            channel.confirm(destination)

    with _listening(Party(beta, "alpha")) as server:
        receiving = threading.Thread(target=receive, args=(server,))
        receiving.start()
        with channel.connect(HOST, server.port, SECRET, "images", Party(alpha, "beta")) as source:
            manifest = channel.send_files(source, [sent], 5)
        receiving.join()
    assert arrived == [manifest] == [{"pages-1.img": 1_280_000}]
    assert (place / "pages-1.img").read_bytes() == sent.read_bytes()


def test_what_redis_is_told(alpha: Certificates) -> None:
    """With certificates ours, else the authorities of the system; never without a check."""
    assert for_redis(None) == {"ssl_cert_reqs": "required"}
    assert for_redis(alpha.directory) == {
        "ssl_cert_reqs": "required",
        "ssl_ca_certs": str(alpha.authority),
        "ssl_certfile": str(alpha.host),
    }
