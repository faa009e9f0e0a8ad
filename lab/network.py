"""The lab's network: a bridge in a network namespace of its own, and a cable (veth) to each host.

Because the bridge has its own namespace, this machine's firewall does not touch the lab's traffic,
and the lab changes nothing there. This machine has one cable into the bridge, and no route beyond.

Names it makes: network namespaces ``sojourn-LAB-switch`` and ``sojourn-LAB-HOST``, the interface
``sj-LAB``.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable

from lab.errors import LabFailed
from lab.plan import HOSTS, HUB, STATE, Plan, exists, load
from sojourn.system.run import Completed, run

IP_DEADLINE_S = 20
SWITCH = "switch"
NAMESPACE = re.compile(r"sojourn-(?P<lab>[a-z][a-z0-9]*)-[a-z]+")
LAB_NETWORK = "10.213.{}.0/24"


class Network:
    """The cables of one lab. Every method is safe to repeat."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def lay(self) -> None:
        """Make the bridge and this machine's cable into it."""
        if SWITCH in namespaces(self.plan.name):
            return
        switch = namespace(self.plan.name, SWITCH)
        _ip(["netns", "add", switch])
        _batch(
            switch,
            ["link set lo up", "link add br0 type bridge forward_delay 0", "link set br0 up"],
        )
        cable = outside_interface(self.plan.name)
        _ip(["link", "add", cable, "type", "veth", "peer", "name", "outside", "netns", switch])
        _batch(switch, ["link set outside master br0 up"])
        _ip(["address", "add", f"{self.plan.outside_address}/24", "dev", cable])
        _ip(["link", "set", cable, "up"])

    def plug(self, host: str) -> None:
        """Give a host a network namespace and a cable to the bridge."""
        if host in namespaces(self.plan.name):
            return
        name, number = namespace(self.plan.name, host), self.plan.number(host)
        # A host that comes back keeps its hardware address: its peers have it in their caches.
        hardware = f"02:53:4a:{self.plan.subnet:02x}:00:{number:02x}"
        _ip(["netns", "add", name])
        _batch(
            namespace(self.plan.name, SWITCH),
            [
                f"link add {host} type veth peer name eth0 address {hardware} netns {name}",
                f"link set {host} master br0 up",
            ],
        )
        address = f"address add {self.plan.address(host)}/24 dev eth0"
        _batch(
            name, ["link set lo up", "link set eth0 addrgenmode none", address, "link set eth0 up"]
        )

    def unplug(self, host: str) -> None:
        """Take a host's cable and network namespace away."""
        if host in namespaces(self.plan.name):
            # Its other end goes with it. There is no cable where ``plug`` was interrupted.
            _on_switch(self.plan.name, ["link", "delete", host], check=False)
            _ip(["netns", "delete", namespace(self.plan.name, host)])

    def cut(self, host: str) -> None:
        """Pull a host's cable: packets are lost without a word to either side."""
        _on_switch(self.plan.name, ["link", "set", host, "down"])

    def heal(self, host: str) -> None:
        """Plug a host's cable in again."""
        _on_switch(self.plan.name, ["link", "set", host, "up"])

    def cut_hosts(self) -> set[str]:
        """Return the hosts whose cable is pulled."""
        links = json.loads(
            _on_switch(self.plan.name, ["-json", "link", "show", "type", "veth"]).stdout
        )
        return {link["ifname"] for link in links if "UP" not in link["flags"]}


def namespace(lab: str, host: str) -> str:
    """Return the name of a host's network namespace."""
    return f"sojourn-{lab}-{host}"


def outside_interface(lab: str) -> str:
    """Return the name of this machine's end of its cable."""
    return f"sj-{lab}"


def namespaces(lab: str) -> list[str]:
    """Return the hosts of a lab that have a network namespace, the switch among them."""
    present = _present()
    return [host for host in (*HOSTS, HUB, SWITCH) if namespace(lab, host) in present]


def labs() -> set[str]:
    """Return the names of the labs that have a network namespace."""
    return {match["lab"] for name in _present() if (match := NAMESPACE.fullmatch(name))}


def pids(lab: str, host: str) -> list[int]:
    """Return the PIDs, on this machine, of the processes in a host's network namespace."""
    return [int(pid) for pid in _ip(["netns", "pids", namespace(lab, host)]).stdout.split()]


def remove(lab: str) -> None:
    """Take all cables and network namespaces of a lab away, whatever is left of them."""
    # The cable first and by name: the kernel removes a namespace's cables only some time later.
    run(["ip", "link", "delete", outside_interface(lab)], deadline_s=IP_DEADLINE_S, check=False)
    for host in namespaces(lab):
        _ip(["netns", "delete", namespace(lab, host)])


def free_subnet() -> int:
    """Return the first x of 10.213.x.0/24 that neither a lab nor a route of this machine uses."""
    taken = list(_routed())
    planned = {load(path.name).subnet for path in STATE.glob("*") if exists(path.name)}
    for number in range(256):
        network = ipaddress.ip_network(LAB_NETWORK.format(number))
        if number not in planned and not any(network.overlaps(other) for other in taken):
            return number
    raise LabFailed(
        "All of 10.213.0.0/16 is in use on this machine.",
        "Take a lab down: sojourn lab down --all.",
    )


def _routed() -> Iterable[ipaddress.IPv4Network]:
    for route in json.loads(_ip(["-4", "-json", "route", "show", "table", "all"]).stdout):
        if route["dst"] != "default":
            yield ipaddress.IPv4Network(route["dst"])


def _present() -> set[str]:
    listed = _ip(["-json", "netns", "list"]).stdout
    return {namespace["name"] for namespace in json.loads(listed or "[]")}


def _on_switch(lab: str, arguments: list[str], *, check: bool = True) -> Completed:
    return run(
        ["ip", "-n", namespace(lab, SWITCH), *arguments], deadline_s=IP_DEADLINE_S, check=check
    )


def _ip(arguments: list[str]) -> Completed:
    return run(["ip", *arguments], deadline_s=IP_DEADLINE_S)


def _batch(name: str, lines: list[str]) -> None:
    run(["ip", "-n", name, "-batch", "-"], deadline_s=IP_DEADLINE_S, stdin="\n".join(lines) + "\n")
