"""The networks of a container of this runtime: attached at create, taken away at delete.

What lifecycle does, in this order:

    wish = wish_of(annotations) or parse(flags…)    None if nothing is asked for
    adapt(config, wish, directory, pid_of)          namespaces and mounts of config.json
    state["network"] = record_of(wish)              written before anything is made
    state["network"] = attach(id, netns, wish, …)   when the namespace is there
    detach(id, state["network"], netns)             at delete, however much of the above has happened
"""

from __future__ import annotations

import os

from ocirt.cni import cache, config, networks, protocol
from ocirt.cni.client import Client
from ocirt.cni.protocol import CNIError
from ocirt.cni.request import DEFAULT_PATH, Attachment, join_errors
from ocirt.errors import Error, InvalidConfig, Undo, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

    from ocirt.cni.result import Result

#: Annotations of config.json that say the same as the flags; several values are separated by commas.
PREFIX = "org.ocirt.network"
ANNOTATIONS = (PREFIX, *(f"{PREFIX}.{k}" for k in ("publish", "ip", "mac", "dns", "dns-search", "dns-option", "alias")))

_HOST, _NONE, _JOIN = "host", "none", "container"


class Place:
    """One network that a container wants to be in.

    name, ifname   the network, and the interface in the container
    ips, mac       what it wants to have there
    """

    __slots__ = ("ifname", "ips", "mac", "name")

    def __init__(self, name: str, ifname: str, ips: list[str], mac: str) -> None:
        self.name = name
        self.ifname = ifname
        self.ips = ips
        self.mac = mac


class Wish:
    """What a container wants of the network.

    mode     host, none, container, or "" for the networks in `places`
    joined   the container whose namespace it shares
    ports    as runtimeConfig.portMappings
    dns      {servers, searches, options}
    aliases  names by which the others of its networks find it, besides its id and hostname
    """

    __slots__ = ("aliases", "dns", "joined", "mode", "places", "ports")

    def __init__(self) -> None:
        self.mode = ""
        self.joined = ""
        self.places: list[Place] = []
        self.ports: list[dict[str, Any]] = []
        self.dns: dict[str, list[str]] = {}
        self.aliases: list[str] = []


def parse(
    wanted: Iterable[str],
    *,
    publish: Iterable[str] = (),
    ip: Iterable[str] = (),
    mac: str = "",
    dns: Iterable[str] = (),
    dns_search: Iterable[str] = (),
    dns_option: Iterable[str] = (),
    aliases: Iterable[str] = (),
) -> Wish | None:
    """The wish in flags or annotations, None if there is none.

    wanted   NAME, NAME:ip=…,mac=…,interface=…, host, none, container:ID; without any but with ports: the default one
    publish  [HOSTIP:][HOSTPORT[-LAST]:]PORT[-LAST][/PROTOCOL]

    Raises InvalidConfig that names the value.
    """
    names = list(wanted)
    extras = (list(publish), list(ip), list(dns), list(dns_search), list(dns_option), list(aliases))
    if not names and not mac and not any(extras):
        return None
    wish = Wish()
    wish.dns = {k: v for k, v in (("servers", extras[2]), ("searches", extras[3]), ("options", extras[4])) if v}
    wish.aliases = extras[5]
    _check_names(wish)
    wish.ports = [m for text in extras[0] for m in parse_port(text)]
    for name in names or [networks.DEFAULT]:
        kind, _, rest = name.partition(":")
        if kind in (_HOST, _NONE, _JOIN) and (not rest or kind == _JOIN):
            if len(names) > 1 or mac or any(extras):
                raise InvalidConfig(
                    f"network {name!r} can't be combined with other networks, ports, addresses, names or name servers"
                )
            if kind == _JOIN and not rest:
                raise InvalidConfig(f"network {name!r} names no container (container:ID)")
            wish.mode, wish.joined = kind, rest
            return wish
        wish.places.append(_place(kind, rest, len(wish.places)))
    first = wish.places[0]
    first.ips = first.ips + extras[1]
    first.mac = first.mac or mac
    return wish


def _check_names(wish: Wish) -> None:
    """InvalidConfig for what isn't one word of hosts(5) or resolv.conf(5): it would say something else there."""
    from ocirt.cni.address import parse_ip

    for server in wish.dns.get("servers", ()):
        try:
            parse_ip(server)
        except ValueError:
            raise InvalidConfig(f"invalid name server {server!r} (must be an IP address)") from None
    for what, values in (
        ("search domain", wish.dns.get("searches", ())),
        ("network alias", wish.aliases),
    ):
        for value in values:
            if not value.isascii() or not value.replace("-", "").replace("_", "").replace(".", "0").isalnum():
                raise InvalidConfig(f"invalid {what} {value!r} (letters, digits and _.- are allowed)")
    for option in wish.dns.get("options", ()):
        if not option.isprintable() or not option.isascii() or " " in option or not option:
            raise InvalidConfig(f"invalid option of resolv.conf {option!r} (must be one word, like ndots:2)")


