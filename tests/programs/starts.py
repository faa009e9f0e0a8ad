"""The usual ways in which people start a program; each returns the PID of what would be moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tests.programs.place import OnHost, OnMachine, Place, within

#: How long a program may take until it is there.
START_S = 30

#: A service directory's script (runsv(8)); the shell opens the log as svlogd's pipe would be.
RUN = "#!/bin/sh\nexec </dev/null >>$D/log 2>&1\nexec {command}\n"

#: A section of supervisord's configuration.
SECTION = """\
[supervisord]
nodaemon=true
logfile=$D/supervisord.log
[unix_http_server]
file=/run/supervisor.sock
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix:///run/supervisor.sock
[program:{name}]
command={command}
autorestart=true
stdout_logfile=NONE
stderr_logfile=NONE
stdout_syslog=false
"""

TERMINAL = "/opt/sojourn/src/tests/programs/terminal.py"


@dataclass(frozen=True)
class Scene:
    """What the scripts of a program find: a directory ``$D`` that both hosts see, a user ``$U``."""

    slug: str
    user: str

    @property
    def directory(self) -> str:
        """Where the program has its files."""
        return f"/shared/programs/{self.slug}"

    def script(self, text: str) -> str:
        """Return a script as the shell of a host runs it."""
        return f"export D={self.directory} U={self.user}\n{text}"

    def filled(self, text: str) -> str:
        """Return a text for which no shell puts the values in."""
        return text.replace("$D", self.directory).replace("$U", self.user)


class Start(Protocol):
    """A way of starting; ``how`` is for the table."""

    @property
    def how(self) -> str:
        """How it is called."""

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Start it on alpha and return the PID."""


def pid_of(place: Place, scene: Scene, script: str) -> int:
    """Return the PID that a script prints, as soon as it prints one; 0 if it never does."""
    found: list[str] = []

    def printed() -> bool:
        found[:] = place.sh(scene.script(script)).stdout.split()[:1]
        return bool(found) and found[0].isdigit() and found[0] != "0"

    return int(found[0]) if within(START_S, printed) else 0


def launch(place: Place, scene: Scene, command: str) -> int:
    """Start a shell's command as a child of the host's init, in a session of its own."""
    assert isinstance(place, OnHost)
    return place.host.launch(["sh", "-c", scene.script(command)], log=f"{scene.directory}/log")


@dataclass(frozen=True)
class Daemon:
    """Left in the background for good; what is printed goes to a log."""

    command: str
    how: str = "`setsid CMD`"

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Start it; it is the process itself."""
        return launch(alpha, scene, f"exec {self.command}")


@dataclass(frozen=True)
class Forking:
    """It goes to the background by itself; ``pid`` prints the PID."""

    command: str
    pid: str
    how: str = "its own daemon"

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Start it, and ask for its PID."""
        launch(alpha, scene, self.command)
        return pid_of(alpha, scene, self.pid)


@dataclass(frozen=True)
class Runit:
    """A service of runit's."""

    command: str
    how: str = "service of runit"

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Have runsvdir supervise it. Both hosts have the service, one has it switched on."""
        place = f"/etc/sv/{scene.slug}"
        script = scene.filled(RUN.format(command=self.command))
        for host in (alpha, beta):
            host.sh(
                f"mkdir -p {place}; cat >{place}/run <<'END'\n{script}END\nchmod +x {place}/run"
            )
        alpha.sh(f"rm -f {place}/down; ln -sfn {place} /etc/service/{scene.slug}")
        return pid_of(
            alpha,
            scene,
            f"sv status {scene.slug} | sed -n 's/^run:.*(pid \\([0-9]*\\)).*/\\1/p'",
        )


@dataclass(frozen=True)
class Supervisord:
    """A program of supervisord's."""

    command: str
    how: str = "program of supervisord"

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Start supervisord with this one program."""
        section = scene.filled(SECTION.format(name=scene.slug, command=self.command))
        alpha.sh(f"cat >/etc/supervisor/supervisord.conf <<'END'\n{section}END")
        launch(alpha, scene, "exec supervisord")
        return pid_of(alpha, scene, f"supervisorctl pid {scene.slug}")


@dataclass(frozen=True)
class Unit:
    """The package's own unit of systemd; ``changes`` are more lines for its section."""

    unit: str
    changes: str = ""
    how: str = "unit of systemd, as Debian has it"

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Start the unit, and ask for its main process."""
        assert isinstance(alpha, OnMachine)
        if self.changes:
            place = f"/run/systemd/system/{self.unit}.service.d"
            lines = f"[Service]\n{self.changes}"
            alpha.sh(f"mkdir -p {place}; cat >{place}/changes.conf <<'END'\n{lines}\nEND\n")
        alpha.sh(f"systemctl daemon-reload; systemctl start {self.unit}")
        return pid_of(alpha, scene, f"systemctl show --property MainPID --value {self.unit}")


@dataclass(frozen=True)
class ShellJob:
    """Typed into an interactive shell on a terminal; ``pid`` prints the PID of the job."""

    line: str
    pid: str
    how: str = "job of a shell on a terminal"

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Type the line."""
        assert isinstance(alpha, OnHost)
        line = scene.filled(self.line)
        alpha.host.launch(["/usr/bin/python3", TERMINAL, line], log=f"{scene.directory}/screen")
        return pid_of(alpha, scene, self.pid)


@dataclass(frozen=True)
class InTmux:
    """In a window of tmux, which is what moves."""

    command: str
    how: str = "in tmux, which moves with it"

    def begin(self, alpha: Place, beta: Place, scene: Scene) -> int:
        """Open the window."""
        command = scene.filled(self.command)
        launch(alpha, scene, f"tmux -f /dev/null new-session -d -x 80 -y 24 '{command}'")
        return pid_of(alpha, scene, "tmux display-message -p '#{pid}'")
