"""Rules about how the process runs: scheduler, CPU affinity, memory policy."""

from __future__ import annotations

from ocirt.validation.lists import check, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config, Scheduler
    from ocirt.validation.found import Found, Rule

#: MAX_NUMNODES of every kernel that is built today.
_MAX_NODES = 1024


def scheduler(config: Config, found: Found) -> None:
    """What sched_setattr takes: nice for the normal policies, priority for the real-time ones, the times for deadline.

    [sched_setattr(2)]
    """
    given = (config.get("process") or {}).get("scheduler")
    if not given:
        return
    policy, path = given["policy"], "process.scheduler"
    nice, priority = given.get("nice", 0), given.get("priority", 0)
    if policy == "SCHED_ISO":
        found.error(f"{path}.policy", "unsupported: Linux has reserved the name but doesn't implement it", policy)
    if policy in ("SCHED_OTHER", "SCHED_BATCH") and not -20 <= nice <= 19:
        found.error(f"{path}.nice", f"invalid nice value for {policy}, must be from -20 to 19", nice)
    if policy in ("SCHED_FIFO", "SCHED_RR"):
        if not 1 <= priority <= 99:
            found.error(f"{path}.priority", f"invalid priority for {policy}, must be from 1 to 99", priority)
    elif priority:
        found.error(f"{path}.priority", "can only be specified for SCHED_FIFO and SCHED_RR", priority)
    if policy == "SCHED_DEADLINE":
        _deadline(given, found)
        return
    for key in ("runtime", "deadline", "period"):
        if given.get(key):
            found.error(f"{path}.{key}", "can only be specified for SCHED_DEADLINE", given.get(key))


def _deadline(given: Scheduler, found: Found) -> None:
    path, runtime, deadline = "process.scheduler", given.get("runtime", 0), given.get("deadline", 0)
    period = given.get("period", 0) or deadline
    if runtime < 1024:
        found.error(f"{path}.runtime", "must be at least 1024 (nanoseconds)", runtime)
    if not runtime <= deadline <= period:
        message = "runtime must not be more than deadline, and deadline not more than period"
        found.error(path, message, dict(given))


def exec_cpu_affinity(config: Config, found: Found) -> None:
    """initial and final are lists of CPUs.

    [config.md, Linux Process]
    """
    affinity = (config.get("process") or {}).get("execCPUAffinity") or {}
    check(affinity.get("initial"), "process.execCPUAffinity.initial", found)
    check(affinity.get("final"), "process.execCPUAffinity.final", found)


def memory_policy(config: Config, found: Found) -> None:
    """ "Some modes require that there are no nodes, others that there is at least one"; flags have their modes too.

    [set_mempolicy(2)]
    """
    policy = (config.get("linux") or {}).get("memoryPolicy")
    if not policy:
        return
    path, mode = "linux.memoryPolicy", policy["mode"]
    nodes, flags = policy.get("nodes") or "", {*(policy.get("flags") or ())}
    try:
        some = bool(parse(nodes, _MAX_NODES))
    except ValueError as error:
        found.error(f"{path}.nodes", f"invalid memory policy node: {error}", nodes)
        return
    positions = flags & {"MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"}
    wrong = ""
    if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") and some:
        wrong = f"{mode} takes no nodes"
    elif mode in ("MPOL_BIND", "MPOL_INTERLEAVE", "MPOL_WEIGHTED_INTERLEAVE", "MPOL_PREFERRED_MANY") and not some:
        wrong = f"{mode} needs at least one node"
    elif mode in ("MPOL_PREFERRED", "MPOL_LOCAL") and positions and not some:
        wrong = f"{mode} without nodes takes neither MPOL_F_STATIC_NODES nor MPOL_F_RELATIVE_NODES"
    elif len(positions) == 2:
        wrong = "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other"
    elif "MPOL_F_NUMA_BALANCING" in flags and mode not in ("MPOL_BIND", "MPOL_PREFERRED_MANY"):
        wrong = "MPOL_F_NUMA_BALANCING is for MPOL_BIND and MPOL_PREFERRED_MANY"
    if wrong:
        found.error(path, f"set_mempolicy(2) would answer invalid argument: {wrong}", dict(policy))


RULES: tuple[Rule, ...] = (scheduler, exec_cpu_affinity, memory_policy)
