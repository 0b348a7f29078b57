"""Waiting for files to change (inotify(7)), and the process that does so for an overlay's peers.

ocirt.cni.watching -ports FD    see ocirt.cni.plugins.overlay
"""

from __future__ import annotations

import _signal
import os
import select
import sys

from ocirt.errors import Error
from ocirt.linux import libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, NoReturn

_CHANGES = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # modify, close_write, moved, create, delete
_FLAGS = 0o2000000 | 0o4000  # close-on-exec, non-blocking
_LINK_GROUP = 1  # RTNLGRP_LINK
_PATIENCE = 5.0  # between looks at a path that isn't there


def changes(paths: Iterable[str]) -> int:
    """An inotify descriptor that becomes readable when something changes in a directory or beside a file of `paths`.

    An editor writes another file and renames it: so a file is watched by its directory.
    """
    fd = libc.call("inotify_init1", _FLAGS)
    for path in {p if os.path.isdir(p) else os.path.dirname(p) for p in paths}:
        if os.path.isdir(path):
            libc.call("inotify_add_watch", fd, path.encode(), _CHANGES)
    return fd


def settle() -> None:
    """A change is rarely alone: wait for what belongs to it."""
    select.select([], [], [], 0.05)


def launch() -> NoReturn:
    """Run the process's own command line and leave."""
    from ocirt.jsontext import parse_json
    from ocirt.proxy.main import hold, leave

    number = int(sys.argv[sys.argv.index("-ports") + 1])
    data: Any = parse_json(os.pread(number, os.fstat(number).st_size, 0), "the description of the overlay")
    os.close(number)
    _signal.signal(_signal.SIGTERM, leave)
    if not hold(data["record"]):
        os._exit(0)
    _keep(data["plugin"], data["link"], data["status"])
    os._exit(0)


def _keep(plugin: dict[str, Any], link: str, status: int) -> None:
    """Tell the kernel of the peers whenever they change, until the interface to them is gone."""
    from ocirt.cni import protocol
    from ocirt.cni.plugins import overlay
    from ocirt.linux import netlink_route as route

    peers = str(protocol.get(plugin, "peers"))
    with route.open_route() as news, route.open_route() as host:
        news.join(_LINK_GROUP)
        while route.link(host, link) is not None:
            files = changes([peers])
            try:
                try:
                    overlay.sync(plugin)
                except (Error, OSError):
                    pass  # no address, or nothing there: the peers stay, CHECK and `network reload` say why
                if status >= 0:
                    os.write(status, b"0\n")
                    os.close(status)
                    status = -1
                _wait(news, files, None if os.path.exists(peers) else _PATIENCE)
            finally:
                os.close(files)


def _wait(news: Any, files: int, patience: float | None) -> None:
    """Until files have changed, interfaces have, or patience is at an end."""
    readable, _, _ = select.select([files, news.fileno()], [], [], patience)
    if files in readable:
        settle()
    if news.fileno() in readable:
        try:
            for _ in news.receive():
                pass
        except OSError:
            pass  # more news than the queue holds: the link is asked for in any case
