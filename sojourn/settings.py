"""Settings of one host: ``/etc/sojourn/sojourn.toml``, overruled by ``SOJOURN_*`` in the environment.

This is the only module that looks at the environment. ``SOJOURN_CONFIG`` names another file.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import tomllib
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from sojourn.errors import UsageError
from sojourn.model import LONGEST_FREEZE_S, MAX_FREEZE_S
from sojourn.tls import for_redis

DEFAULT_CONFIG = Path("/etc/sojourn/sojourn.toml")


class Settings(BaseSettings):
    """Everything that a site can set. Each field is a key of the file and, in capitals, of the environment."""

    model_config = SettingsConfigDict(env_prefix="SOJOURN_", frozen=True, extra="forbid")

    host: str = Field(
        default_factory=lambda: socket.gethostname().split(".")[0],
        pattern=r"^[a-z0-9]([a-z0-9-]{0,62})$",
        description="This host's name, which is also its queue's.",
    )
    address: str = Field(default="127.0.0.1", description="The address on which other hosts reach this one.")
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", description="The Redis of the cluster.")
    key: SecretStr = Field(
        default=SecretStr(""),
        description="The cluster's key, the same on all hosts: signs messages and opens page channels.",
    )
    certificates: Path | None = Field(
        default=None,
        description="Directory with `ca.crt` and `host.pem`, made by `sojourn pki`: memory then crosses the network "
        "encrypted, between hosts that have proved their names. Without it, memory can be read on its way.",
    )
    state_dir: Path = Field(default=Path("/var/lib/sojourn"), description="Where the journal lies; survives a reboot.")
    runtime_dir: Path = Field(default=Path("/run/sojourn"), description="Image directories, locks, logs per migration.")
    criu: Path = Field(default=Path("/usr/sbin/criu"), description="The CRIU program.")
    concurrency: int = Field(default=4, ge=1, le=64, description="Steps that this host works on side by side.")
    freeze_slots: int = Field(
        default=4,
        ge=1,
        le=64,
        description="Trees that may be frozen at once from or to this host; others wait, running.",
    )
    copy_images_with: Literal["channel", "scp"] = Field(
        default="channel", description="How the small images travel; scp needs SSH trust between the hosts."
    )
    auto_dedup: bool = Field(
        default=True,
        description="Free pages from the image directory as the restore reads them: faster, and half the memory; "
        "but a restore that failed half-way can not be tried again on the destination.",
    )
    images_bytes: int | None = Field(
        default=None,
        ge=4096,
        description="Cap for the image directory of one migration, instead of the tree's own size.",
    )
    max_freeze_s: float = Field(
        default=MAX_FREEZE_S,
        gt=0,
        le=LONGEST_FREEZE_S,
        description="A freeze that lasts longer is rolled back, where a migration does not say otherwise.",
    )
    reconcile_s: float = Field(
        default=5, gt=0, le=3600, description="How often a worker looks for migrations of its host that stand still."
    )
    stall_s: float = Field(
        default=15,
        gt=0,
        le=3600,
        description="How long a frozen migration may wait for its next message before it is moved on.",
    )
    patience_s: float = Field(
        default=600, gt=0, le=86400, description="How long one may wait before the freeze, while the process runs."
    )
    announce_s: float = Field(default=2, gt=0, le=3600, description="How often a worker announces its host.")
    max_outgoing: int = Field(
        default=2, ge=1, le=1000, description="Queued migrations that may be under way from this host at once."
    )
    max_incoming: int = Field(
        default=2, ge=1, le=1000, description="Queued migrations that may be under way to this host at once."
    )
    max_migrations: int = Field(
        default=32, ge=1, le=10_000, description="Queued migrations that may be under way at once in the whole cluster."
    )
    lease_s: float = Field(
        default=30,
        ge=1,
        le=3600,
        description="How long a place that a migration from the queue takes is kept when its holder falls silent.",
    )
    keep_days: int = Field(
        default=7, ge=1, description="How long a finished migration stays in the ledger, and its logs on its hosts."
    )
    metrics_address: str = Field(default="127.0.0.1", description="The address on which a worker serves its metrics.")
    metrics_port: int = Field(
        default=0, ge=0, le=65535, description="The port on which a worker serves its metrics; 0: none."
    )
    otel_endpoint: str = Field(
        default="",
        description="Where traces are sent, by OTLP over HTTP; empty: nowhere, as long as none is named else.",
    )
    flower_address: str = Field(default="127.0.0.1", description="The address on which Flower listens.")
    flower_port: int = Field(default=5555, ge=1, le=65_535, description="The port on which Flower listens.")
    flower_auth: SecretStr = Field(
        default=SecretStr(""),
        description="Who may use Flower, as `user:password`; without it Flower listens on loopback only, and its pages "
        "have no buttons.",
    )
    log_format: Literal["text", "json"] = Field(default="text", description="Log lines for people or for machines.")

    @property
    def cluster(self) -> str:
        """Eight hexadecimal digits that are the same wherever the key is the same, and do not tell it."""
        return hmac.new(self.key.get_secret_value().encode(), b"cluster", hashlib.sha256).hexdigest()[:8]

    @property
    def redis_tls(self) -> dict[str, str]:
        """How Redis is spoken to inside TLS, in redis-py's words; empty where ``redis_url`` does not ask for it."""
        return for_redis(self.certificates) if self.redis_url.startswith("rediss:") else {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (the signature is pydantic's)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments first, then the environment, then the file."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=config_file())


def config_file() -> Path:
    """Return the configuration file that counts here; it need not exist."""
    return Path(os.environ.get("SOJOURN_CONFIG", DEFAULT_CONFIG))


def override(**values: str | None) -> None:
    """Let the command line overrule settings, for this process and the ones it starts; None overrules nothing."""
    os.environ.update({f"SOJOURN_{key.upper()}": value for key, value in values.items() if value is not None})
    load.cache_clear()


@cache
def load() -> Settings:
    """Return this host's settings, read once. Raises UsageError with the first key that is wrong."""
    try:
        return Settings()
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{config_file()} is not a TOML file: {error}.") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"The setting {key!r} is wrong: {first['msg']}.",
            f"Correct it in {config_file()} or in SOJOURN_{key.upper()}.",
        ) from None


def variable(name: str) -> str | None:
    """Return one variable of the environment, for the few places where it is not a setting (``NO_COLOR``, ``CI``)."""
    return os.environ.get(name)


def environment() -> dict[str, str]:
    """Return a copy of the whole environment, for a program that must see the caller's own (pip with its settings)."""
    return dict(os.environ)
