"""Settings of one host: ``/etc/sojourn/sojourn.toml``, overridden by ``SOJOURN_*`` variables.

``SOJOURN_CONFIG`` names another file. Settings of several clusters can stand beside each other, for
``sojourn --cluster NAME``: in a user's own directory, or in one that all users of a machine share.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import socket
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from sojourn.environment import environment as environment  # noqa: PLC0414
from sojourn.environment import export
from sojourn.environment import variable as variable  # noqa: PLC0414
from sojourn.errors import UsageError
from sojourn.model import LONGEST_FREEZE_S, MAX_BANDWIDTH_MBIT, MAX_FREEZE_S, Json
from sojourn.notices.target import Target, secret_of, targets
from sojourn.security.tls import for_redis
from sojourn.text import quoted

DEFAULT_CONFIG = Path("/etc/sojourn/sojourn.toml")

#: Where the files of named clusters are for all users, and what such a name looks like.
SHARED_CLUSTERS = Path("/etc/sojourn/clusters")
CLUSTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

SECONDS_PER_DAY = 86_400

#: How many characters a cluster's key has at least.
SHORTEST_KEY = 16


class Settings(BaseModel):
    """All settings of a site; ``load`` reads them.

    A field is a key of the file and, in capitals with the prefix, a variable of the environment.
    """

    # ``forbid``: a misspelt key is an error, not a default that nobody notices.
    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(
        default_factory=lambda: socket.gethostname().split(".")[0],
        pattern=r"^[a-z0-9]([a-z0-9-]{0,62})$",
        description="This host's name, which is also the name of its queue.",
    )
    address: str = Field(
        default="127.0.0.1", description="The address on which other hosts reach this one."
    )
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", description="The Redis of the cluster."
    )
    key: SecretStr = Field(
        default=SecretStr(""),
        description="The cluster's key, the same on all hosts: signs messages and authenticates "
        "page channels.",
    )
    certificates: Path | None = Field(
        default=None,
        description="Directory with `ca.crt` and `host.pem`, created by `sojourn pki`: memory is "
        "then encrypted on the network, between hosts that have proved their names. Without it, "
        "memory can be read on its way.",
    )
    state_dir: Path = Field(
        default=Path("/var/lib/sojourn"),
        description="Directory of the journal; must survive a reboot.",
    )
    runtime_dir: Path = Field(
        default=Path("/run/sojourn"), description="Image directories, locks and logs of migrations."
    )
    criu: Path = Field(default=Path("/usr/sbin/criu"), description="The CRIU program.")
    concurrency: int = Field(
        default=4, ge=1, le=64, description="Steps that this host runs concurrently."
    )
    freeze_slots: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Trees from or to this host that may be frozen at once; others wait, running.",
    )
    copy_images_with: Literal["channel", "scp"] = Field(
        default="channel",
        description="How the small images travel; scp needs SSH trust between the hosts.",
    )
    auto_dedup: bool = Field(
        default=True,
        description="Free pages from the image directory as the restore reads them: faster, and "
        "half the memory; but a restore that failed half-way cannot be repeated there.",
    )
    lazy_restore: bool | Literal["before-commit"] = Field(
        default=True,
        description="Let the process run before all of its memory is in place, from this host's "
        "own image directory: the freeze no longer grows with the time that a restore needs for "
        "it. With `before-commit` all of it is in place before the process runs.",
    )
    shared_paths: str = Field(
        default="",
        pattern=r"^(/[^:]+(:/[^:]+)*)?$",
        description="Directories, separated by colons, of storage that all hosts see as the same: "
        "for what the kernel does not name as such, like virtiofs or a FUSE file system of a "
        "site's own. NFS, CephFS and other network file systems are recognised without it.",
    )
    leave_users: str | None = Field(
        default=None,
        description="Users, separated by spaces, whose processes may leave this host; patterns, "
        "such as `web*`, too. Without it, those of all users.",
    )
    leave_units: str | None = Field(
        default=None,
        description="systemd units, separated by spaces, whose processes may leave this host, such "
        "as `web-*.service`. Without it, those of all units and of none.",
    )
    come_from: str | None = Field(
        default=None,
        description="Hosts, separated by spaces, whose processes may come to this one. Without it, "
        "all.",
    )
    allowed_modes: str | None = Field(
        default=None,
        description="Modes, separated by spaces, in which processes may leave this host and come "
        "to it. Without it, all.",
    )
    images_bytes: int | None = Field(
        default=None,
        ge=4096,
        description="Size limit of a migration's image directory, instead of the tree's own size.",
    )
    max_freeze_s: float = Field(
        default=MAX_FREEZE_S,
        gt=0,
        le=LONGEST_FREEZE_S,
        description="A freeze that lasts longer is rolled back; a migration can set its own limit.",
    )
    bandwidth_mbit: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BANDWIDTH_MBIT,
        description="How many megabits per second each migration sends at most; without it, as "
        "many as the network carries. A migration can set its own limit.",
    )
    reconcile_s: float = Field(
        default=5,
        gt=0,
        le=3600,
        description="How often a worker looks for stalled migrations of its host.",
    )
    stall_s: float = Field(
        default=15,
        gt=0,
        le=3600,
        description="How long a frozen migration may wait for its next message before the worker "
        "continues it.",
    )
    patience_s: float = Field(
        default=600,
        gt=0,
        le=86400,
        description="The same for a migration before the freeze, while the process runs. A host "
        "that has answered within that time is not dead, unless `sojourn resolve` is forced.",
    )
    announce_s: float = Field(
        default=2, gt=0, le=3600, description="How often a worker announces its host."
    )
    cordoned: bool = Field(
        default=False,
        description="Cordon this host when its worker announces it for the very first time: "
        "nothing goes there until `sojourn uncordon`. Later starts change nothing.",
    )
    max_outgoing: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="Queued migrations from this host that may be in progress at once.",
    )
    max_incoming: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="Queued migrations to this host that may be in progress at once.",
    )
    max_migrations: int = Field(
        default=32,
        ge=1,
        le=10_000,
        description="Queued migrations that may be in progress at once in the whole cluster.",
    )
    lease_s: float = Field(
        default=30,
        ge=1,
        le=3600,
        description="How long the place of a queued migration in progress is reserved after its "
        "holder's last renewal.",
    )
    keep_days: int = Field(
        default=7,
        ge=1,
        description="How long a finished migration stays in the ledger, and its logs on its hosts.",
    )
    audit_days: int = Field(
        default=90,
        ge=1,
        description="How long a host keeps what it was asked, and by whom.",
    )
    metrics_address: str = Field(
        default="127.0.0.1", description="The address on which a worker serves its metrics."
    )
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="The port on which a worker serves its metrics; 0 disables them.",
    )
    otel_endpoint: str = Field(
        default="",
        description="Where traces are sent, by OTLP over HTTP; if empty, nowhere, unless "
        "OpenTelemetry's own variables name an endpoint.",
    )
    flower_address: str = Field(
        default="127.0.0.1", description="The address on which Flower listens."
    )
    flower_port: int = Field(
        default=5555, ge=1, le=65_535, description="The port on which Flower listens."
    )
    flower_auth: SecretStr = Field(
        default=SecretStr(""),
        description="Who may use Flower, as `user:password`; without it Flower listens on loopback "
        "only, and its pages have no buttons.",
    )
    on_end: str = Field(
        default="",
        description="Who is called when a migration has ended: executables by their absolute "
        "paths, and web addresses (`https://…`), separated by spaces.",
    )
    on_end_secret: SecretStr = Field(
        default=SecretStr(""),
        # Else it would not be missed where there is none.
        validate_default=True,
        description="The secret by which web addresses know who calls: 24 to 64 bytes in base64.",
    )
    on_end_timeout_s: float = Field(
        default=10,
        gt=0,
        le=300,
        description="How long one call may take before it counts as failed and is repeated.",
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="Log lines for people or for machines."
    )

    @field_validator("on_end")
    @classmethod
    def _check_targets(cls, text: str) -> str:
        targets(text)
        return text

    @field_validator("on_end_secret")
    @classmethod
    def _check_secret(cls, secret: SecretStr, others: ValidationInfo) -> SecretStr:
        """Refuse a secret that is none, or that is missing where a web address is called."""
        called = targets(others.data.get("on_end", ""))
        if secret.get_secret_value() or any(target.is_webhook for target in called):
            secret_of(secret.get_secret_value())
        return secret

    @property
    def end_targets(self) -> tuple[Target, ...]:
        """Whom this host calls when it has recorded the end of a migration."""
        return targets(self.on_end)

    @property
    def outbox(self) -> Path:
        """The file of what this host owes to them."""
        return self.state_dir / "notices.db"

    @property
    def audit(self) -> Path:
        """The directory in which this host notes what it was asked, and by whom."""
        return self.state_dir / "audit"

    @property
    def taken(self) -> Path:
        """The directory in which this host notes which messages it has begun."""
        return self.state_dir / "taken"

    @property
    def announced(self) -> Path:
        """The file that is there once this host has announced itself."""
        return self.state_dir / "announced"

    @property
    def limits(self) -> Json:
        """The limits of a migration that sets none of its own, as fields of a Plan."""
        return {"max_freeze_s": self.max_freeze_s, "bandwidth_mbit": self.bandwidth_mbit}

    @property
    def cluster(self) -> str:
        """Eight hexadecimal digits that identify the cluster's key without revealing it."""
        # It is announced in Redis and is part of a queue's name, so it must not lead back to the
        # key.
        return hmac.new(
            self.key.get_secret_value().encode(), b"cluster", hashlib.sha256
        ).hexdigest()[:8]

    @property
    def keep_s(self) -> int:
        """How long ended migrations and their logs are kept, in seconds."""
        return self.keep_days * SECONDS_PER_DAY

    @property
    def redis_tls(self) -> dict[str, str]:
        """Redis-py's options for TLS; empty if ``redis_url`` is not one of TLS."""
        return for_redis(self.certificates) if self.redis_url.startswith("rediss:") else {}


