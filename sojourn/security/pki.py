"""The cluster's own authority, which issues the certificates of hosts, Redis and command lines.

It needs one directory, on a machine that is not a host of the cluster, and no service. Its files:

``ca.key``            the authority's private key, 0600; whoever has it can pose as any host
``ca.crt``            its certificate, which is public
``NAME/ca.crt``       the same, and
``NAME/host.pem``     private key and certificate of NAME (``sojourn.security.tls``), 0600: what is
                      copied to that host

Keys are of the curve P-256; certificates serve both ends of a connection (RFC 5280). No certificate
is ever revoked: to exclude a host, replace the authority (docs/how-to/rotate-certificates.md).
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
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sojourn.errors import UsageError
from sojourn.model import check_host_name

#: How much clocks may differ before a new certificate is not yet valid on another host.
BACKDATED = timedelta(hours=1)

NO_KEY_USAGE = dict.fromkeys(
    (
        *(
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
        ),
        *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    ),
    False,
)


@dataclass(frozen=True)
class Authority:
    """The authority that issues and vouches for certificates. Made by ``create`` or ``load``."""

    directory: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, directory: Path, days: int) -> Authority:
        """Create an authority. Raises UsageError if one exists: its hosts would lose all trust."""
        if (directory / "ca.key").exists() or (directory / "ca.crt").exists():
            raise UsageError(
                f"{directory} already contains an authority, which was left unchanged.",
                "Create the new one in another directory.",
            )
        key = ec.generate_private_key(ec.SECP256R1())
        # While one authority replaces another, two of the same name would be confused.
        name = _name(f"Sojourn authority {secrets.token_hex(4)}")
        built = _builder(name, name, key, days)
        # With a path length of 0 no certificate below it can be that of a further authority.
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        built = built.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        made = cls(directory, key, built.sign(key, hashes.SHA256()))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(directory / "ca.key", _private(key), 0o600)
        _write(directory / "ca.crt", _pem(made.certificate), 0o644)
        return made

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Return an existing authority. Raises UsageError if there is none, or it is unreadable."""
        try:
            key = load_pem_private_key((directory / "ca.key").read_bytes(), None)
            certificate = x509.load_pem_x509_certificate((directory / "ca.crt").read_bytes())
        except OSError as error:
            hint = "Create one with `sojourn pki init`, or name its directory with --dir."
            raise UsageError(
                f"There is no authority in {directory}: {error.strerror}.", hint
            ) from None
        except ValueError:
            key = None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise UsageError(f"The files in {directory} were not created by `sojourn pki init`.")
        return cls(directory, key, certificate)

    @property
    def until(self) -> datetime:
        """When it expires, and with it all certificates that it has issued."""
        return self.certificate.not_valid_after_utc

    def issue(self, name: str, addresses: Iterable[str], days: int) -> Path:
        """Create key and certificate of a host, and return the directory to copy to it.

        They replace earlier ones. ``addresses``, host names or IP addresses, are further names in
        the certificate. Raises UsageError if one of the names is malformed, or if the authority
        expires before the certificate would.
        """
        if datetime.now(UTC) + timedelta(days=days) > self.until:
            raise UsageError(
                f"The authority in {self.directory} expires on {self.until:%Y-%m-%d}, "
                f"in less than {days} days.",
                "Choose fewer --days, or create a new authority in another directory.",
            )
        check_host_name(name, "to be certified")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._certificate(
            name, [_other_name(address) for address in addresses], key, days
        )
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
        both_ends = x509.ExtendedKeyUsage(
            [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        )
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
    """Return when a file's first certificate expires, in seconds since 1970; 0 if unreadable."""
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
    """Return an address as a name of a certificate. Raises UsageError if it is malformed."""
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        pass
    if not address or not all(
        part.replace("-", "a").isalnum() and part.isascii() for part in address.split(".")
    ):
        raise UsageError(f"{address!r} is neither an IP address nor a host name.")
    return x509.DNSName(address)


def _usage(**yes: bool) -> x509.KeyUsage:
    return x509.KeyUsage(**NO_KEY_USAGE | yes)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file atomically; at no moment can anyone read it whom ``mode`` does not permit."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    # O_EXCL fails for a file or link that somebody has put there since the line above.
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as file:  # noqa: PTH123  (a descriptor)
        file.write(content)
        # The umask may have removed bits of the mode.
        os.fchmod(descriptor, mode)
    draft.replace(path)
