"""The files that make a root a particular host: name, settings, services under runit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lab import authority
from lab.plan import FLOWER_PORT, FLOWER_USER, HOSTS, HUB, OUTSIDE, Plan, Setting, write_privately

#: runsv runs this; output goes to a file of the host's own, which a crash does not take away.
RUN = "#!/bin/sh\nexec >>/var/log/sojourn/{name}.log 2>&1 </dev/null\nexec {command}\n"

FLOWER = "/usr/local/bin/sojourn flower"
WORKER = "/usr/local/bin/sojourn worker"

#: Where a host of an encrypted lab has its certificates.
PKI = "etc/sojourn/pki"

#: The shell opens the configuration, so that Redis, which runs as a user of its own, need not have
#: the permission.
REDIS = "chpst -u redis:redis redis-server - </etc/redis/lab.conf"
#: With certificates, which only root may read where they lie.
REDIS_TLS = (
    f"sh -c 'install -o redis -m 0400 /{PKI}/ca.crt /{PKI}/host.pem /etc/redis/; exec {REDIS}'"
)
REDIS_CONFIG = """\
bind {address} 127.0.0.1
requirepass {password}
dir /var/lib/redis
appendonly yes
appendfsync everysec
save ""
"""
REDIS_TLS_CONFIG = """\
port 0
tls-port 6379
tls-ca-cert-file /etc/redis/ca.crt
tls-cert-file /etc/redis/host.pem
tls-key-file /etc/redis/host.pem
"""


def furnish(root: Path, plan: Plan, host: str) -> None:
    """Write what distinguishes this host from the others into its root; safe to repeat."""
    (root / "etc/hostname").write_text(f"{host}\n")
    (root / "etc/hosts").write_text(_hosts(plan))
    (root / "var/log/sojourn").mkdir(parents=True, exist_ok=True)
    config = root / "etc/sojourn/sojourn.toml"
    config.parent.mkdir(mode=0o700, exist_ok=True)
    write_privately(config, settings(plan, host, plan.address(host)))
    if plan.encrypted:
        certify(plan, host, root / PKI)
    _forget_services(root)
    if host == HUB:
        write_privately(root / "etc/redis/lab.conf", _redis(plan))
        _service(root, "redis", REDIS_TLS if plan.encrypted else REDIS)
        _service(root, "flower", FLOWER)
    else:
        _service(root, "worker", WORKER)


def settings(plan: Plan, host: str, address: str) -> str:
    """Return a host's ``sojourn.toml``."""
    fields: dict[str, Setting] = {
        "host": host,
        "address": address,
        "redis_url": plan.redis_url,
        "key": plan.key,
        "shared_paths": "/shared",
        **_flower(plan, host),
        **_certificates(plan, host),
        **plan.settings,
    }
    # JSON writes strings, numbers and truth values as TOML does.
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())


def certify(plan: Plan, host: str, place: Path) -> None:
    """Copy a machine's certificates to where it looks for them."""
    place.mkdir(mode=0o700, exist_ok=True)
    for file in authority.issue(plan, host, plan.address(host)).iterdir():
        shutil.copy(file, place)  # with its mode


def names(host: str) -> tuple[str, ...]:
    """Return the services of a host."""
    return ("redis", "flower") if host == HUB else ("worker",)


def _hosts(plan: Plan) -> str:
    lines = [("127.0.0.1", "localhost"), (plan.outside_address, OUTSIDE)]
    # Also those that the lab may grow to: the file of a host that is running is not written again.
    lines += [(plan.address(machine), machine) for machine in (HUB, *HOSTS)]
    return "".join(f"{address} {name}\n" for address, name in lines)


def _flower(plan: Plan, host: str) -> dict[str, Setting]:
    """Return where Flower listens and its login: on the hub, and for one run on this machine."""
    auth = {"flower_auth": f"{FLOWER_USER}:{plan.flower_password}"} if plan.flower_password else {}
    if host == HUB and auth:
        return {"flower_address": plan.address(HUB), "flower_port": FLOWER_PORT, **auth}
    return {"state_dir": str(plan.state / OUTSIDE), **auth} if host == OUTSIDE else {}


def _certificates(plan: Plan, host: str) -> dict[str, Setting]:
    if not plan.encrypted:
        return {}
    return {"certificates": str(plan.authority / OUTSIDE) if host == OUTSIDE else f"/{PKI}"}


def _redis(plan: Plan) -> str:
    tls = REDIS_TLS_CONFIG if plan.encrypted else ""
    return REDIS_CONFIG.format(address=plan.address(HUB), password=plan.password) + tls


def _forget_services(root: Path) -> None:
    """Remove the last boot's services with their state; Debian has a symbolic link there."""
    directory = root / "etc/service"
    if directory.is_symlink():
        directory.unlink()
    elif directory.exists():
        shutil.rmtree(directory)


def _service(root: Path, name: str, command: str) -> None:
    script = root / "etc/service" / name / "run"
    script.parent.mkdir(parents=True)
    script.write_text(RUN.format(name=name, command=command))
    script.chmod(0o755)