def config_file() -> Path:
    """Return the path of the configuration file; only the default one need not exist."""
    return Path(variable("SOJOURN_CONFIG") or DEFAULT_CONFIG)


def config_of(cluster: str) -> Path:
    """Return the configuration file of a named cluster. Raises UsageError if there is none."""
    if not CLUSTER_NAME.fullmatch(cluster):
        raise UsageError(
            f"{quoted(cluster)} is not a name of a cluster: letters, digits, dots, hyphens."
        )
    candidates = [place / f"{cluster}.toml" for place in cluster_directories()]
    for path in candidates:
        if path.is_file():
            return path
    known = ", ".join(clusters())
    raise UsageError(
        f"There is no cluster {quoted(cluster)}: neither {' nor '.join(map(str, candidates))} "
        "is a file.",
        f"Clusters: {known}." if known else "Each such file holds the settings of one cluster.",
    )


def clusters() -> list[str]:
    """Return the names of the clusters that have a configuration file of their own."""
    names = {path.stem for place in cluster_directories() for path in place.glob("*.toml")}
    return sorted(name for name in names if CLUSTER_NAME.fullmatch(name))


def cluster_directories() -> list[Path]:
    """Return where the files of named clusters are: the user's own directory is looked at first.

    Its place is that of the XDG Base Directory Specification.
    """
    home = Path(variable("HOME") or "/")
    return [Path(variable("XDG_CONFIG_HOME") or home / ".config") / "sojourn", SHARED_CLUSTERS]


