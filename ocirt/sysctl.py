"""Kernel parameters: config-linux.md, Sysctl. Which are allowed, validation decides."""

from __future__ import annotations

import posix as os

from ocirt.errors import from_oserror
from ocirt.linux.oslike import fsencode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan


def write_sysctls(plan: Plan) -> None:
    """write the kernel parameters

    Through the private procfs: a path of the container could have been mounted
    over, so that the value would go to another file (CVE-2025-52881).
    """
    for name, value in (plan.linux.get("sysctl") or {}).items():
        path = "sys/" + file_of(name)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=plan.proc)
            try:
                os.write(fd, fsencode(value))
            finally:
                os.close(fd)
        except OSError as error:
            raise from_oserror(error, f"linux.sysctl.{name}: write {value!r} to /proc/{path}") from None


def file_of(name: str) -> str:
    """`net.ipv4.conf.eth0/1.x` names net/ipv4/conf/eth0.1/x: as sysctl(8), / and . change places.

    The first separator decides which of the two the name is written with.
    """
    for character in name:
        if character == "/":
            return name
        if character == ".":
            break
    return name.translate({ord("."): "/", ord("/"): "."})
