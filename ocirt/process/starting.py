"""The steps that talk to the runtime: hooks inside, ready, and waiting for `start`."""

from __future__ import annotations

import _socket
import posix as os

from ocirt.linux import fds, prctl
from ocirt.process.sync import Channel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan
    from ocirt.spec import Hook


def tell_mounted(plan: Plan) -> None:
    """let the runtime run the hooks of its own namespaces"""
    if not has_runtime_hooks(plan):
        return
    plan.channel.send("mounted")
    plan.channel.receive("enter")


def has_runtime_hooks(plan: Plan) -> bool:
    """Must init stand still for hooks outside, between its mounts and entering the root?"""
    wanted = plan.config.get("hooks") or {}
    return bool(wanted.get("prestart") or wanted.get("createRuntime"))


def run_create_container_hooks(plan: Plan) -> None:
    """run the createContainer hooks"""
    _run(plan, "createContainer", "creating", None)


def run_start_container_hooks(plan: Plan) -> None:
    """run the startContainer hooks"""
    _run(plan, "startContainer", "created", "/")


def _run(plan: Plan, kind: str, status: str, cwd: str | None) -> None:
    wanted: list[Hook] | None = (plan.config.get("hooks") or {}).get(kind)  # type: ignore[assignment]
    if wanted:
        # runtime.md, State: hooks inside see the pid as the container sees it
        plan.run_hooks(kind, wanted, plan.state(status, os.getpid()), cwd)


def tell_ready(plan: Plan) -> None:
    """tell the runtime that everything but the program is done"""
    # from here on this process lives on without the runtime, which may be gone the moment it has read this
    prctl.prctl(prctl.PR_SET_PDEATHSIG, 0)
    plan.channel.send("ready")
    if plan.listener is not None:
        plan.channel.close()


def wait_for_start(plan: Plan) -> None:
    """wait for start

    A connection without a message is `state` asking whether the container has
    been started: nothing listens any more once it has.
    """
    listener = plan.listener
    assert listener is not None
    while True:
        channel = Channel(_socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fds.accept(listener)))
        if channel.receive("start", "")[0]:
            break
        channel.close()
    listener.close()
    plan.channel = channel
    channel.send("starting")
