"""The command line of the proxy: docker-proxy's, and one of our own for all ports of a container.

    ocirt-proxy -proto tcp -host-ip 0.0.0.0 -host-port 8080 -container-ip 10.88.0.2 -container-port 80 [-use-listen-fd]

As with docker-proxy, descriptor 3 is told `0\\n` when it works or `1\\n` and the
error, and with -use-listen-fd descriptor 4 is the socket, bound and listening.

    ocirt-proxy -ports FD     a JSON description of sockets that were opened by whoever started this (ocirt.cni.proxies)
"""

from __future__ import annotations

import _signal
import _socket
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

_STATUS, _LISTEN = 3, 4
_VERSION = "ocirt-proxy"
_TEXT = ("proto", "host-ip", "host-port", "container-ip", "container-port", "ports")
_SWITCHES = ("use-listen-fd", "v", "h")
_BACKLOG = 4096
_NOBODY = 65534
_ANY = "0.0.0.0"  # noqa: S104  docker-proxy's default
_USAGE = __doc__


def launch() -> NoReturn:
    """Run the process's own command line and leave."""
    os._exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Serve until SIGTERM; 1 if it can't, 2 for arguments that aren't right."""
    try:
        options = _parse(arguments)
    except ValueError as error:
        os.write(2, f"ocirt-proxy: {error}\n".encode())
        return 2
    if "h" in options or "v" in options:
        os.write(1, f"{_VERSION}\n{_USAGE}\n".encode() if "h" in options else f"{_VERSION}\n".encode())
        return 0
    status = _STATUS if _is_open(_STATUS) else 2
    for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGQUIT):
        _signal.signal(number, leave)
    try:
        import gc

        gc.set_threshold(100_000)  # connections are freed as they end; there are no cycles in them
        _raise_file_limit()
        if "ports" in options:
            return _serve_all(int(options["ports"]))
        return _serve_one(options, status)
    except (OSError, ValueError) as error:
        _tell(status, f"1\n{error}" if status == _STATUS else f"ocirt-proxy: {error}\n")
        return 1


def leave(_number: int, _frame: object) -> None:
    """End the process at a signal: nothing has to be put in order."""
    os._exit(0)


def _parse(arguments: Sequence[str]) -> dict[str, str]:
    """Options as Go's flag package takes them: -name value, -name=value, one dash or two."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if not word.startswith("-") or (name not in _TEXT and name not in _SWITCHES):
            raise ValueError(f"unknown argument {word!r} (known are {', '.join('-' + n for n in _TEXT + _SWITCHES)})")
        if name in _SWITCHES:
            if not equals or value.lower() in ("1", "t", "true"):
                found[name] = "true"
            continue
        if not equals:
            if not rest:
                raise ValueError(f"-{name} needs a value")
            value = rest.pop(0)
        found[name] = value
    return found


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _tell(fd: int, text: str) -> None:
    try:
        os.write(fd, text.encode("utf-8", "replace"))
    except OSError:
        pass  # nobody listens any more


def _raise_file_limit() -> None:
    """Each connection takes two files, a busy one six."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve_one(options: dict[str, str], status: int) -> int:
    """docker-proxy's way: one port."""
    from ocirt.proxy.loop import Loop

    kind = options.get("proto", "tcp")
    if kind not in ("tcp", "udp"):
        raise ValueError(f"unsupported protocol {kind!r} (must be tcp or udp)")
    backend = (options.get("container-ip", ""), _port(options, "container-port"))
    _family(backend[0])
    if "use-listen-fd" in options:
        made = _socket.socket(fileno=_LISTEN)
    else:
        made = open_port(kind, options.get("host-ip") or _ANY, _port(options, "host-port"))
    loop = Loop()
    _listen(loop, kind, made, backend)
    if status == _STATUS:
        _tell(status, "0\n")
        os.close(status)
    loop.run()
    return 0


def _port(options: dict[str, str], name: str) -> int:
    text = options.get(name, "")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise ValueError(f"-{name} is {text!r} (must be 1 to 65535)")
    return int(text)


def _family(address: str) -> int:
    family = _socket.AF_INET6 if ":" in address else _socket.AF_INET
    try:
        _socket.inet_pton(family, address)
    except OSError:
        raise ValueError(f"{address!r} is no IP address") from None
    return family


def open_port(kind: str, address: str, port: int) -> _socket.socket:
    """A socket bound to the address and port, listening if it is TCP; OSError."""
    family = _family(address)
    stream = kind == "tcp"
    made = _socket.socket(family, (_socket.SOCK_STREAM if stream else _socket.SOCK_DGRAM) | _socket.SOCK_CLOEXEC)
    try:
        if family == _socket.AF_INET6:
            made.setsockopt(_socket.IPPROTO_IPV6, _socket.IPV6_V6ONLY, 1)
        if stream:
            made.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if stream:
            made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"listen {kind} {address}:{port}: {error.strerror}") from error
    return made


def _listen(loop: Any, kind: str, made: _socket.socket, backend: tuple[str, int]) -> None:
    if kind == "tcp":
        from ocirt.proxy.bulk import Carriers
        from ocirt.proxy.tcp import Listener, Pipes

        Listener(loop, Pipes(), Carriers(loop), made, backend)
    else:
        from ocirt.proxy.udp import Listener as Datagrams

        Datagrams(loop, made, backend)


def _serve_all(description: int) -> int:
    """Our own way: {"record": fd, "status": fd, "fds": […], "sockets": [["tcp", address, port], …]} in memory."""
    from ocirt.jsontext import parse_json
    from ocirt.proxy.loop import Loop

    data: Any = parse_json(os.pread(description, os.fstat(description).st_size, 0), "the description of the ports")
    os.close(description)
    if not hold(data["record"]):
        return 0
    loop = Loop()
    shared: Any = None
    for fd, (kind, address, port) in zip(data["fds"], data["sockets"], strict=True):
        made = _socket.socket(fileno=fd)
        if kind == "tcp":
            from ocirt.proxy.bulk import Carriers
            from ocirt.proxy.tcp import Listener, Pipes

            if shared is None:
                shared = Pipes(), Carriers(loop)
                shared[0].fill()
            Listener(loop, shared[0], shared[1], made, (address, port))
        else:
            _listen(loop, kind, made, (address, port))
    become_nobody()
    _tell(data["status"], "0\n")
    os.close(data["status"])
    loop.run()
    return 0


def hold(record: int) -> bool:
    """Lock the record: the kernel tells by that lock which process serves these ports.

    False if the record was removed meanwhile: the ports aren't wanted any more.
    """
    import fcntl

    fcntl.lockf(record, fcntl.LOCK_EX)
    return os.fstat(record).st_nlink > 0


def become_nobody() -> None:
    """The ports are open: nothing is needed any more that root has."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
