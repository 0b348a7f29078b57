"""hosts(5) and resolv.conf(5) of a container."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_HOST_RESOLV_CONF = "/etc/resolv.conf"
_LOCALHOST = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::0\tip6-localnet\n"
    "ff00::0\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)


def hosts(record: Mapping[str, Any]) -> str:
    """The text of /etc/hosts: localhost, and the container's own names for each of its addresses."""
    names = " ".join(record.get("names") or ())
    lines = [
        f"{address.partition('/')[0]}\t{names}\n" for item in record["networks"] for address in item.get("ips") or ()
    ]
    return _LOCALHOST + "".join(lines)


def resolv_conf(record: Mapping[str, Any], wish: Mapping[str, list[str]]) -> str:
    """The text of /etc/resolv.conf.

    Servers are those of the flags; else the resolver of the container's own
    namespace if there is one; else those that its networks name; else the host's.
    """
    told: list[dict[str, Any]] = [item.get("dns") or {} for item in record["networks"]]
    chosen = list(wish.get("servers") or ()) or servers(record)
    if record.get("resolver"):
        chosen = [str(record["resolver"])]
    search = list(wish.get("searches") or ())
    options = list(wish.get("options") or ())
    for dns in told:
        if not wish.get("searches"):
            search += [s for s in dns.get("search") or () if s not in search]
        if not wish.get("options"):
            options += [o for o in dns.get("options") or () if o not in options]
    host = host_servers()
    lines = [f"nameserver {server}\n" for server in chosen]
    search = search or host["search"]
    if search and search != ["."]:
        lines.append(f"search {' '.join(search)}\n")
    if options or host["options"]:
        lines.append(f"options {' '.join(options or host['options'])}\n")
    return "".join(lines)


def servers(record: Mapping[str, Any]) -> list[str]:
    """The servers that its networks name, else the host's."""
    told: list[dict[str, Any]] = [item.get("dns") or {} for item in record["networks"]]
    named: list[str] = [s for dns in told for s in dns.get("nameservers") or ()]
    return list(dict.fromkeys(named)) or host_servers()["nameserver"]


def host_servers(path: str = _HOST_RESOLV_CONF) -> dict[str, list[str]]:
    """The host's servers, search list and options, without servers on its loopback, which nobody inside can reach.

    If that leaves none, those that systemd-resolved itself asks.
    """
    found = _read(path)
    reachable = [s for s in found["nameserver"] if not s.startswith("127.") and s != "::1"]
    if not reachable and found["nameserver"] and path == _HOST_RESOLV_CONF:
        reachable = _read("/run/systemd/resolve/resolv.conf")["nameserver"]
    return {**found, "nameserver": reachable}


def _read(path: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError:
        return found
    for line in lines:
        words = line.split()
        if len(words) < 2 or words[0][0] in "#;":
            continue
        if words[0] == "nameserver":
            found["nameserver"].append(words[1])
        elif words[0] == "search":
            found["search"] = words[1:]
        elif words[0] == "domain" and not found["search"]:
            found["search"] = words[1:2]
        elif words[0] == "options":
            found["options"] += words[1:]
    return found
