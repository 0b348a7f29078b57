"""Rules of iptables, for hosts without nftables or whose own rules are iptables'.

In the style of the reference plugins, with their chains where those are shared
by all containers, but every rule of a container bears its attachment as a
comment: so DEL and GC find it in a listing, without namespace, result or cache.
Each change is one iptables-restore, which is one transaction a table.
"""

from __future__ import annotations

import os

from ocirt.cni import protocol, table
from ocirt.cni.address import cidr_text, network_of, parse_cidr
from ocirt.cni.invoke import run
from ocirt.cni.plugins import links
from ocirt.cni.protocol import INTERNAL, NOT_AVAILABLE, CNIError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ocirt.cni.ports import PortMapping
    from ocirt.cni.request import Request
    from ocirt.cni.table import Owner
    from ocirt.linux.netlink_route import Address

_COMMANDS = {2: "iptables", 10: "ip6tables"}
_PATHS = ("/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin")
_LOOPBACK, _MULTICAST = {2: "127.0.0.0/8"}, {2: "224.0.0.0/4", 10: "ff00::/8"}
_DNAT, _MASQ, _SETMARK, _FORWARD = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK", "CNI-FORWARD"
_PREFIX = "ocirt:"

#: (chain, from where, rule that enters it, at the front?) of what all containers share.
_PARENTS = (
    (_DNAT, "PREROUTING", "-m addrtype --dst-type LOCAL", False),
    (_DNAT, "OUTPUT", "-m addrtype --dst-type LOCAL", False),
    (_MASQ, "POSTROUTING", '-m comment --comment "CNI portfwd requiring masquerade"', True),
)
_USUAL_BIT = 13


def _find(name: str) -> str:
    for directory in (*os.environ.get("PATH", "").split(":"), *_PATHS):
        if directory and os.access(f"{directory}/{name}", os.X_OK):
            return f"{directory}/{name}"
    raise CNIError(NOT_AVAILABLE, f"{name} is not installed")


def _run(command: str, *arguments: str, stdin: str = "", ok: tuple[int, ...] = (0,)) -> tuple[int, str]:
    status, out, err = run(_find(command), dict(os.environ), stdin.encode(), arguments)
    if status not in ok:
        text = err.decode("utf-8", "replace").strip()
        raise CNIError(INTERNAL, f"{command} {' '.join(arguments)}: {text or f'exit status {status}'}")
    return status, out.decode("utf-8", "replace")


def _restore(family: int, tables: Mapping[str, Sequence[str]]) -> None:
    """Lines of iptables-restore by table; nothing else is touched."""
    text = "".join(f"*{name}\n" + "".join(f"{line}\n" for line in lines) + "COMMIT\n" for name, lines in tables.items())
    _run(f"{_COMMANDS[family]}-restore", "--noflush", "-w", "10", stdin=text)


def _listed(family: int, name: str) -> list[str]:
    """The rules of a table as `-A CHAIN …`."""
    return _run(_COMMANDS[family], "-w", "10", "-t", name, "-S")[1].splitlines()


def check_available() -> None:
    """CNIError (50) if iptables isn't there or can't work."""
    for command in (_COMMANDS[2], f"{_COMMANDS[2]}-restore"):
        _find(command)
    try:
        _listed(2, "nat")
    except CNIError as error:
        raise CNIError(NOT_AVAILABLE, "iptables can't work here", error.msg) from error


def _quoted(owner: Owner) -> str:
    return f'-m comment --comment "{_PREFIX}{owner.comment}"'


def _comment_of(line: str) -> str:
    """Our comment on a rule, "" if it has none of ours; iptables quotes it or not, as it likes."""
    for before in (f"--comment {_PREFIX}", f'--comment "{_PREFIX}'):
        _, found, rest = line.partition(before)
        if found:
            return rest.split(" ", 1)[0].rstrip('"')
    return ""


def _is_of(line: str, stale: Callable[[str], bool]) -> bool:
    """Does the rule bear a comment of ours that is stale?"""
    comment = _comment_of(line)
    return bool(comment) and stale(comment)


def _listed_if_there(family: int, name: str) -> list[str]:
    """The same, nothing without the command, or where the kernel has no such table for the family."""
    try:
        return _listed(family, name)
    except CNIError:
        return []


def _listed_everywhere(name: str) -> list[str]:
    """The rules of both families."""
    return [line for family in _COMMANDS for line in _listed_if_there(family, name)]


def _drop(names: Iterable[str], stale: Callable[[str], bool]) -> None:
    """Delete the rules whose comment is stale."""
    for family in _COMMANDS:
        for name in names:
            found = _listed_if_there(family, name)
            lines = [f"-D{line[2:]}" for line in found if line.startswith("-A") and _is_of(line, stale)]
            if lines:
                _restore(family, {name: lines})


def collect(belongs: Callable[[str], bool], keep: frozenset[str]) -> None:
    """Delete what belongs to no attachment in `keep`."""
    _drop(("nat", "filter"), lambda comment: belongs(comment) and comment not in keep)


