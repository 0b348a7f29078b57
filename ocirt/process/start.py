"""`start`: the conversation with an init that waits (the second diagram of sync.py)."""

from __future__ import annotations

import posix

from ocirt import log
from ocirt.container import SOCKET, Container
from ocirt.errors import Error
from ocirt.process.sync import Channel, Gone


def start_init(container: Container) -> None:
    """Let init execute the program; returns when it has.

    Raises Error with what init said; HookFailed after a failing startContainer hook.
    """
    try:
        channel = Channel(container.call())
    except OSError as error:
        raise Error(f"connect to init: {(error.strerror or '').lower()}", error.errno or 0) from None
    try:
        channel.send("start")
        channel.receive("starting")
        posix.unlink(f"{container.directory}/{SOCKET}")
        await_execve(channel, container, container.pid)
    except Gone as error:
        raise died(container, error) from None
    finally:
        channel.close()


def await_execve(channel: Channel, container: Container, pid: int) -> None:
    """Follow a process to its execve."""
    executing = False
    while True:
        message = channel.receive("seccomp", "executing", *(("",) if executing else ()))
        if message[0] == "":
            return
        if message[0] == "executing":
            executing = True
            continue
        from ocirt.process.listener import hand_over

        hand_over(container, pid, int(message[1]))
        channel.send("watched")


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
    from ocirt.hooks import run

    state = container.state("running", container.pid)
    run("poststart", hooks, dump_json(state), container.record.get("bundle"))