def _place(name: str, options: str, index: int) -> Place:
    if not protocol.valid_name(name):
        raise InvalidConfig(f"invalid network name {name!r} (letters, digits and _.- are allowed)")
    place = Place(name, f"eth{index}", [], "")
    for option in options.split(",") if options else ():
        key, _, value = option.partition("=")
        if key in ("ip", "ip6") and value:
            place.ips.append(value)
        elif key == "mac" and value:
            place.mac = value
        elif key in ("interface", "interface_name") and protocol.valid_ifname(value):
            place.ifname = value
        else:
            raise InvalidConfig(f"invalid option {option!r} of network {name!r} (must be ip=, mac= or interface=)")
    return place


def parse_port(text: str) -> list[dict[str, Any]]:
    """`[HOSTIP:][HOSTPORT:]PORT[/tcp|udp|sctp]` as port mappings; ports as N or N-M. Raises InvalidConfig."""
    try:
        rest, _, kind = text.partition("/")
        kind = kind.lower() or "tcp"
        host_ip = ""
        if rest.startswith("["):
            host_ip, _, rest = rest[1:].partition("]:")
        parts = rest.split(":")
        if len(parts) == 3 and not host_ip:
            host_ip = parts.pop(0)
        inside = _ports(parts[-1])
        host = _ports(parts[0]) if len(parts) == 2 and parts[0] else inside
        if len(parts) > 2 or kind not in ("tcp", "udp", "sctp") or host[1] - host[0] != inside[1] - inside[0]:
            raise ValueError
        if host_ip:
            from ocirt.cni.address import parse_ip

            parse_ip(host_ip)
    except ValueError:
        raise InvalidConfig(
            f"invalid port mapping {text!r} (must be [HOSTIP:][HOSTPORT:]PORT[/tcp|udp|sctp], ports as N or N-M)"
        ) from None
    made: dict[str, Any] = {"hostPort": host[0], "containerPort": inside[0], "protocol": kind}
    if host_ip:
        made["hostIP"] = host_ip
    if host[1] == host[0]:
        return [made]
    if host == inside:
        return [{**made, "range": host[1] - host[0] + 1}]
    return [{**made, "hostPort": h, "containerPort": h - host[0] + inside[0]} for h in range(host[0], host[1] + 1)]


