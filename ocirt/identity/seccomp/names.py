"""What the names in `linux.seccomp` mean: one table for the compiler, `features` and `dump`."""

from __future__ import annotations

from ocirt.linux import seccomp as kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

#: Actions that carry a number (config-linux.md: others with an errnoRet must be refused).
WITH_NUMBER = (kernel.RET_ERRNO, kernel.RET_TRACE)

EPERM = 1

ACTIONS: Mapping[str, int] = {
    "SCMP_ACT_KILL": kernel.RET_KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": kernel.RET_KILL_PROCESS,
    "SCMP_ACT_KILL_THREAD": kernel.RET_KILL_THREAD,
    "SCMP_ACT_TRAP": kernel.RET_TRAP,
    "SCMP_ACT_ERRNO": kernel.RET_ERRNO,
    "SCMP_ACT_TRACE": kernel.RET_TRACE,
    "SCMP_ACT_ALLOW": kernel.RET_ALLOW,
    "SCMP_ACT_LOG": kernel.RET_LOG,
    "SCMP_ACT_NOTIFY": kernel.RET_USER_NOTIF,
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


def supported_flags() -> list[str]:
    """The flags that this kernel knows, for `features`."""
    listener = kernel.FILTER_FLAG_NEW_LISTENER
    return [
        name
        for name, bit in FLAGS.items()
        # WAIT_KILLABLE_RECV is refused without a listener
        if kernel.supports(bit | listener if bit == kernel.FILTER_FLAG_WAIT_KILLABLE_RECV else bit)
    ]
