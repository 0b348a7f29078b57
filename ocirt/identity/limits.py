"""Resource limits: config.md, POSIX process (rlimits); getrlimit(2)."""

from __future__ import annotations

import posix as os
import resource

from ocirt.errors import Error, doing, from_oserror
from ocirt.linux import sched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.spec import Process

#: asm-generic/resource.h
RLIMITS = {
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}


_UNLIMITED = (1 << 64) - 1


def apply(pid: int, process: Process) -> None:
    """Set the limits of `pid` (0: this process); raises Error with EPERM when a hard limit may not be raised.

    That of descriptors isn't lowered yet: what is left to do needs some (limit_descriptors).
    """
    for limit in process.get("rlimits") or ():
        name, soft, hard = limit["type"], limit["soft"], limit["hard"]
        if name == "RLIMIT_NOFILE":
            now_soft, now_hard = (value & _UNLIMITED for value in resource.prlimit(pid, RLIMITS[name]))
            soft, hard = max(soft, now_soft), max(hard, now_hard)
        _set(pid, name, soft, hard)


def _set(pid: int, name: str, soft: int, hard: int) -> None:
    sched.prlimit(pid, RLIMITS[name], soft, hard, f"prlimit({name}, soft={soft}, hard={hard})")


def limit_descriptors(plan: Plan) -> None:
    """set the limit of descriptors"""
    for limit in plan.process.get("rlimits") or ():
        if limit["type"] == "RLIMIT_NOFILE":
            _set(0, "RLIMIT_NOFILE", limit["soft"], limit["hard"])


def set_oom_score(pid: int, score: int) -> None:
    """Set process.oomScoreAdj; by the runtime, because a process that isn't dumpable can't do it itself."""
    path = f"/proc/{pid}/oom_score_adj"
    with doing(f"set process.oomScoreAdj to {score}"):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"%d" % score)
        except OSError as error:
            hint = "lowering it takes CAP_SYS_RESOURCE" if error.errno == 13 else ""
            raise from_oserror(error, f"write {score} to {path}", hint) from None
        finally:
            os.close(fd)


def set_rlimits(plan: Plan) -> None:
    """set the resource limits

    Late, so that they don't starve set-up. In a user namespace nobody may raise
    a hard limit: then the runtime, which may be privileged, does it from outside.
    """
    if not plan.process.get("rlimits"):
        return
    try:
        apply(0, plan.process)
    except Error as error:
        if error.errno != 1:
            raise
        plan.channel.send("limits")
        plan.channel.receive("limited")
