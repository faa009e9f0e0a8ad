"""The cluster's own authority: makes the certificates by which hosts, Redis and command lines know each other.

It needs one directory, on a machine that is no host of the cluster, and nothing that runs. Files, below it:

``ca.key``            the authority's private key, 0600; whoever has it can pass for any host
``ca.crt``            its certificate, which everybody may have
``NAME/ca.crt``       the same, and
``NAME/host.pem``     private key and certificate of NAME (``sojourn.tls``), 0600: what goes to that host

Keys are of the curve P-256; certificates serve both ends of a connection (RFC 5280). Nothing is ever revoked: whoever
must be kept out is kept out by a new authority (docs/how-to/rotate-certificates.md).
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sojourn.errors import UsageError
from sojourn.model import check_host_name

#: Clocks may differ by so much before a new certificate is one of the future.
BACKDATED = timedelta(hours=1)

NO_KEY_USAGE = dict.fromkeys(
    (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)


@dataclass(frozen=True)
class Authority:
    """Who says whose certificate is whose. Made by ``create`` or ``load``."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, directory: Path, days: int) -> Authority:
        """Make a new one. Raises UsageError where there is one already: its hosts would no longer be believed."""
        if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
            raise UsageError(
                f"There is an authority in {directory} already; it was left as it is.",
                "Make a new one in another directory.",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        # Two of one name would be mistaken for each other while one takes the place of the other.
        name = _name(f"Sojourn authority {secrets.token_hex(4)}")
        built = _builder(name, name, key, days)
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        built = built.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        made = cls(directory, key, built.sign(key, hashes.SHA256()))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(directory / "ca.key", _private(key), 0o600)
        _write(directory / "ca.crt", _pem(made.certificate), 0o644)
        return made

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Return the one that is there. Raises UsageError if there is none, or none that can be read."""
        try:
            key = load_pem_private_key((directory / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
        except OSError as error:
            advice = "Make one with `sojourn pki init`, or name its directory with --dir."
            raise UsageError(f"There is no authority in {directory}: {error.strerror}.", advice) from None
        except ValueError:
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError(f"What is in {directory} was not made by `sojourn pki init`.")
        return cls(directory, key, certificate)

    @property
    def until(self) -> datetime:
        """When it ends, and with it all that it has issued."""
        return self.certificate.not_valid_after_utc

    def issue(self, name: str, addresses: Iterable[str], days: int) -> Path:
        """Make key and certificate of a host, and return the directory with what goes there.

        Again takes the place of what was made before. ``addresses``, names or IP, are other names that it bears.
        Raises UsageError if that can not be a name, or if the authority ends before the certificate would.
        """
        if datetime.now(UTC) + timedelta(days=days) > self.until:
            raise UsageError(
                f"The authority in {self.directory} ends on {self.until:%Y-%m-%d}, before {days} days are over.",
                "Ask for fewer --days, or make a new authority in another directory.",
            )
        check_host_name(name, "to be certified")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(name, [_other_name(each) for each in addresses], key, days)
        place = self.directory / name
        place.mkdir(mode=0o700, exist_ok=True)
        _write(place / "ca.crt", _pem(self.certificate), 0o644)
        _write(place / "host.pem", _private(key) + _pem(certificate), 0o600)
        return place

    def _certificate(
        self, name: str, others: list[x509.GeneralName], key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.Certificate:
        built = _builder(_name(name), self.certificate.subject, key, days)
        names = x509.SubjectAlternativeName([x509.DNSName(name), *others])
        both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(digital_signature=True), True),
            (both_ends, False),
            (names, False),
            (issuer, False),
        ):
            built = built.add_extension(extension, critical=critical)
        return built.sign(self.key, hashes.SHA256())


def ends(file: Path) -> float:
    """Return when the first certificate of a file ends, in seconds since 1970; 0 where there is none to be read."""
    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc.timestamp()
    except (OSError, ValueError):
        return 0.0


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - BACKDATED,
        not_valid_after=now + timedelta(days=days),
    ).add_extension(identifier, critical=False)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _other_name(address: str) -> x509.GeneralName:
    """Return an address as a certificate bears it. Raises UsageError for one that can not be one."""
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        pass
    if not address or not all(part.replace("-", "a").isalnum() and part.isascii() for part in address.split(".")):
        raise UsageError(f"{address!r} is neither an IP address nor a host's name.")
    return x509.DNSName(address)


def _usage(**yes: bool) -> x509.KeyUsage:
    return x509.KeyUsage(**NO_KEY_USAGE | yes)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file as a whole or not at all, never readable for more people than it shall be."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor)
        file.write(content)
        os.fchmod(descriptor, mode)
    draft.replace(path)
