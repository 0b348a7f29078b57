"""The device rules as an eBPF program on the cgroup (cgroup-v2.rst, Device controller)."""

from __future__ import annotations

import os

from ocirt.cgroups import devices, files
from ocirt.errors import Error, doing
from ocirt.linux import bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

NAME = "ocirt_devices"

#: struct bpf_cgroup_dev_ctx: access_type (low half the type, high half the access), major, minor.
_BLOCK, _CHARACTER = 1, 2
_CONTEXT, _RETURN, _WANTED, _TYPE, _MAJOR, _MINOR, _SCRATCH = 1, 0, 2, 3, 4, 5, 6


def compile(rules: list[devices.Rule]) -> bytes:
    """The program: 1 is allowed, 0 is not.

    The rules stand in it last first. Each takes from the wanted access (mknod, read, write) what it
    allows, and denies if it denies any that is left; so for each of the three the last rule that speaks of
    it decides. What is left at the end is denied.
    """
    i = bpf.instruction
    code = [
        i(bpf.LDX_W, _WANTED, _CONTEXT, 0),
        i(bpf.MOV_REG, _TYPE, _WANTED),
        i(bpf.AND_IMM, _TYPE, immediate=0xFFFF),
        i(bpf.RSH_IMM, _WANTED, immediate=16),
        i(bpf.LDX_W, _MAJOR, _CONTEXT, 4),
        i(bpf.LDX_W, _MINOR, _CONTEXT, 8),
    ]
    decided = ""
    for rule in reversed(rules):
        allow, kind, major, minor, access = rule
        code.extend(_block(allow, kind, major, minor, access))
        if major is None and minor is None and access == devices.ALL:
            decided += kind
            if "b" in decided and "c" in decided:
                break  # nothing passes these two
    code += [i(bpf.MOV_IMM, _RETURN, immediate=0), i(bpf.EXIT)]
    return b"".join(code)


def _block(allow: bool, kind: str, major: int | None, minor: int | None, access: int) -> list[bytes]:
    i = bpf.instruction
    answer = [i(bpf.MOV_IMM, _RETURN, immediate=int(allow)), i(bpf.EXIT)]
    if access == devices.ALL:
        decide = answer
    elif allow:
        decide = [
            i(bpf.AND_IMM, _WANTED, immediate=devices.ALL & ~access),
            i(bpf.JNE_IMM, _WANTED, offset=len(answer)),
            *answer,
        ]
    else:
        decide = [
            i(bpf.MOV_REG, _SCRATCH, _WANTED),
            i(bpf.AND_IMM, _SCRATCH, immediate=access),
            i(bpf.JEQ_IMM, _SCRATCH, offset=len(answer)),
            *answer,
        ]
    tests = [(_TYPE, _BLOCK if kind == "b" else _CHARACTER)]
    tests += [(register, number) for register, number in ((_MAJOR, major), (_MINOR, minor)) if number is not None]
    block: list[bytes] = []
    for position, (register, number) in enumerate(tests):
        to_end = len(tests) - position - 1 + len(decide)
        block.append(i(bpf.JNE_IMM, register, offset=to_end, immediate=number))
    return block + decide


def apply(directory: str, entries: Sequence[Mapping[str, Any]] | None) -> None:
    """Load the rules' program and put it in the place of the one from before, if any, without a gap.

    A caller that may not load programs loads none: it is in a user namespace, or no root, where
    the kernel lets nobody make a device.
    """
    program = compile(devices.rules(entries))
    with doing("allow devices"):
        try:
            new = bpf.load(bpf.PROG_TYPE_CGROUP_DEVICE, program, NAME, bpf.CGROUP_DEVICE)
        except Error as error:
            if error.errno == files.EPERM and unprivileged():
                return
            raise
        cgroup = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _replace(cgroup, new)
        finally:
            os.close(cgroup)
            os.close(new)


def _replace(cgroup: int, new: int) -> None:
    old = [fd for fd in (bpf.by_id(number) for number in bpf.attached(cgroup, bpf.CGROUP_DEVICE)) if _ours(fd)]
    try:
        left = old
        try:
            bpf.attach(cgroup, new, bpf.CGROUP_DEVICE, old[0] if old else -1)
            left = old[1:]
        except Error as error:
            if not old or error.errno != files.EINVAL:
                raise
            # before Linux 5.6: both hold for a moment, which never allows more than either
            bpf.attach(cgroup, new, bpf.CGROUP_DEVICE)
        for fd in left:
            bpf.detach(cgroup, fd, bpf.CGROUP_DEVICE)
    finally:
        for fd in old:
            os.close(fd)


def _ours(fd: int) -> bool:
    if bpf.name(fd) == NAME:
        return True
    os.close(fd)  # systemd's, say: it stays, and has its say beside ours
    return False


def unprivileged() -> bool:
    """Is the runtime no root, or that of a user namespace other than the first?"""
    return os.geteuid() != 0 or files.read_or("/proc/self/uid_map").split() != ["0", "0", "4294967295"]
