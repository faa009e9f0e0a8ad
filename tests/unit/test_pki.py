"""The authority: what it creates, for whom, and what it does not touch."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest
from cryptography import x509

from sojourn.errors import UsageError
from sojourn.security.pki import Authority, ends


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Create an authority that is valid for ten years."""
    return Authority.create(tmp_path / "pki", 3650)


def _certificate(place: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate((place / "host.pem").read_bytes())


def _modes(directory: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


def test_secrets_are_readable_for_their_owner_only(authority: Authority) -> None:
    """Modes do not depend on the umask, and no temporary file is left."""
    place = authority.issue("alpha", [], 365)
    assert _modes(authority.directory) == {"ca.key": 0o600, "ca.crt": 0o644, "alpha": 0o700}
    assert _modes(place) == {"ca.crt": 0o644, "host.pem": 0o600}


def test_an_authority_is_not_replaced(authority: Authority) -> None:
    """Otherwise no certificate of the cluster would be trusted any more."""
    before = (authority.directory / "ca.key").read_bytes()
    with pytest.raises(UsageError, match="already"):
        Authority.create(authority.directory, 3650)
    assert (authority.directory / "ca.key").read_bytes() == before


def test_the_names_in_a_certificate(authority: Authority) -> None:
    """They are the host's own, and the further names and addresses that were requested."""
    place = Authority.load(authority.directory).issue(
        "hub", ["10.0.0.5", "fd00::5", "redis.example.net"], 365
    )
    names = (
        _certificate(place).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    )
    assert names.get_values_for_type(x509.DNSName) == ["hub", "redis.example.net"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == [
        "10.0.0.5",
        "fd00::5",
    ]


def test_a_certificate_is_issued_again(authority: Authority) -> None:
    """The new one has another key, and replaces the old one."""
    before = (authority.issue("alpha", [], 365) / "host.pem").read_bytes()
    after = (authority.issue("alpha", [], 365) / "host.pem").read_bytes()
    assert before != after


@pytest.mark.parametrize("name", ["", "Alpha", "../beta", "alpha.example.net", "a" * 64])
def test_a_malformed_name(authority: Authority, name: str) -> None:
    """It is rejected, and nothing is written for it."""
    with pytest.raises(UsageError, match="is not a name of a host"):
        authority.issue(name, [], 365)
    assert sorted(path.name for path in authority.directory.iterdir()) == ["ca.crt", "ca.key"]


@pytest.mark.parametrize("address", ["", "10.0.0.", "two words", "a/b"])
def test_a_malformed_address(authority: Authority, address: str) -> None:
    """It is rejected, and nothing is written for it."""
    with pytest.raises(UsageError, match="neither an IP address nor"):
        authority.issue("alpha", [address], 365)
    assert not (authority.directory / "alpha").exists()


def test_no_certificate_outlasts_its_authority(tmp_path: Path) -> None:
    """It would no longer be trusted before the date on which it expires."""
    brief = Authority.create(tmp_path / "brief", 10)
    brief.issue("alpha", [], 9)
    with pytest.raises(UsageError, match="expires on"):
        brief.issue("alpha", [], 11)


def test_a_directory_without_an_authority(tmp_path: Path) -> None:
    """The sentence names the directory, and the hint the command."""
    with pytest.raises(UsageError, match=str(tmp_path)) as caught:
        Authority.load(tmp_path)
    assert "sojourn pki init" in caught.value.hint


@pytest.mark.parametrize("file", ["ca.key", "ca.crt"])
def test_a_malformed_authority(authority: Authority, file: str) -> None:
    """Files from elsewhere are a usage error, not a defect."""
    (authority.directory / file).write_text("hello")
    with pytest.raises(UsageError, match="were not created by"):
        Authority.load(authority.directory)


def test_the_expiry_of_a_file(authority: Authority, tmp_path: Path) -> None:
    """Of a host's file the certificate counts; an unreadable file expired long ago."""
    place = authority.issue("alpha", [], 365)
    assert abs(ends(place / "host.pem") - time.time() - 365 * 86_400) < 60
    (tmp_path / "none.pem").write_text("hello")
    assert ends(tmp_path / "none.pem") == ends(tmp_path / "nothing.pem") == 0
