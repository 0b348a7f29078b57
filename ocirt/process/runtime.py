"""The runtime's side: starting init, and the conversation with it."""

from __future__ import annotations

import gc
import posix as os

from ocirt import log, namespaces
from ocirt.errors import Error, doing, from_oserror
from ocirt.linux import sched
from ocirt.process import init, sync

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan


def spawn(plan: Plan, cgroup: int = -1) -> tuple[int, sync.Channel]:
    """Start init: (its pid as the runtime sees it, the runtime's end of the handshake).

    cgroup  directory fd of a cgroup v2 to start in, or -1

    One clone makes init with all its namespaces; a process stands in between only
    where the kernel leaves no other way (namespaces.needs_intermediate). Init then
    waits for `go`. Raises Error; nothing is left running then.
    """
    log.step("clone the container's process")
    ours, theirs = sync.pair()
    plan.channel = theirs
    inherited = _descriptors(plan)
    through = namespaces.needs_intermediate(plan.new, plan.joined)
    first: frozenset[str] = frozenset()
    if through:
        first = plan.new & {"user"}
    elif "user" not in plan.joined:
        first = plan.new - {"cgroup", "time"}
    if plan.userns:
        from ocirt import userns

        userns.own_streams(plan)
    gc.freeze()  # the collector must not touch, and so copy, the pages that init shares with us
    gc.disable()
    if through:
        from ocirt.process import intermediate  # here: init can't import anything

        plan.entered = set(first)
        pid = sched.clone(namespaces.flags(first))
        if pid == 0:
            ours.socket.detach()
            intermediate.main(plan, inherited)
    else:
        with namespaces.children_in(plan.new, plan.joined, plan.linux) as children:
            plan.entered = set(first) | children.kinds
            pid = sched.clone(namespaces.flags(first), cgroup)
            if pid == 0:
                ours.socket.detach()
                init.main(plan, inherited)
    gc.enable()
    gc.unfreeze()
    theirs.close()
    try:
        if "user" in first:
            from ocirt import userns

            with doing("map the ids of the user namespace"):
                userns.write_mappings(pid, plan.linux)
            ours.send("mapped")
        if through:
            middle, pid = pid, int(ours.receive("init")[1])
            _reap(middle)
    except Error:
        _kill(pid)
        raise
    return pid, ours


def check_preserved(plan: Plan) -> None:
    """Refuse to pass on descriptors that aren't there, before anything is made."""
    for fd in range(3, 3 + plan.preserve_fds):
        try:
            os.fstat(fd)
        except OSError as error:
            raise from_oserror(error, f"--preserve-fds {plan.preserve_fds}: descriptor {fd}") from None


def _descriptors(plan: Plan) -> set[int]:
    """What init keeps open besides 0–2."""
    keep = {plan.channel.socket.fileno(), plan.console_socket, plan.null, plan.trampoline, *log.descriptors()}
    if plan.entrances:
        keep.update(plan.entrances.descriptors())
    keep.update(plan.joined.values(), plan.trees.values(), plan.device_trees.values())
    keep.update(range(3, 3 + plan.preserve_fds), plan.hook_files)
    if plan.listener is not None:
        keep.add(plan.listener.fileno())
    keep.discard(-1)
    return keep


def _reap(pid: int) -> None:
    while True:
        try:
            os.waitpid(pid, 0)
            return
        except InterruptedError:
            continue
        except ChildProcessError:
            return


def _kill(pid: int) -> None:
    try:
        os.kill(pid, 9)
    except ProcessLookupError:
        pass
    _reap(pid)
