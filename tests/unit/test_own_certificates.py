"""Certificates that other authorities make, as docs/how-to/bring-your-own-certificates.md has them.

OpenSSL takes the part of step-ca, cert-manager and FreeIPA, with the names, usages, keys and chains
that these give. Then two hosts meet, and the commands of the page are run.
"""

from __future__ import annotations

import re
import shutil
import stat
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sojourn.doctor import Level, place
from sojourn.errors import ChannelFailed
from sojourn.security.tls import Certificates, TlsIdentity
from sojourn.settings import Settings, environment
from sojourn.system.run import Completed, run
from sojourn.transfer import channel
from sojourn.transfer.channel import Listener

PAGE = Path(__file__).parents[2] / "docs/how-to/bring-your-own-certificates.md"
SECRET = channel.secret_for("the cluster's key", "0123abcd")

EC = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
RSA = ("-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048")

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")


def _of_the_page(kind: str) -> str:
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return str(blocks[0])


def _cert_manager_usages() -> str:
    """Return the extended usages of the page's Certificate, as OpenSSL names them."""
    (asked,) = re.findall(r"^  usages: \[(.*)\]$", _of_the_page("yaml"), re.MULTILINE)
    names = {"server auth": "serverAuth", "client auth": "clientAuth"}
    return ",".join(names[usage] for usage in str(asked).split(", ") if usage in names)


@dataclass(frozen=True)
class Issuer:
    """What an authority puts into the certificates of hosts; ``{}`` is the host's name."""

    key: tuple[str, ...]
    names: str = "DNS:{}"
    usages: str = "serverAuth,clientAuth"
    intermediate: bool = False
    root_is_trusted: bool = True


STEP_CA = Issuer(EC, intermediate=True)
CERT_MANAGER = Issuer(EC, usages=_cert_manager_usages())
FREEIPA = Issuer(RSA, names="DNS:{0},DNS:{0}.example.org")


def _openssl(*words: str | Path) -> Completed:
    return run(["openssl", *words], deadline_s=60, env=environment())


def _signed(place: Path, name: str, key: tuple[str, ...], by: str, extensions: str) -> None:
    """Make ``name.key`` and ``name.crt``, signed by another of this directory or by itself."""
    _openssl("genpkey", *key, "-out", place / f"{name}.key")
    _openssl(
        *("req", "-new", "-key", place / f"{name}.key", "-subj", f"/CN=a {name}"),
        *("-out", place / f"{name}.csr"),
    )
    (place / f"{name}.ext").write_text(extensions)
    signer = (
        ("-signkey", place / f"{name}.key")
        if by == name
        else ("-CA", place / f"{by}.crt", "-CAkey", place / f"{by}.key", "-CAcreateserial")
    )
    _openssl(
        *("x509", "-req", "-in", place / f"{name}.csr", "-days", "60", *signer),
        *("-extfile", place / f"{name}.ext", "-out", place / f"{name}.crt"),
    )


AUTHORITY = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"


def _authority(place: Path, issuer: Issuer) -> None:
    place.mkdir(exist_ok=True)
    _signed(place, "root", issuer.key, "root", AUTHORITY)
    if issuer.intermediate:
        _signed(place, "intermediate", issuer.key, "root", AUTHORITY)


def _certificates(place: Path, issuer: Issuer, host: str) -> Certificates:
    """Return the directory of a host, filled as the page says."""
    by = "intermediate" if issuer.intermediate else "root"
    extensions = f"subjectAltName={issuer.names.format(host)}\nkeyUsage=critical,digitalSignature\n"
    _signed(place, host, issuer.key, by, f"{extensions}extendedKeyUsage={issuer.usages}\n")
    directory = place / f"of-{host}"
    directory.mkdir()
    parts = [f"{host}.key", f"{host}.crt", *([f"{by}.crt"] if issuer.intermediate else [])]
    (directory / "host.pem").write_text("".join((place / part).read_text() for part in parts))
    trusted = "root" if issuer.root_is_trusted else by
    (directory / "ca.crt").write_text((place / f"{trusted}.crt").read_text())
    return Certificates(directory)


def _meet(alpha: Certificates, beta: Certificates) -> None:
    """Send a message from alpha to beta, both of which prove their names. Raises ChannelFailed."""
    with closing(Listener("127.0.0.1", SECRET, TlsIdentity(beta, "alpha"))) as server:
        identity = TlsIdentity(alpha, "beta")
        with channel.connect("127.0.0.1", server.port, SECRET, "pages", identity) as source:
            destination = server.accept(time.monotonic() + 5).socket
            source.sendall(b"memory")
            assert destination.recv(6) == b"memory"


def _checked(ours: Certificates) -> Completed:
    """Run the commands of the page on alpha's files."""
    script = _of_the_page("sh").replace("/etc/sojourn/pki", str(ours.directory))
    return run(["sh", "-c", script], deadline_s=60, check=False, env=environment())


@pytest.mark.parametrize(
    "issuer", [STEP_CA, CERT_MANAGER, FREEIPA], ids=["step-ca", "cert-manager", "FreeIPA"]
)
def test_hosts_accept_what_others_issue(tmp_path: Path, issuer: Issuer) -> None:
    """Both ways, the doctor agrees, and the commands of the page find nothing wrong."""
    _authority(tmp_path, issuer)
    alpha, beta = (_certificates(tmp_path, issuer, host) for host in ("alpha", "beta"))
    checked = _checked(alpha)
    assert checked.stdout.count("host.pem: OK") == 2, checked.stderr
    assert stat.S_IMODE(alpha.host.stat().st_mode) == 0o600
    _meet(alpha, beta)
    settings = Settings.model_validate({"host": "alpha", "certificates": alpha.directory})
    assert place.certificates(settings).level is Level.OK


@pytest.mark.parametrize(
    "flaw",
    [
        {"names": "DNS:{0}.example.org"},
        {"usages": "serverAuth"},
        {"usages": "clientAuth"},
        {"intermediate": True, "root_is_trusted": False},
    ],
    ids=["long name only", "no client", "no server", "no root"],
)
def test_what_the_page_warns_of(tmp_path: Path, flaw: dict[str, object]) -> None:
    """Hosts with such certificates do not accept each other, and the commands show it before."""
    issuer = replace(CERT_MANAGER, **flaw)  # type: ignore[arg-type]
    _authority(tmp_path, issuer)
    alpha, beta = (_certificates(tmp_path, issuer, host) for host in ("alpha", "beta"))
    assert _checked(alpha).stdout.count("host.pem: OK") < 2
    with pytest.raises((ChannelFailed, OSError)):
        _meet(alpha, beta)
