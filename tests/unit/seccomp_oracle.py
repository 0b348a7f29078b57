"""libseccomp as the oracle: the program that it makes of a profile, called the way runc calls it."""

from __future__ import annotations

import ctypes
import os

from ocirt.identity.seccomp import names

OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
ATTRIBUTE_OPTIMIZE = 8
BINARY_TREE = 2
EEXIST = 17
UNKNOWN = -1


class Comparison(ctypes.Structure):
    """struct scmp_arg_cmp."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Refused(Exception):
    """libseccomp doesn't take the rule."""


def word(action: str, number: int | None) -> int:
    """SECCOMP_RET_*."""
    value = names.ACTIONS[action]
    return value | (1 if number is None else number) if value in names.WITH_NUMBER else value


class Libseccomp:
    """The library."""

    def __init__(self) -> None:
        self.lib = ctypes.CDLL(os.environ.get("LIBSECCOMP", "libseccomp.so.2"))
        self.lib.seccomp_init.restype = ctypes.c_void_p
        self.lib.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        self.lib.seccomp_rule_add_array.argtypes = (
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_void_p,
        )
        self.lib.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
        for name in ("seccomp_release", "seccomp_arch_add", "seccomp_export_bpf", "seccomp_attr_set"):
            getattr(self.lib, name).argtypes = {
                "seccomp_release": (ctypes.c_void_p,),
                "seccomp_arch_add": (ctypes.c_void_p, ctypes.c_uint32),
                "seccomp_export_bpf": (ctypes.c_void_p, ctypes.c_int),
                "seccomp_attr_set": (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32),
            }[name]

    def token(self, arch: str) -> int:
        """The library's token of a SCMP_ARCH_ name, 0 if it doesn't know it."""
        return int(self.lib.seccomp_arch_resolve_name(arch.removeprefix("SCMP_ARCH_").lower().encode()))

    def number(self, arch: str, call: str) -> int:
        """The number of a call, negative if the architecture hasn't got it."""
        return int(self.lib.seccomp_syscall_resolve_name_arch(self.token(arch), call.encode()))

    def program(self, profile: dict) -> bytes:
        """Classic BPF of `linux.seccomp`; raises Refused."""
        default = word(profile["defaultAction"], profile.get("defaultErrnoRet"))
        context = self.lib.seccomp_init(default)
        assert context
        try:
            for arch in profile.get("architectures", ()):
                result = self.lib.seccomp_arch_add(context, self.token(arch))
                assert result in (0, -EEXIST), (arch, result)
            if profile["syscalls"]:
                self.lib.seccomp_attr_set(context, ATTRIBUTE_OPTIMIZE, BINARY_TREE)
            for entry in profile["syscalls"]:
                self._add(context, entry, default)
            return self._export(context)
        finally:
            self.lib.seccomp_release(context)

    def _add(self, context: int, entry: dict, default: int) -> None:
        action = word(entry["action"], entry.get("errnoRet"))
        if action == default:
            return
        args = entry.get("args") or []
        repeated = len({arg["index"] for arg in args}) < len(args)
        for call in entry["names"]:
            number = self.lib.seccomp_syscall_resolve_name(call.encode())
            if number == UNKNOWN:
                continue
            for group in [[arg] for arg in args] if repeated else [args]:
                compared = [
                    Comparison(arg["index"], OPERATORS[arg["op"]], arg["value"], arg.get("valueTwo", 0))
                    for arg in group
                ]
                array = (Comparison * max(1, len(compared)))(*compared)
                result = self.lib.seccomp_rule_add_array(context, action, number, len(compared), array)
                if result:
                    raise Refused(call, group, result)

    def _export(self, context: int) -> bytes:
        fd = os.memfd_create("program", os.MFD_CLOEXEC)
        try:
            result = self.lib.seccomp_export_bpf(context, fd)
            assert result == 0, result
            return os.pread(fd, 1 << 20, 0)
        finally:
            os.close(fd)