def _ports(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    last = last if dash else first
    found = int(first), int(last)  # which takes more than digits
    if not (first + last).isascii() or not (first + last).isdigit() or not 1 <= found[0] <= found[1] <= 65535:
        raise ValueError(text)
    return found


def wish_of(annotations: Mapping[str, str]) -> Wish | None:
    """The wish in a container's annotations, None if there is none; InvalidConfig for a value that isn't right."""

    def values(key: str) -> list[str]:
        return [v.strip() for v in annotations.get(f"{PREFIX}.{key}", "").split(",") if v.strip()]

    unknown = [k for k in annotations if k.startswith(PREFIX) and k not in ANNOTATIONS]
    if unknown:
        raise InvalidConfig(f"unknown annotation {unknown[0]!r} (known are {', '.join(ANNOTATIONS)})")
    # an option of a network is `,key=value`: only what isn't one begins another network
    wanted: list[str] = []
    for part in (p.strip() for p in annotations.get(PREFIX, "").split(",")):
        if wanted and "=" in part and ":" not in part.partition("=")[0]:
            wanted[-1] += f",{part}"
        elif part:
            wanted.append(part)
    return parse(
        wanted,
        publish=values("publish"),
        ip=values("ip"),
        mac=annotations.get(f"{PREFIX}.mac", ""),
        dns=values("dns"),
        dns_search=values("dns-search"),
        dns_option=values("dns-option"),
        aliases=values("alias"),
    )


def cni_id(id: str) -> str:
    """The container's id as CNI allows it: ours may begin with or hold other characters."""
    if protocol.valid_name(id) and len(id) <= 128:
        return id
    from hashlib import sha256

    return f"ocirt-{sha256(id.encode('utf-8', 'surrogateescape')).hexdigest()[:40]}"


def record_of(wish: Wish) -> dict[str, Any]:
    """What `detach` needs, to be kept in state.json before `attach` begins."""
    return {"networks": [{"name": p.name, "ifname": p.ifname} for p in wish.places]}


def attach(
    id: str,
    netns: str,
    wish: Wish,
    *,
    hostname: str = "",
    client: Client | None = None,
    directory: str = "",
) -> dict[str, Any]:
    """Attach the container to its networks, and return the record with what they gave it.

    netns is a path, /proc/PID/ns/net of init as well. If one network fails,
    those before it are taken away and its Error is raised.
    """
    client = client or default_client()
    container = cni_id(id)
    record = record_of(wish)
    with doing("set up the network"), Undo() as undo:
        _set_loopback_up(netns)
        for index, place in enumerate(wish.places):
            network = networks.find(place.name, directory or config.default_directory())
            attachment = Attachment(
                container,
                netns,
                place.ifname,
                (("IgnoreUnknown", "1"), ("K8S_POD_NAME", hostname or id)) if _is_plain(hostname or id) else (),
                _capabilities(wish, place, index),
            )
            result = _add(client, network, attachment)
            undo.add(f"detach from {place.name}", _detacher(client, network, attachment))
            record["networks"][index].update(_told(result, place.ifname))
            if index == 0 and wish.ports and not _maps_ports(network):
                raise CNIError(
                    protocol.INVALID_CONFIG, f"network {place.name!r} maps no ports (it has no portmap plugin)"
                )
    return record


def _add(client: Client, network: config.NetworkList, attachment: Attachment) -> Result:
    """ADD; if it fails while the network has attachments of containers that are gone, once more without those.

    They hold addresses and ports, and whoever could have deleted them may be
    gone as well. In networks of other programs that is those programs' business.
    """
    try:
        return client.add(network, attachment)
    except CNIError:
        dead = [e for e in cache.entries(client.directory, network=network.name) if not e.is_alive()]
        if not dead or not network.ours:
            raise
    from ocirt.cni import collect

    client.gc(network, collect.valid_attachments(client.directory, network.name))
    return client.add(network, attachment)


def _detacher(client: Client, network: config.NetworkList, attachment: Attachment) -> Callable[[], object]:
    return lambda: client.delete(network, attachment)


def default_client() -> Client:
    """The client as the environment says: CNI_PATH puts other plugins before ours."""
    path = tuple(d for d in os.environ.get("CNI_PATH", "").split(":") if d)
    return Client(path or DEFAULT_PATH, os.environ.get("OCIRT_CNI_DIRECTORY") or cache.DIRECTORY)


def _is_plain(value: str) -> bool:
    return "=" not in value and ";" not in value


def _set_loopback_up(netns: str) -> None:
    from ocirt.linux import netlink_route as route

    fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with route.open_route(fd) as inside:
            inside.request(route.set_link(route.Change().up(), "lo (up)", 1))
    finally:
        os.close(fd)


def _capabilities(wish: Wish, place: Place, index: int) -> dict[str, Any]:
    """What the runtime offers the plugins; ports go to the first network."""
    offered: dict[str, Any] = {}
    if wish.ports and index == 0:
        offered["portMappings"] = wish.ports
    if place.ips:
        offered["ips"] = place.ips
    if place.mac:
        offered["mac"] = place.mac
    if wish.aliases:
        offered["aliases"] = wish.aliases
    if wish.dns:
        offered["dns"] = wish.dns
    return offered


def _maps_ports(network: config.NetworkList) -> bool:
    return any(protocol.table(p, "capabilities").get("portMappings") is True for p in network.plugins)


def _told(result: Result, ifname: str) -> dict[str, Any]:
    told: dict[str, Any] = {"ips": [ip["address"] for ip in result.container_ips(ifname)]}
    gateways = [ip["gateway"] for ip in result.container_ips(ifname) if "gateway" in ip]
    if gateways:
        told["gateways"] = gateways
    for item in result.interfaces:
        if item["name"] == ifname and item.get("sandbox"):
            told["mac"] = item.get("mac", "")
    if result.dns:
        told["dns"] = result.dns
    return told


def publish(id: str, record: Mapping[str, Any]) -> None:
    """Let the others of its networks find the container by the names in the record."""
    from ocirt.cni import names

    for item in record["networks"]:
        names.publish(item["name"], cni_id(id), item["ifname"], record["names"], item["ips"])


def detach(
    id: str,
    record: Mapping[str, Any] | None,
    netns: str = "",
    *,
    client: Client | None = None,
    directory: str = "",
) -> None:
    """Take the container out of its networks, whatever of `attach` has happened and however often this is called.

    netns: the namespace's path if init is still the process that attach saw, ""
    otherwise. A path by a pid that may be another's by now would have the
    plugins delete that one's interfaces.
    """
    if not record or not record.get("networks"):
        return
    client = client or default_client()
    container = cni_id(id)
    errors: list[Error] = []
    where = directory or config.default_directory()
    from ocirt.cni import names, resolvers

    with doing("take down the network"):
        resolvers.stop(container)
        for item in reversed(record["networks"]):
            try:
                network: config.NetworkList | None = networks.find(item["name"], where)
            except Error:
                network = None  # removed meanwhile: the cache has it
            attachment = Attachment(container, netns, item["ifname"])
            names.withdraw(item["name"], container, item["ifname"])
            try:
                client.delete(network, attachment, item["name"])
            except Error as error:
                errors.append(error)
        join_errors(errors)


def adapt(
    settings: dict[str, Any],
    wish: Wish,
    pid_of: Callable[[str], int],
) -> None:
    """Change config.json's network namespace as the wish says: the host's, another container's, or one of its own.

    pid_of gives the init of a running container, or raises.
    """
    linux = settings.setdefault("linux", {})
    listed: list[dict[str, str]] = linux.get("namespaces") or []
    spaces = [n for n in listed if n.get("type") != "network"]
    present = [n for n in listed if n.get("type") == "network"]
    if wish.mode == _HOST:
        linux["namespaces"] = spaces
    elif wish.mode == _JOIN:
        linux["namespaces"] = [*spaces, {"type": "network", "path": f"/proc/{pid_of(wish.joined)}/ns/net"}]
    else:
        linux["namespaces"] = [*spaces, *(present or [{"type": "network"}])]
