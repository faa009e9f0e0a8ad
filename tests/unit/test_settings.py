"""Settings: the file, the environment above it, and one sentence for an invalid one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn import settings
from sojourn.cli.options import chosen, limited
from sojourn.errors import UsageError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give every test a configuration file of its own, in an environment without settings."""
    for name in [name for name in os.environ if name.startswith("SOJOURN_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "sojourn.toml"
    path.touch()
    monkeypatch.setenv("SOJOURN_CONFIG", str(path))
    settings.load.cache_clear()
    yield path
    settings.load.cache_clear()


def test_defaults(config: Path) -> None:
    """With an empty file everything has a value, and the host is this machine."""
    found = settings.load()
    assert found.freeze_slots == 4
    assert found.state_dir == Path("/var/lib/sojourn")
    assert settings.config_file() == config


def test_the_environment_is_above_the_file(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of the file counts unless the environment has it too."""
    config.write_text('host = "alpha"\nfreeze_slots = 3\nauto_dedup = false\n')
    monkeypatch.setenv("SOJOURN_FREEZE_SLOTS", "5")
    found = settings.load()
    assert (found.host, found.freeze_slots, found.auto_dedup) == ("alpha", 5, False)


def test_the_default_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SOJOURN_CONFIG the file in /etc is read."""
    monkeypatch.delenv("SOJOURN_CONFIG")
    assert settings.config_file() == Path("/etc/sojourn/sojourn.toml")


def test_a_file_that_was_named_must_exist(config: Path) -> None:
    """Otherwise a command would go to the cluster of the default settings."""
    config.unlink()
    with pytest.raises(UsageError, match=f"There is no file {config}, which should hold"):
        settings.load()


def test_a_file_that_cannot_be_read(config: Path) -> None:
    """It is reported in one sentence."""
    config.unlink()
    config.mkdir()
    with pytest.raises(UsageError, match=f"The settings in {config} cannot be read: Is a dir"):
        settings.load()


def test_the_default_file_need_not_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without it every setting has its default."""
    monkeypatch.setattr(settings, "DEFAULT_CONFIG", tmp_path / "none.toml")
    monkeypatch.delenv("SOJOURN_CONFIG")
    assert settings.load().freeze_slots == 4


def test_named_clusters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user's own file comes before the one for all; a name that is none reads no file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(settings, "SHARED_CLUSTERS", tmp_path / "clusters")
    own, shared = settings.cluster_directories()
    assert own == tmp_path / ".config/sojourn"
    with pytest.raises(UsageError, match="no cluster 'paris': neither") as caught:
        settings.config_of("paris")
    assert f"{own}/paris.toml nor {shared}/paris.toml" in caught.value.message
    for place, name in ((shared, "paris"), (shared, "oslo"), (own, "paris")):
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.toml").touch()
    assert settings.config_of("paris") == own / "paris.toml"
    assert settings.config_of("oslo") == shared / "oslo.toml"
    assert settings.clusters() == ["oslo", "paris"]
    with pytest.raises(UsageError, match="not a name of a cluster"):
        settings.config_of("../oslo")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert settings.cluster_directories()[0] == tmp_path / "xdg/sojourn"


def test_the_command_line_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option of the command line counts from then on; one that is not given does not."""
    monkeypatch.setenv("SOJOURN_HOST", "alpha")
    monkeypatch.setenv("SOJOURN_ADDRESS", "192.0.2.1")
    assert settings.load().host == "alpha"
    settings.override(host="beta", address=None)
    assert (settings.load().host, settings.load().address) == ("beta", "192.0.2.1")


def test_the_limits_of_a_migration(config: Path) -> None:
    """Each that the command line is not given is that of the file; a zero is not taken for none."""
    config.write_text("bandwidth_mbit = 700\nmax_freeze_s = 50\n")
    assert limited(**chosen(bandwidth_mbit=None, shell_job=False)) == {
        "bandwidth_mbit": 700,
        "max_freeze_s": 50,
    }
    assert limited(**chosen(bandwidth_mbit=100, max_freeze_s=0.0, shell_job=True)) == {
        "bandwidth_mbit": 100,
        "max_freeze_s": 0.0,
        "shell_job": True,
    }


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("freeze_slots = 0", "freeze_slots"),
        ('concurrency = "many"', "concurrency"),
        ('host = "Not A Host"', "host"),
        ('copy_images_with = "ftp"', "copy_images_with"),
        ("max_freeze_s = -1", "max_freeze_s"),
        ("bandwidth_mbit = 0", "bandwidth_mbit"),
        ("bandwidth_mbit = 1.5", "bandwidth_mbit"),
        ("surprise = 1", "surprise"),
    ],
)
def test_an_invalid_setting_is_named(config: Path, line: str, key: str) -> None:
    """An invalid value or an unknown key is a usage error with the key and where to correct it."""
    config.write_text(line)
    with pytest.raises(UsageError, match=f"The setting '{key}' is invalid: ") as caught:
        settings.load()
    assert "\n" not in caught.value.message
    assert str(config) in caught.value.hint
    assert f"SOJOURN_{key.upper()}" in caught.value.hint


def test_a_file_that_is_not_toml(config: Path) -> None:
    """It is reported in one sentence too."""
    config.write_text("host = = alpha")
    with pytest.raises(UsageError):
        settings.load()


def test_the_key_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings in a log or a traceback do not show the cluster's key."""
    monkeypatch.setenv("SOJOURN_KEY", "a-very-secret-key")
    assert "a-very-secret-key" not in repr(settings.load())
    assert settings.load().key.get_secret_value() == "a-very-secret-key"