def _by_family(addresses: Iterable[str]) -> dict[int, list[Address]]:
    found: dict[int, list[Address]] = {}
    for text in addresses:
        address = parse_cidr(text)
        found.setdefault(address[0], []).append(address)
    return found


def _host(address: Address) -> str:
    return cidr_text((address[0], address[1], len(address[1]) * 8))


# --- masquerading ---------------------------------------------------------------------------------------------


def masquerade(owner: Owner, addresses: Iterable[str]) -> None:
    """Give what leaves the network of these addresses the host's address."""
    for family, found in _by_family(addresses).items():
        lines = [
            f"-A POSTROUTING -s {_host(a)} ! -d {cidr_text(network_of(a))} {_quoted(owner)} -j {_unicast(family)}"
            for a in found
        ]
        made = [f":{_unicast(family)} - [0:0]", f"-A {_unicast(family)} ! -d {_MULTICAST[family]} -j MASQUERADE"]
        _restore(family, {"nat": [*made, *lines]})


def _unicast(family: int) -> str:
    """The chain that masquerades all but multicast; `:chain` in a restore empties it, so it is always the one rule."""
    return "OCIRT-MASQUERADE" if family == 2 else "OCIRT-MASQUERADE6"


def unmasquerade(owner: Owner) -> None:
    """Stop it."""
    _drop(("nat",), lambda comment: comment == owner.comment)


# --- ports ----------------------------------------------------------------------------------------------------


def _ensure_shared(family: int, marking: str, bit: int) -> None:
    """The chains that all containers share, and the rules that lead there.

    marking  the chain that marks what shall be masqueraded; another program's if bit is negative
    """
    have = _listed(family, "nat")
    lines: list[str] = []
    rules: list[str] = []
    parents = [p for p in _PARENTS if bit >= 0 or p[0] == _DNAT]
    if bit >= 0:
        mark = f"{1 << bit:#x}/{1 << bit:#x}"
        rules = [f"-A {marking} -j MARK --set-xmark {mark}", f"-A {_MASQ} -m mark --mark {mark} -j MASQUERADE"]
    for chain in dict.fromkeys([*(p[0] for p in parents), marking]):
        if f"-N {chain}" not in have and (bit >= 0 or chain != marking):
            lines.append(f":{chain} - [0:0]")
    lines += [rule for rule in rules if rule not in have]
    for chain, parent, match, first in parents:
        if not any(h.startswith(f"-A {parent} ") and h.endswith(f"-j {chain}") for h in have):
            lines.append(f"{f'-I {parent} 1' if first else f'-A {parent}'} {match} -j {chain}")
    if lines:
        _restore(family, {"nat": lines})


def marking_chain(bit: int) -> str:
    """The chain that marks with this bit: the reference plugin's for its own, 13."""
    return _SETMARK if bit == _USUAL_BIT else f"OCIRT-SETMARK-{bit}"


def _conditions(request: Request, family: int) -> list[str]:
    """conditionsV4 or conditionsV6: words of a match, each for itself in a line of iptables-restore."""
    key = "conditionsV4" if family == 2 else "conditionsV6"
    words = protocol.array(request.config, key)
    if not all(isinstance(word, str) and word and not any(c.isspace() for c in word) for word in words):
        raise CNIError(protocol.INVALID_CONFIG, f"invalid value of {key}", f"{words!r} must be words without spaces")
    return words


def map_ports(
    request: Request,
    mappings: Sequence[PortMapping],
    containers: Mapping[int, Address],
    *,
    snat: bool,
    everyone: bool,
    marking: str,
    bit: int,
) -> None:
    """Rules for each mapping to the container's address of each family; CNIError names the holder of a taken port.

    What needs it is masqueraded by the chain `marking`; see `_ensure_shared`.
    """
    from ocirt.cni.ports import for_family

    owner = links.owner(request)
    try:
        for family, address in containers.items():
            chosen = for_family(mappings, family)
            if not chosen:
                continue
            _ensure_shared(family, marking, bit)
            _refuse_taken(family, chosen, owner)
            conditions = " ".join(_conditions(request, family))
            who = "everyone" if everyone else "network" if snat else ""
            lines = [x for m in chosen for x in _rules(family, m, address, owner, (marking, who), conditions)]
            _restore(family, {"nat": lines})
    except BaseException:
        unmap_ports(request)
        raise


def _match(mapping: PortMapping) -> str:
    last = mapping.host + mapping.count - 1
    ports = f"{mapping.host}:{last}" if mapping.count > 1 else str(mapping.host)
    from ocirt.cni.address import ip_text

    where = f"-d {ip_text(mapping.address)} " if mapping.address else ""
    return f"{where}-p {mapping.protocol} -m {mapping.protocol} --dport {ports}"


