"""What the names in `linux.seccomp` mean: one table for the compiler, `features` and `dump`."""

from __future__ import annotations

from ocirt.linux import seccomp as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

# SECCOMP_RET_* of linux/seccomp.h
KILL_PROCESS = 0x80000000
KILL_THREAD = 0x00000000
TRAP = 0x00030000
ERRNO = 0x00050000
NOTIFY = 0x7FC00000
TRACE = 0x7FF00000
LOG = 0x7FFC0000
ALLOW = 0x7FFF0000

#: The part of a word that says what to do; the other 16 bits are the errno or the tracer's data.
ACTION_MASK = 0xFFFF0000
#: Actions that carry a number (config-linux.md: others with an errnoRet must be refused).
WITH_NUMBER = (ERRNO, TRACE)

EPERM = 1

ACTIONS: Mapping[str, int] = {
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_TRAP": TRAP,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_NOTIFY": NOTIFY,
}

#: SCMP_CMP_MASKED_EQ is "==" with a mask: `value` is the mask, `valueTwo` what it has to give.
OPERATORS: Mapping[str, str] = {
    "SCMP_CMP_NE": "!=",
    "SCMP_CMP_LT": "<",
    "SCMP_CMP_LE": "<=",
    "SCMP_CMP_EQ": "==",
    "SCMP_CMP_GE": ">=",
    "SCMP_CMP_GT": ">",
    "SCMP_CMP_MASKED_EQ": "==",
}

FLAGS: Mapping[str, int] = {
    "SECCOMP_FILTER_FLAG_TSYNC": kernel.FILTER_FLAG_TSYNC,
    "SECCOMP_FILTER_FLAG_LOG": kernel.FILTER_FLAG_LOG,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": kernel.FILTER_FLAG_SPEC_ALLOW,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": kernel.FILTER_FLAG_WAIT_KILLABLE_RECV,
}

#: Annotations of crun: names of calls that nobody knows are an error; a program, base64, instead of `linux.seccomp`;
#: where the agent listens.
FAIL_UNKNOWN = "run.oci.seccomp_fail_unknown_syscall"
BPF_DATA = "run.oci.seccomp_bpf_data"
RECEIVER = "run.oci.seccomp.receiver"


def supported_flags() -> list[str]:
    """The flags that this kernel knows, for `features`."""
    listener = kernel.FILTER_FLAG_NEW_LISTENER
    return [
        name
        for name, bit in FLAGS.items()
        # WAIT_KILLABLE_RECV is refused without a listener
        if kernel.supports(bit | listener if bit == kernel.FILTER_FLAG_WAIT_KILLABLE_RECV else bit)
    ]
