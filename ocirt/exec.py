"""`exec`: one more process in a container, by the same steps as its first.

The process gets what the container's first one has by the configuration as it
was at create (runtime.md, Lifecycle, step 2), with what the caller changes.
"""

from __future__ import annotations

import posix as os

from ocirt import console, log, namespaces
from ocirt.announcing import send_pidfd, write_pid_file
from ocirt.container import CREATING, PAUSED, STOPPED, Container, end_process
from ocirt.errors import Undo, WrongState, doing
from ocirt.identity import capabilities, labels, limits, scheduling, seccomp
from ocirt.linux.files import null_device
from ocirt.process import seal, steps
from ocirt.process.plan import Plan
from ocirt.process.runtime import check_preserved, spawn
from ocirt.process.start import await_execve, died
from ocirt.process.sync import Channel, Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cgroups.base import Cgroup
    from ocirt.lifecycle import Runtime
    from ocirt.spec import Process


#: What a process has of the container's first one unless it says otherwise, as with runc and crun: one that a file
#: describes would run unconfined beside it, or without any capability.
_INHERITED = ("capabilities", "apparmorProfile", "selinuxLabel")


class Options:
    """How exec runs a process.

    console_socket, console  path of, or connected socket for the terminal's master
    pid_file, pidfd_socket, preserve_fds, no_new_keyring   as for create
    cgroups        `[controller:]path` below the container's cgroup each
    ignore_paused  do it in a paused container as well: the process stands still until resume
    """

    __slots__ = (
        "cgroups",
        "console",
        "console_socket",
        "ignore_paused",
        "no_new_keyring",
        "pid_file",
        "pidfd_socket",
        "preserve_fds",
    )

    def __init__(
        self,
        *,
        console_socket: str | None = None,
        console: int = -1,
        pid_file: str | None = None,
        pidfd_socket: str | None = None,
        preserve_fds: int = 0,
        no_new_keyring: bool = False,
        cgroups: tuple[str, ...] = (),
        ignore_paused: bool = False,
    ) -> None:
        self.console_socket = console_socket
        self.console = console
        self.pid_file = pid_file
        self.pidfd_socket = pidfd_socket
        self.preserve_fds = preserve_fds
        self.no_new_keyring = no_new_keyring
        self.cgroups = cgroups
        self.ignore_paused = ignore_paused


def load(runtime: Runtime, id: str, *, ignore_paused: bool = False) -> Container:
    """The container, if a process can be run in it; NotFound, WrongState."""
    container = Container.load(runtime.root, id)
    status = container.status()
    if status in (STOPPED, CREATING):
        raise WrongState(f"cannot exec in a {status} container: {id}")
    if status == PAUSED and not ignore_paused:
        raise WrongState("cannot exec in a paused container (use --ignore-paused to override)")
    return container


def execute(runtime: Runtime, container: Container, config: dict[str, Any], process: Process, options: Options) -> int:
    """Run `process` in the container; its pid, once it has executed its program.

    config   the container's configuration (container.config())
    process  as config.json's `process`, validated; capabilities and labels that it leaves out are the container's
    Raises Error; nothing is left running then.
    """
    log.step("prepare the process")
    plan = _plan(container, config, _completed(process, config.get("process") or {}), options)
    cgroup = _check(runtime, container, plan, options)
    with doing("exec"), Undo() as undo:
        _open_descriptors(plan, options)
        initial = (plan.process.get("execCPUAffinity") or {}).get("initial")
        if not initial:
            # a process with CPUs of its own for the time before is moved once it has them
            plan.entrances = cgroup.exec_entrances(list(options.cgroups))
        descriptor = cgroup.exec_descriptor(list(options.cgroups), container.pid)
        try:
            pid, channel = spawn(plan, descriptor)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
            if plan.entrances:
                plan.entrances.close()
        undo.add("kill the process", lambda: end_process(pid))
        try:
            if initial:
                os.sched_setaffinity(pid, scheduling.parse_list(initial))
            if plan.entrances:
                plan.entrances.follow(pid)
            else:
                cgroup.join_exec(pid, list(options.cgroups), container.pid)
            _follow(container, plan, pid, channel)
        except Gone as error:
            raise died(container, error) from None
        if options.pid_file:
            write_pid_file(options.pid_file, pid)
        if options.pidfd_socket:
            send_pidfd(options.pidfd_socket, pid)
    return pid