def _rules(
    family: int, mapping: PortMapping, address: Address, owner: Owner, masquerading: tuple[str, str], conditions: str
) -> list[str]:
    from ocirt.cni.address import ip_text

    comment = _quoted(owner)
    match = f"-A {_DNAT} {_match(mapping)}"
    lines: list[str] = []
    marking, who = masquerading
    if who == "everyone":
        lines.append(f"{match} {comment} -j {marking}")
    elif who:
        lines.append(f"{match} -s {cidr_text(network_of(address))} {comment} -j {marking}")
        if family in _LOOPBACK:
            lines.append(f"{match} -s {_LOOPBACK[family]} {comment} -j {marking}")
    target = ip_text(address[1])
    to = f"[{target}]" if family == 10 else target
    if mapping.is_range or mapping.count == 1:
        port = f":{mapping.inside}" if mapping.count == 1 else ""
        lines.append(f"{match} {conditions} {comment} -j DNAT --to-destination {to if port else target}{port}")
        return lines
    from ocirt.cni.ports import PortMapping as One

    for i in range(mapping.count):
        single = One(mapping.protocol, mapping.address, mapping.host + i, mapping.inside + i)
        lines.append(
            f"-A {_DNAT} {_match(single)} {conditions} {comment} -j DNAT --to-destination {to}:{single.inside}"
        )
    return lines


def refuse_taken(family: int, mappings: Sequence[PortMapping], owner: Owner) -> None:
    """CNIError if a rule has one of the ports (for backends that don't use rules)."""
    try:
        _listed(family, "nat")
    except CNIError:
        return  # no iptables, no rules
    _refuse_taken(family, mappings, owner)


def _refuse_taken(family: int, mappings: Sequence[PortMapping], owner: Owner) -> None:
    """CNIError if a rule of another attachment, ours or the reference plugin's, has one of the ports."""
    from ocirt.cni.address import ip_text

    wanted: dict[tuple[str, int], PortMapping] = {}
    for m in mappings:
        wanted.update(((m.protocol, port), m) for port in range(m.host, m.host + m.count))
    for line in _listed(family, "nat"):
        if " -j DNAT " not in line or "--dport " not in line or _comment_of(line) == owner.comment:
            continue
        words = line.split()
        first, _, last = words[words.index("--dport") + 1].partition(":")
        kind = words[words.index("-p") + 1] if "-p" in words else ""
        where = words[words.index("-d") + 1].split("/")[0] if "-d" in words else ""
        for port in range(int(first), int(last or first) + 1):
            mine = wanted.get((kind, port))
            if mine is not None and (not where or not mine.address or where == ip_text(mine.address)):
                comment = _comment_of(line)
                holder = table.holder(comment) if comment else f"the iptables rule {line!r}"
                raise CNIError(protocol.INTERNAL, f"host port {port}/{kind} is taken by {holder}")


def unmap_ports(request: Request) -> None:
    """Delete the rules of the attachment's ports."""
    comment = links.owner(request).comment
    _drop(("nat",), lambda other: other == comment)


def check_ports(request: Request) -> None:
    """CNIError if the attachment has no rule."""
    comment = links.owner(request).comment
    if not any(_comment_of(line) == comment for line in _listed_everywhere("nat")):
        raise CNIError(INTERNAL, "the rules that map the ports are missing")


# --- the firewall ---------------------------------------------------------------------------------------------


def accept(owner: Owner, addresses: Iterable[str], admin: str) -> None:
    """Accept what the container sends and what answers it, before the host's own rules of FORWARD.

    `admin` is a chain that is asked before, for rules of whoever runs the host.
    """
    for family, found in _by_family(addresses).items():
        have = _listed(family, "filter")
        lines = [] if f"-N {_FORWARD}" in have else [f":{_FORWARD} - [0:0]"]
        if not any(h.startswith("-A FORWARD ") and h.endswith(f"-j {_FORWARD}") for h in have):
            lines.append(f'-I FORWARD 1 -m comment --comment "CNI firewall plugin rules" -j {_FORWARD}')
        if f"-N {admin}" not in have:
            lines.append(f":{admin} - [0:0]")
        if not any(h.startswith(f"-A {_FORWARD} ") and h.endswith(f"-j {admin}") for h in have):
            lines.append(f'-I {_FORWARD} 1 -m comment --comment "CNI firewall plugin rules" -j {admin}')
        for address in found:
            ip, comment = _host(address), _quoted(owner)
            lines.append(f"-A {_FORWARD} -d {ip} -m conntrack --ctstate RELATED,ESTABLISHED,DNAT {comment} -j ACCEPT")
            lines.append(f"-A {_FORWARD} -s {ip} {comment} -j ACCEPT")
        _restore(family, {"filter": lines})


def unaccept(owner: Owner) -> None:
    """Delete those rules."""
    _drop(("filter",), lambda comment: comment == owner.comment)


def check_accepted(owner: Owner) -> None:
    """CNIError if they are missing."""
    if not any(_comment_of(line) == owner.comment for line in _listed_everywhere("filter")):
        raise CNIError(INTERNAL, "the rules that accept the container's traffic are missing")
