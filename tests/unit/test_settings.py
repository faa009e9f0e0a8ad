"""Settings: the file, the environment above it, and one sentence for what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn import settings
from sojourn.errors import UsageError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give each test a configuration file of its own, in an environment without ours."""
    for name in [name for name in os.environ if name.startswith("SOJOURN_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "sojourn.toml"
    monkeypatch.setenv("SOJOURN_CONFIG", str(path))
    settings.load.cache_clear()
    yield path
    settings.load.cache_clear()


def test_defaults(config: Path) -> None:
    """Without a file everything has a value, and the host is this machine."""
    found = settings.load()
    assert found.freeze_slots == 4
    assert found.state_dir == Path("/var/lib/sojourn")
    assert settings.config_file() == config


def test_the_environment_is_above_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the file counts until the environment has it too."""
    config.write_text('host = "alpha"\nfreeze_slots = 3\nauto_dedup = false\n')
    monkeypatch.setenv("SOJOURN_FREEZE_SLOTS", "5")
    found = settings.load()
    assert (found.host, found.freeze_slots, found.auto_dedup) == ("alpha", 5, False)


def test_the_default_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SOJOURN_CONFIG it is the file in /etc."""
    monkeypatch.delenv("SOJOURN_CONFIG")
    assert settings.config_file() == Path("/etc/sojourn/sojourn.toml")


def test_the_command_line_overrules(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command line says counts from then on; what it leaves open does not."""
    monkeypatch.setenv("SOJOURN_HOST", "alpha")
    monkeypatch.setenv("SOJOURN_ADDRESS", "192.0.2.1")
    assert settings.load().host == "alpha"
    settings.override(host="beta", address=None)
    assert (settings.load().host, settings.load().address) == ("beta", "192.0.2.1")


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("freeze_slots = 0", "freeze_slots"),
        ('concurrency = "many"', "concurrency"),
        ('host = "Not A Host"', "host"),
        ('copy_images_with = "ftp"', "copy_images_with"),
        ("max_freeze_s = -1", "max_freeze_s"),
        ("surprise = 1", "surprise"),
    ],
)
def test_what_is_wrong_is_named(config: Path, line: str, key: str) -> None:
    """A value that makes no sense, or a key that is none, is one usage error with the key and where it stands."""
    config.write_text(line)
    with pytest.raises(UsageError, match=f"The setting '{key}' is wrong: ") as caught:
        settings.load()
    assert "\n" not in caught.value.message
    assert str(config) in caught.value.hint
    assert f"SOJOURN_{key.upper()}" in caught.value.hint


def test_a_file_that_is_no_toml(config: Path) -> None:
    """A file that can not be read is one sentence too."""
    config.write_text("host = = alpha")
    with pytest.raises(UsageError):
        settings.load()


def test_the_key_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings in a log or a traceback do not show the cluster's key."""
    monkeypatch.setenv("SOJOURN_KEY", "a-very-secret-key")
    assert "a-very-secret-key" not in repr(settings.load())
    assert settings.load().key.get_secret_value() == "a-very-secret-key"
