"""When and where the process runs: scheduler, I/O priority, memory policy, personality, CPU affinity.

config.md, Linux Process; config-linux.md, Memory policy and Personality.
"""

from __future__ import annotations

import posix as os

from ocirt.linux import sched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

#: linux/sched.h
POLICIES = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
SCHED_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}

#: linux/ioprio.h
IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_WHO_PGRP = 2
_IOPRIO_CLASS_SHIFT = 13

#: linux/mempolicy.h
MEMORY_MODES = {
    "MPOL_DEFAULT": 0,
    "MPOL_PREFERRED": 1,
    "MPOL_BIND": 2,
    "MPOL_INTERLEAVE": 3,
    "MPOL_LOCAL": 4,
    "MPOL_PREFERRED_MANY": 5,
    "MPOL_WEIGHTED_INTERLEAVE": 6,
}
MEMORY_FLAGS = {
    "MPOL_F_STATIC_NODES": 1 << 15,
    "MPOL_F_RELATIVE_NODES": 1 << 14,
    "MPOL_F_NUMA_BALANCING": 1 << 13,
}

#: sys/personality.h
DOMAINS = {"LINUX": 0x0000, "LINUX32": 0x0008}


def reset_affinity(plan: Plan) -> None:
    """set the CPUs to run on

    A container started by a pinned process would stay pinned: it gets all that
    its cpuset allows. For exec, execCPUAffinity decides.
    """
    if plan.cpu_affinity:
        os.sched_setaffinity(0, plan.cpu_affinity)
    elif plan.cpu_affinity is None:
        try:
            # the kernel cuts the mask down to the cpuset's
            os.sched_setaffinity(0, range(1024))
        except OSError:
            pass  # somebody (a sandbox) denies it: what was inherited stays


def parse_list(text: str) -> list[int]:
    """A list such as `0-3,7` as numbers (cpuset(7), List format); the text has been validated."""
    numbers: list[int] = []
    for part in text.split(","):
        if part.strip():
            first, _, last = part.strip().partition("-")
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def set_scheduler(plan: Plan) -> None:
    """set the scheduling policy"""
    scheduler = plan.process.get("scheduler")
    if not scheduler:
        return
    flags = 0
    for name in scheduler.get("flags") or ():
        flags |= SCHED_FLAGS[name]
    policy = scheduler["policy"]
    sched.sched_setattr(
        POLICIES[policy],
        flags,
        scheduler.get("nice", 0),
        scheduler.get("priority", 0),
        scheduler.get("runtime", 0),
        scheduler.get("deadline", 0),
        scheduler.get("period", 0),
        shown=f"sched_setattr({policy})",
    )


def set_io_priority(plan: Plan) -> None:
    """set the I/O priority

    config.md: for the whole process group. Init leads its own group, so that
    setting the group is setting it alone; after execve its children inherit it.
    """
    priority = plan.process.get("ioPriority")
    if not priority:
        return
    value = IO_CLASSES[priority["class"]] << _IOPRIO_CLASS_SHIFT | priority["priority"]
    who = _IOPRIO_WHO_PGRP if os.getpgrp() == os.getpid() else _IOPRIO_WHO_PROCESS
    sched.ioprio_set(who, 0, value)


def set_memory_policy(plan: Plan) -> None:
    """set the NUMA memory policy"""
    policy = plan.linux.get("memoryPolicy")
    if not policy:
        return
    mode = MEMORY_MODES[policy["mode"]]
    for name in policy.get("flags") or ():
        mode |= MEMORY_FLAGS[name]
    nodes = parse_list(policy.get("nodes") or "")
    sched.set_mempolicy(mode, nodes, shown=f"set_mempolicy({policy['mode']}, nodes={policy.get('nodes', '')!r})")


def set_personality(plan: Plan) -> None:
    """set the execution domain"""
    personality = plan.linux.get("personality")
    if personality:
        sched.personality(DOMAINS[personality["domain"]])
