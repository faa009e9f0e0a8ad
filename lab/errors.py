"""How the lab fails."""

from __future__ import annotations

from sojourn.errors import SojournError


class LabFailed(SojournError):
    """The lab, or one of its hosts, could not be made, reached or removed."""

    code = "LAB_FAILED"


class LabUnsuitable(SojournError):
    """This machine cannot carry a lab; nothing was made."""

    code = "LAB_UNSUITABLE"
