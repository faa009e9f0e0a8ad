"""Print what Sojourn and the named extras require: an image's libraries come before its code."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = [
    requirement for extra in sys.argv[1:] for requirement in project["optional-dependencies"][extra]
]
print("\n".join([*project["dependencies"], *extras]))
