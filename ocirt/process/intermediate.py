"""The process between the runtime and init, where one is needed: it makes init inside the user namespace.

setns(2) to a pid namespace and both ways into a time namespace take effect for
children only (namespaces.needs_intermediate).
"""

from __future__ import annotations

import posix as os

from ocirt import namespaces
from ocirt.errors import Error
from ocirt.identity.user import become_root
from ocirt.linux import prctl, sched
from ocirt.process import init

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from ocirt.process.plan import Plan


def main(plan: Plan, inherited: set[int]) -> NoReturn:
    """Enter and make namespaces, start init as a child of the runtime, end; never returns."""
    try:
        # while this process is dumpable: it is no longer once it has changed its user
        offsets = namespaces.open_time_offsets() if "time" in plan.new else -1
        if "user" in plan.entered:
            plan.channel.receive("mapped")
            plan.mapped = True
            become_root(plan)
        prctl.set_dumpable(False)
        # init stands still until its pid has been told: its own messages come after that one
        told, tell = os.pipe2(os.O_CLOEXEC)
        pid = _make_init(plan, offsets)
        if pid == 0:
            os.close(tell)
            os.read(told, 1)
            os.close(told)
            init.main(plan, inherited)
        plan.channel.send("init", str(pid))
    except Error as error:
        error.context = ("enter the namespaces", *error.context)
        _tell(plan, error)
    except OSError as error:
        _tell(
            plan,
            Error(f"{error.filename or 'system call'}: {error.strerror}", error.errno or 0, ("enter the namespaces",)),
        )
    except BaseException as error:
        _tell(plan, Error(f"bug in ocirt: {type(error).__name__}: {error}"))
    finally:
        os._exit(0)


def _make_init(plan: Plan, offsets: int) -> int:
    """Clone init from inside; 0 in init."""
    here = set(plan.joined) - {"mount"}  # nothing of the container's root may be seen here: init joins it itself
    namespaces.join(plan.joined, here)
    plan.entered |= here
    make = plan.new - plan.entered - {"pid", "cgroup"}
    if make:
        sched.unshare(namespaces.flags(make))
        plan.entered |= make
    if "time" in plan.new:
        namespaces.write_time_offsets(offsets, plan.linux)
    flags = sched.CLONE_PARENT
    if "pid" in plan.new:
        flags |= sched.CLONE_NEWPID
        plan.entered.add("pid")
    return sched.clone(flags)


def _tell(plan: Plan, error: Error) -> None:
    try:
        plan.channel.send_error(error)
    except Error:
        pass
