"""What supervisord does when a program of its ends, by its configuration.

See http://supervisord.org/configuration.html.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from sojourn.errors import ProcessGone
from sojourn.system import process

#: The option that names the file, and where supervisord looks for it without one.
OPTION = re.compile(r"-c|--configuration|(?:-c|--configuration=)(?P<file>.+)")
DEFAULTS = ("supervisord.conf", "etc/supervisord.conf", "/etc/supervisord.conf")
DEBIANS = "/etc/supervisor/supervisord.conf"

#: The only value of ``autorestart`` with which a program that was killed is not started again.
NEVER = {"false", "off", "no", "0", "f", "n"}


def program_of(pid: int) -> str:
    """Return the program's name: that of its group, which supervisord gives to what it starts."""
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"SUPERVISOR_PROCESS_NAME="):
                return variable.split(b"=", 1)[1].decode(errors="replace")
    return ""


def starts_again(supervisor: int, pid: int) -> bool:
    """Return whether supervisord starts a child of its again; so it is where it is not known.

    It reads its files only when it is started or asked to, and then starts what has changed anew:
    so a file that was changed after the start of the program does not count.
    """
    name, files = program_of(pid), list(_files(supervisor))
    began = process.started(pid)
    if not name or any(file.stat().st_mtime > began for file in files):
        return True
    values = [value for file in files for value in _autorestart(file, name)]
    return not values or values[-1].lower() not in NEVER


def _autorestart(file: Path, name: str) -> Iterator[str]:
    section = f"program:{name}"
    with contextlib.suppress(configparser.Error, UnicodeDecodeError):
        found = _read(file)
        if found.has_option(section, "autorestart"):
            # A comment may follow a value, after a blank and a semicolon.
            yield found.get(section, "autorestart").split(" ;")[0].strip()


def _files(supervisor: int) -> Iterator[Path]:
    """Yield supervisord's file, and those that it includes, as far as they exist."""
    with contextlib.suppress(OSError, ProcessGone, configparser.Error, UnicodeDecodeError):
        main = _main_file(supervisor)
        if main:
            yield main
            patterns = _read(main).get("include", "files", fallback="").split()
            for pattern in patterns:
                yield from _matching(main.parent, pattern.replace("%(here)s", str(main.parent)))


def _matching(directory: Path, pattern: str) -> Iterator[Path]:
    """Yield the files that a pattern means; it counts from the directory of the main file."""
    absolute = os.path.normpath(directory / pattern)
    yield from sorted(Path("/").glob(absolute.lstrip("/")))


def _main_file(supervisor: int) -> Path | None:
    arguments = process.arguments(supervisor)
    work = Path(f"/proc/{supervisor}/cwd").readlink()
    for number, argument in enumerate(arguments):
        option = OPTION.fullmatch(argument)
        if option and (option["file"] or number + 1 < len(arguments)):
            return work / (option["file"] or arguments[number + 1])
    return next((work / file for file in (*DEFAULTS, DEBIANS) if (work / file).is_file()), None)


def _read(file: Path) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.read_string(file.read_text())
    return parser