def _completed(process: Process, first: dict[str, Any]) -> Process:
    left_out = {key: first[key] for key in _INHERITED if first.get(key) and process.get(key) in (None, "")}
    return {**process, **left_out}  # type: ignore[typeddict-item]


def _plan(container: Container, config: dict[str, Any], process: Process, options: Options) -> Plan:
    changed = {**config, "process": process}
    plan = Plan(container.id, container.record["bundle"], container.record["rootfs"], changed)  # type: ignore[arg-type]
    plan.steps = steps.EXEC
    plan.preserve_fds = options.preserve_fds
    plan.no_new_keyring = options.no_new_keyring
    size = process.get("consoleSize")
    if process.get("terminal") and size:
        plan.size = (size["height"], size["width"])
    affinity = process.get("execCPUAffinity") or {}
    if affinity:
        final = affinity.get("final")
        plan.cpu_affinity = scheduling.parse_list(final) if final else []
    return plan


def _check(runtime: Runtime, container: Container, plan: Plan, options: Options) -> Cgroup:
    """What can go wrong before anything is started."""
    from ocirt import cgroups

    process, linux = plan.process, plan.linux
    console.check(bool(process.get("terminal")), options.console_socket, options.console)
    labels.check_available(process)
    check_preserved(plan)
    plan.joined = namespaces_of(container)
    plan.userns = "user" in plan.joined
    plan.capabilities = capabilities.grantable(process.get("capabilities"), plan.userns)
    profile = linux.get("seccomp")
    if profile:
        annotations = plan.config.get("annotations") or {}
        plan.filter = seccomp.cached(profile, runtime.root, annotations=annotations)
        plan.keeps_sys_admin = not process.get("noNewPrivileges")
    # whoever lives in the container by now may have had what its first process had
    seal.choose(plan, runtime.argv, others=container.record.get("bounding", 0))
    return cgroups.load(container.record.get("cgroup") or {"manager": "disabled"})


def namespaces_of(container: Container) -> dict[str, int]:
    """The namespaces of init that aren't ours: {type: fd}, the user namespace first."""
    joined: dict[str, int] = {}
    for kind, (_, file) in namespaces.TYPES.items():
        path = f"/proc/{container.pid}/ns/{file}"
        try:
            theirs, own = os.stat(path), os.stat(f"/proc/self/ns/{file}")
        except FileNotFoundError:
            continue  # the kernel has no such namespaces
        if (theirs.st_dev, theirs.st_ino) != (own.st_dev, own.st_ino):
            joined[kind] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if not container.alive():
        raise WrongState(f"cannot exec in a stopped container: {container.id}")
    return joined


def _open_descriptors(plan: Plan, options: Options) -> None:
    plan.null = null_device()
    plan.console_socket = console.receiver(plan, options.console_socket, options.console)


def _follow(container: Container, plan: Plan, pid: int, channel: Channel) -> None:
    """The conversation, until the program has been executed."""
    log.step("wait until the process is ready")
    score = plan.process.get("oomScoreAdj")
    if score is not None:
        limits.set_oom_score(pid, score)
    channel.send("joined")
    if channel.receive("limits", "ready")[0] == "limits":
        limits.apply(pid, plan.process)
        channel.send("limited")
        channel.receive("ready")
    for fd in (plan.null, plan.console_socket, *plan.joined.values()):
        if fd >= 0:
            os.close(fd)
    log.step("wait for execve")
    await_execve(channel, container, pid)
    channel.close()
