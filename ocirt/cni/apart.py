"""Deleting an interface without waiting for what nobody sees.

RTM_DELLINK takes the interface out of everybody's sight in about a millisecond.
Then the kernel waits until the last one who may still be looking at its memory
is through (rcu_barrier in netdev_run_todo: 20 ms and more), and so does closing a
nfnetlink socket by which something was deleted. Both waits are left to a process
of their own, a child of a child, which ends with them.
"""

from __future__ import annotations

import os
import select
import time

from ocirt.errors import Error
from ocirt.linux import netlink_route as route
from ocirt.linux.netlink import ENODEV

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocirt.linux.netlink import Socket
    from ocirt.linux.netlink_route import Link


def delete(host: Socket, link: Link, held: Iterable[int] = ()) -> None:
    """Delete a link of the caller's namespace; it is gone from there (and its other end from where that is).

    held: descriptors whose last closing shall be the other process's. Raises
    Error as RTM_DELLINK does, but for a link that is gone.
    """
    ended = _start(link, held)
    try:
        delay = 0.0001
        while ended >= 0 and not select.select([ended], [], [], 0)[0]:
            if _is_gone(host, link):
                return
            time.sleep(delay)
            delay = min(delay * 2, 0.005)
    finally:
        if ended >= 0:
            os.close(ended)
    # it couldn't be started, or didn't succeed: here is the answer why, or the end of it
    host.request(route.delete_link(index=link.index), accept=(ENODEV,))


def _is_gone(host: Socket, link: Link) -> bool:
    return route.link(host, index=link.index) is None


def _start(link: Link, held: Iterable[int]) -> int:
    """Start the process; a descriptor that becomes readable when it ends, -1 if it can't be started."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        return -1
    if pid == 0:
        try:
            # locks and pipes of the caller's would be held as long as this lives
            _close_all_but({writing, *held})
            if os.fork() == 0:
                with route.open_route() as host:
                    host.request(route.delete_link(index=link.index), accept=(ENODEV,))
        except (OSError, Error):
            pass  # the caller sees that it has ended, and that the link is there
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    return reading


def _close_all_but(kept: set[int]) -> None:
    first = 0
    for fd in sorted(kept):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, 1 << 30)
