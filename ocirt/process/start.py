"""`start`: the conversation with an init that waits (the second diagram of sync.py)."""

from __future__ import annotations

import posix

from ocirt import log
from ocirt.container import SOCKET, Container, is_exiting
from ocirt.errors import Error, HookFailed
from ocirt.process.sync import Channel, Gone

#: More memory than executing a program takes (bytes).
_START_UP = 8 << 20


def start_init(container: Container) -> None:
    """Let init execute the program; returns when it has.

    Raises Error with what init said; HookFailed after a failing startContainer hook.
    """
    try:
        channel = Channel(container.call())
    except OSError as error:
        raise Error(f"connect to init: {(error.strerror or '').lower()}", error.errno or 0) from None
    log.step("wait for execve")
    try:
        channel.send("start")
        channel.receive("starting")
        posix.unlink(f"{container.directory}/{SOCKET}")
        await_execve(channel, container, container.pid)
        if is_exiting(container.pid) and _starved(container):
            raise Gone("init was killed in its execve")
    except Gone as error:
        raise died(container, error) from None
    finally:
        channel.close()


def await_execve(channel: Channel, container: Container, pid: int) -> None:
    """Follow a process to its execve."""
    executing = watched = False
    while True:
        # once only: by then a process of the container may have got hold of the channel's other end
        expected = ("executing", *(() if watched else ("seccomp",)), *(("",) if executing else ()))
        message = channel.receive(*expected)
        if message[0] == "":
            return
        if message[0] == "executing":
            executing = True
            continue
        from ocirt.process.listener import hand_over

        hand_over(container, pid, int(message[1]))
        channel.send("watched")
        watched = True


def _starved(container: Container) -> bool:
    """Did the OOM killer take init in the middle of its execve? That ends the conversation as a success does.

    A program with a limit above what starting takes has been killed for its own memory: its status tells.
    """
    from ocirt import cgroups

    cgroup = cgroups.load(container.record.get("cgroup") or {"manager": "disabled"})
    return 0 < cgroup.memory_peak()[0] < _START_UP and cgroup.oom_kills() > 0


def died(container: Container, error: Error) -> Error:
    """Why init is gone without a word: it was killed, perhaps for memory."""
    from ocirt import cgroups

    cgroup = cgroups.load(container.record.get("cgroup") or {"manager": "disabled"})
    try:
        if cgroup.oom_kills():
            limit, peak = cgroup.memory_peak()
            return Error(f"container init was OOM-killed ({cgroups.too_small(limit, peak)})")
    except (Error, OSError) as failure:
        log.debug(str(failure))
    return Error("container init was killed before the program was executed", error.errno)


def run_poststart(container: Container) -> None:
    """Run the poststart hooks; a failure is HookFailed."""
    hooks = container.hooks("poststart")
    if not hooks:
        return
    from ocirt.bundle import dump_json
    from ocirt.hooks import Output, run

    state = container.state("running", container.pid)
    try:
        output = Output.of_record(container.record)
    except Error as error:
        raise HookFailed(error.reason, error.errno, error.context) from None
    with output:
        run("poststart", hooks, dump_json(state), container.record.get("bundle"), output)
