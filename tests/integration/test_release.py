"""What is built from this checkout works for somebody who has nothing else of it.

``make release`` does the same with dependencies from the index; here they are borrowed from this
environment, so that no network is needed.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from sojourn import __version__
from sojourn.settings import environment
from sojourn.system.run import Argument, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def release() -> ModuleType:
    """Return bin/release.py as a module."""
    spec = importlib.util.spec_from_file_location("release", ROOT / "bin/release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(release: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build source archive and wheel once."""
    source, wheel = release.build(tmp_path_factory.mktemp("dist"))
    return source, wheel


def borrowing(home: Path, file: Path) -> None:
    """Install a file alone, and let its dependencies be found here, but not an editable Sojourn."""
    (packages,) = home.glob("lib/python*/site-packages")
    pip: list[Argument] = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        home / "bin/python",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    run([*pip, "--no-build-isolation", file], deadline_s=120, env=environment())
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")


def test_metadata_and_contents(release: ModuleType, built: tuple[Path, Path]) -> None:
    """Both have the version of the one place where it stands, and hold what they should."""
    assert all(file.name.startswith(f"sojourn-{__version__}") and file.is_file() for file in built)
    release.look_at(*built)
    release.look_into(*built)


def test_a_file_that_is_missing_is_told(
    release: ModuleType, built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A template that the wheel forgot would be seen by people only."""
    monkeypatch.setattr(release, "IN_THE_WHEEL", ("web/templates/nowhere.html",))
    with pytest.raises(release.ReleaseFailed, match="nowhere"):
        release.look_into(*built)


def test_the_wheel_works_alone(
    release: ModuleType, built: tuple[Path, Path], tmp_path: Path
) -> None:
    """The command runs, and the public API is typed for others (PEP 561)."""
    release.try_out(built[1], tmp_path, borrowing)


def test_a_version_that_the_changelog_does_not_know(
    release: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release without its changes told is refused."""
    monkeypatch.setattr(release, "__version__", "99.0")
    monkeypatch.setattr(release, "run", lambda *_, **__: run(["true"], deadline_s=5))
    with pytest.raises(release.ReleaseFailed, match=r"no section \[99\.0\]"):
        release.check_state()