def override(**values: str | None) -> None:
    """Override settings for this process and the ones it starts; None overrides nothing."""
    export({f"SOJOURN_{key.upper()}": value for key, value in values.items() if value is not None})
    # This process may have read its settings already.
    load.cache_clear()


@cache
def load() -> Settings:
    """Return this host's settings, read once. Raises UsageError with the first invalid key."""
    try:
        return Settings(**(_in_file(config_file()) | _in_environment()))
    # RecursionError: nested too deeply; UnicodeDecodeError: no text.
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{config_file()} is not a valid TOML file: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"The setting {key!r} is invalid: {first['msg']}.",
            f"Correct it in {config_file()} or in SOJOURN_{key.upper()}.",
        ) from None


def _in_file(path: Path) -> Json:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        # Without the default file all settings have their defaults; a file that somebody has named
        # is meant, and nothing may be done with the settings of another cluster in its place.
        if path == DEFAULT_CONFIG:
            return {}
        raise UsageError(
            f"There is no file {path}, which should hold the settings.",
            "--config, --cluster or SOJOURN_CONFIG names it.",
        ) from None
    except OSError as error:
        raise UsageError(f"The settings in {path} cannot be read: {error.strerror}.") from None


def _in_environment() -> Json:
    """Return the settings that variables hold, as text."""
    found = {name: variable(f"SOJOURN_{name.upper()}") for name in Settings.model_fields}
    return {name: text for name, text in found.items() if text is not None}
