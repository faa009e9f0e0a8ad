"""One program is started, checked, migrated and looked at, as a careful operator would do it."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

from lab.errors import LabFailed
from sojourn.errors import SojournError
from sojourn.model import Plan
from tests.lab.site import Ended, Site, left_behind
from tests.programs.place import OnHost, Place, end_others, pids, within
from tests.programs.program import Program, Result
from tests.programs.starts import Start, Unit

#: How long a program may take until it works, here or there.
WORKS_S = 30
ARRIVES_S = 10

#: Longer than a supervisor waits before it starts a program again.
RESTART_S = 2.5

#: How an option stands in a hint; the closure is offered by the report.
OPTION = re.compile(r"Migrate with (--[a-z-]+)")

Findings = list[dict[str, Any]]


class Wrong(Exception):
    """Something is not as it should be; the text says what."""


def is_capable(place: Place) -> bool:
    """Whether root has CAP_SYS_RESOURCE: without it, CRIU cannot dump other users' programs."""
    capabilities = place.sh("sed -n 's/^CapEff:\\s*//p' /proc/self/status").stdout
    return bool(int(capabilities, 16) >> 24 & 1)


def _commands(place: Place) -> list[str]:
    """Return the command lines of all processes."""
    return [line.strip() for line in place.sh("ps -ww -eo args=").stdout.splitlines()]


