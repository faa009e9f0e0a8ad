"""All commands in the order of ``--help``: which module has each, and what it is for in one line.

A command's module is imported when the command is called, completed or documented, and not
before: together they take most of a second, and a person waits for ``sojourn list``. This is why
commands import inside functions what is slow and what only they need.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import cast

import typer

from sojourn.model import Untyped

#: By the heading of each group: the commands, each with its module and a line for people.
GROUPS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Move processes": {
        "migrate": ("migrate", "Move a running process to another host; or many."),
        "check": ("check", "Find out what would stop a migration; nothing is touched."),
        "drain": ("many", "Cordon a host and move everything away from it."),
    },
    "See what is there, and what happens": {
        "list": ("lists", "List migrations: running, queued and finished."),
        "show": ("look", "Show one migration: its steps, and why it failed."),
        "watch": ("watch", "Watch migrations live."),
        "history": ("history", "Show what freezes and downtimes were like."),
        "logs": ("logs", "Show what both hosts logged of a migration."),
        "hosts": ("lists", "List hosts and the capacity of each."),
        "ps": ("lists", "List the processes of a host that could be migrated."),
        "batches": ("batch", "List batches: plans and drains."),
        "queue": ("batch", "List what waits and why, or change a priority."),
        "audit": ("audit", "List who asked for what."),
    },
    "Intervene": {
        "abort": ("intervene", "Abort a migration; the process stays on its source."),
        "resolve": ("intervene", "Declare one of the hosts of a migration dead."),
        "batch": ("batch", "Show, pause, resume or abort a batch."),
        "cordon": ("capacity", "Let no new migration go to a host."),
        "uncordon": ("capacity", "Let migrations go to a host again."),
    },
    "Set up and run": {
        "worker": ("serve", "Run the worker of this host."),
        "flower": ("serve", "Run the web pages."),
        "metrics": ("metrics", "Print the metrics of the cluster, for Prometheus."),
        "doctor": ("doctor", "Examine this host and advise."),
        "pki": ("pki", "Make the certificates of the cluster."),
    },
    "Try it": {
        "lab": ("lab", "Start hosts made of namespaces on this machine."),
    },
}


class Catalogue(Mapping[str, Untyped]):
    """The commands by their names, as objects of the parser; a look-up imports the module."""

    def __init__(self) -> None:
        self._modules = {
            name: module for group in GROUPS.values() for name, (module, _) in group.items()
        }
        self._loaded: dict[str, Untyped] = {}

    def __getitem__(self, name: str) -> Untyped:
        if name not in self._loaded:
            self._loaded |= commands_of(self._modules[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)


def commands_of(module: str) -> Mapping[str, Untyped]:
    """Return the commands that a module of this package adds, by their names."""
    only = typer.Typer(rich_markup_mode=None, add_completion=False)
    # With a callback the parser makes a group, even of one command.
    only.callback()(lambda: None)
    import_module(f"sojourn.cli.{module}").add_to(only)
    return cast("Mapping[str, Untyped]", typer.main.get_group(only).commands)
