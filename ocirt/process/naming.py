"""Host and domain name: config.md, Hostname and Domainname."""

from __future__ import annotations

import _socket

from ocirt.linux import sched
from ocirt.linux.oslike import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan


def set_hostname(plan: Plan) -> None:
    """set the host name"""
    name = plan.config.get("hostname")
    if name:
        _socket.sethostname(name)


def set_domainname(plan: Plan) -> None:
    """set the domain name"""
    name = plan.config.get("domainname")
    if name:
        sched.setdomainname(fsencode(name))
