"""Lua scripts, which Redis runs as one atomic operation each: the files of ``lua/``, package data.

A directory of ``lua/`` holds the scripts of the module it is named after. Each begins with a
comment that documents its arguments, what is atomic, and what it returns.
"""

from __future__ import annotations

import json
from importlib.resources import files

PRELUDE = "prelude"


def scripts_of(directory: str, **constants: str | int) -> dict[str, str]:
    """Return the scripts of a directory by name, each behind the constants and the prelude, if any.

    The constants are local variables of the scripts, so a number that both languages need is
    written once, in Python.
    """
    found = {
        file.name.removesuffix(".lua"): file.read_text(encoding="utf-8")
        for file in (files("sojourn.cluster") / "lua" / directory).iterdir()
        if file.name.endswith(".lua")
    }
    # A text of JSON is one of Lua too, as long as nothing in it is escaped.
    lines = [f"local {name} = {json.dumps(value)}" for name, value in constants.items()]
    prelude = "\n".join([*lines, found.pop(PRELUDE, "")])
    return {name: prelude + source for name, source in found.items()}