class Trial:
    """What is done with one program between two hosts of a site."""

    def __init__(
        self,
        site: Site,
        program: Program,
        alpha: Place,
        beta: Place,
        mode: str = Plan.MODES[0],
    ) -> None:
        self.site = site
        self.mode = mode
        self.program = program
        self.alpha = alpha
        self.beta = beta
        self.before = {place.name: pids(place) for place in (alpha, beta)}
        self.result = Result(program.name, "", program.start.how)
        capable = is_capable(alpha)
        self.lacking = set() if capable else {"PRIVILEGES"}
        self.scene = program.scene(program.user if capable else "root")
        self.pid = 0
        self.remembered = ""

    def run(self) -> Result:
        """Return what became of the program, whatever happens."""
        try:
            self.result.version = self._version()
            self.start(self.program.start)
            self.attempt()
            if not self.result.moved and self.program.way:
                self._go_the_way()
        except (Wrong, LabFailed, SojournError, json.JSONDecodeError) as error:
            self.result.wrong = str(error)
        finally:
            self.clear()
        return self.result

    def _version(self) -> str:
        package = self.program.packages[0]
        shown = self.alpha.sh(f"dpkg-query -W -f '${{Version}}' {package}").stdout
        # Without the epoch and Debian's revision: the program's own.
        return shown.rpartition(":")[2].partition("-")[0].partition("+")[0]

    def start(self, start: Start) -> None:
        """Prepare the hosts, start it, and wait until it works. Raises Wrong."""
        program, directory = self.program, self.scene.directory
        self.alpha.sh(f"rm -rf {directory}; mkdir -p {directory}; chmod 777 {directory}")
        for place in (self.alpha, self.beta):
            self._do(place, program.both)
        self._do(self.alpha, program.prepare)
        self.pid = start.begin(self.alpha, self.beta, self.scene)
        if not self.pid or not within(WORKS_S, lambda: self._works(self.alpha)):
            raise Wrong(f"it did not start: {self._log()}")
        self._do(self.alpha, program.fill)
        self.remembered = self._state(self.alpha)

    def _do(self, place: Place, script: str) -> None:
        if not script:
            return
        done = place.sh(self.scene.script(script))
        if done.returncode != 0:
            output = (done.stderr or done.stdout)[-300:]
            raise Wrong(f"on {place.name} `{script}` failed: {output}")

    def _works(self, place: Place) -> bool:
        return place.sh(self.scene.script(self.program.works)).returncode == 0

    def _state(self, place: Place) -> str:
        if not self.program.state:
            return ""
        found = place.sh(self.scene.script(self.program.state)).stdout.strip()
        if not found:
            raise Wrong(f"on {place.name} it remembers nothing")
        return found

    def _log(self) -> str:
        directory = self.scene.directory
        return self.alpha.sh(f"tail -n 5 {directory}/log {directory}/screen").stdout[-600:]

    def attempt(self) -> None:
        """Migrate, with the options that hints ask for; or see that it is refused as expected.

        Raises Wrong.
        """
        stopping = self._with_options()
        if stopping:
            self._refused(stopping)
        else:
            self._migrate()

    def turn_round(self) -> None:
        """Take the hosts the other way round from now on."""
        self.alpha, self.beta = self.beta, self.alpha

    def _with_options(self) -> Findings:
        """Return what stops it when every option that a hint asks for is given."""
        while True:
            report = self._check()
            stopping = [one for one in report["findings"] if one["verdict"] not in {"ok", "note"}]
            if not self.result.way:
                self._note(stopping)
            offered = {option for one in stopping for option in OPTION.findall(one["hint"])}
            if offered - {*self.result.options}:
                self.result.options += sorted(offered - {*self.result.options})
            elif stopping and self._closure(report, stopping):
                continue
            else:
                return stopping

    def _closure(self, report: dict[str, Any], stopping: Findings) -> bool:
        """Take the tree that has everything in common, where there is one."""
        one = (report["closure"] or {}).get("one")
        held = {"HELD_OUTSIDE", "UNIX_PEER_OUTSIDE"} & {one["code"] for one in stopping}
        if not held or not one or one == self.pid:
            return False
        self.result.options.append("--closure")
        self.pid = one
        return True

    def _note(self, stopping: Findings) -> None:
        for one in stopping:
            if one["code"] not in self.result.stopped:
                self.result.stopped.append(one["code"])
                self.result.sentence = self.result.sentence or one["sentence"]

    def _check(self) -> dict[str, Any]:
        answer = self.site.sojourn(
            *("check", str(self.pid), "--from", self.alpha.name, "--to", self.beta.name, "--json"),
            *self._asked(),
        )
        found: dict[str, Any] = json.loads(answer.stdout)
        if "findings" not in found:
            raise Wrong(f"check: {answer.stdout} {answer.stderr}")
        return found

    def _asked(self) -> list[str]:
        """Return the options of ``check`` and ``migrate``."""
        chosen = [option for option in self.result.options if option != "--closure"]
        return ["--mode", self.mode, *chosen]

    def _refused(self, stopping: Findings) -> None:
        codes, expected = {one["code"] for one in stopping}, {*self.program.refused, *self.lacking}
        first = stopping[0]
        if self.result.way and not codes <= self.lacking:
            raise Wrong(f"the way out leads to {first['code']}: {first['sentence']}")
        if not self.result.way and not {*self.result.stopped} <= expected:
            why = "; ".join(f"{one['code']}: {one['sentence']} {one['hint']}" for one in stopping)
            raise Wrong(f"refused, which was not expected: {why}")
        self.result.sentence = first["sentence"]
        self._as_before()

    def _as_before(self) -> None:
        """See that the original works, and remembers."""
        if not within(ARRIVES_S, lambda: self._works(self.alpha)):
            raise Wrong(f"the original does not work any more: {self._log()}")
        if self.program.state and self._state(self.alpha) != self.remembered:
            raise Wrong("the original has forgotten something")

    def _go_the_way(self) -> None:
        way = self.program.way
        assert way
        self.result.way, self.result.options = way.text, []
        if way.start:
            self.clear()
            self.start(way.start)
        self._do(self.alpha, way.alpha)
        self._do(self.beta, way.beta)
        self.attempt()

    def _migrate(self) -> None:
        moving = self.alpha.sh(f"ps -ww -o args= -p {self.pid}").stdout.strip()
        ended = self.site.migrate(self.pid, self.alpha.name, self.beta.name, *self._asked())
        if ended.code != 0:
            raise Wrong(self._failure(ended))
        if ended.answer["mode"] != self.mode:
            raise Wrong(f"it moved by {ended.answer['mode']}, and not by {self.mode}")
        self.result.frozen_ms = ended.answer["frozen_ms"]
        self._arrived(moving)
        self.result.moved = True

    def _failure(self, ended: Ended) -> str:
        answer = ended.answer
        failure = answer.get("failure") or {}
        reason = f"{failure.get('code')}: {failure.get('message')} {failure.get('hint') or ''}"
        works = "works" if within(ARRIVES_S, lambda: self._works(self.alpha)) else "does NOT work"
        return f"{answer.get('state')}, {reason} The original {works}. {answer.get('ended') or ''}"

    def _arrived(self, command: str) -> None:
        if not within(ARRIVES_S, lambda: self._works(self.beta)):
            raise Wrong(f"it does not work on {self.beta.name}: {self._log()}")
        if self.program.state and self._state(self.beta) != self.remembered:
            raise Wrong(f"it remembers {self._state(self.beta)!r}, and not {self.remembered!r}")
        if "SUPERVISED" in self.result.stopped:
            time.sleep(RESTART_S)
        if command not in _commands(self.beta):
            raise Wrong(f"on {self.beta.name} there is no {command}")
        if command in _commands(self.alpha):
            raise Wrong(f"on {self.alpha.name} there is one too: {command}")
        for place in (self.alpha, self.beta):
            if isinstance(place, OnHost) and left_behind(place.host):
                raise Wrong(f"left behind on {place.name}: {left_behind(place.host)}")

    def clear(self) -> None:
        """End the program, and whatever it needed, on both hosts."""
        slug, start = self.scene.slug, self.program.start
        if isinstance(start, Unit):
            self.alpha.sh(f"systemctl stop {start.unit}")
        for place in (self.alpha, self.beta):
            with contextlib.suppress(SojournError):
                place.sh(f"rm -f /etc/service/{slug}; rm -rf /tmp/tmux-0 /run/screen")
                for _ in range(2):
                    end_others(place, self.before[place.name])
                # One that moved on has its PID file on the other host too, as it was carried along.
                place.sh("ipcrm --all; rm -f /dev/shm/* /run/crond.pid")
