"""`create`, seen from outside: what the runtime does for a container before init waits for start."""

from __future__ import annotations

import posix as os
import time

from ocirt import announcing, cgroups, console, limiting, namespaces, rootfs
from ocirt.bundle import Bundle, dump_json, load
from ocirt.container import CONFIG, CREATED, CREATING, STOPPED, Container, end_process
from ocirt.errors import Error, Undo, WrongState, doing
from ocirt.identity import capabilities, labels, limits, seccomp
from ocirt.linux.files import null_device
from ocirt.linux.oslike import environ, exists
from ocirt.log import step, warning
from ocirt.process import seal, steps
from ocirt.process.plan import Plan
from ocirt.process.runtime import check_preserved, spawn
from ocirt.process.starting import has_runtime_hooks
from ocirt.process.sync import Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.cgroups.base import Cgroup
    from ocirt.lifecycle import Runtime
    from ocirt.networking import Networking


class Options:
    """The flags of create, as `lifecycle.create` takes them."""

    __slots__ = (
        "config",
        "console",
        "console_socket",
        "network",
        "networking",
        "no_new_keyring",
        "no_pivot",
        "pid_file",
        "pidfd_socket",
        "preserve_fds",
    )

    def __init__(
        self,
        *,
        config: str | None,
        console_socket: str | None,
        console: int,
        pid_file: str | None,
        pidfd_socket: str | None,
        no_pivot: bool,
        no_new_keyring: bool,
        preserve_fds: int,
        network: dict[str, Any] | None,
    ) -> None:
        self.config = config
        self.network = network
        self.networking: Networking | None = None
        self.console = console
        self.console_socket = console_socket
        self.pid_file = pid_file
        self.pidfd_socket = pidfd_socket
        self.no_pivot = no_pivot
        self.no_new_keyring = no_new_keyring
        self.preserve_fds = preserve_fds


def create(runtime: Runtime, id: str, path: str, options: Options) -> Container:
    """See lifecycle.create."""
    step("read and validate config.json")
    bundle = load(path, options.config)
    unprivileged = os.geteuid() != 0
    if unprivileged:
        from ocirt import rootless

        rootless.add_user_namespace(bundle.config)
    options.networking = _networking(runtime, bundle, options)
    step("compare it with the host")
    plan = _plan(id, bundle, options)
    cgroup = _check(runtime, plan, options)
    with doing(f"create container {id}"), Undo() as undo:
        step("write down what will be made")
        cgroup.foresee()
        container = Container.make(runtime.root, id, {**new_record(plan, bundle), "cgroup": cgroup.record()})
        undo.add("remove the state directory", container.remove)
        container.write(CONFIG, dump_json(bundle.config) if unprivileged or options.networking else bundle.raw)
        plan.state = lambda status, pid: dump_json(container.state(status, pid))
        try:
            _make(runtime, container, plan, cgroup, options, undo)
        except Gone as error:
            from ocirt.process.start import died

            raise died(container, error) from None
        except Error as error:
            if plan.userns:
                from ocirt.rootless import explain

                explain(error)
            raise
        step("tell the pid")
        _announce(container, options)
        del container.record["status"]
        container.save()
    container.unlock()
    return container


def _make(runtime: Runtime, container: Container, plan: Plan, cgroup: Cgroup, options: Options, undo: Undo) -> None:
    """Everything that a crash could leave behind, from here to init's `ready`."""
    # a failing createRuntime hook is followed by the poststop hooks: runtime.md, Lifecycle, steps 3 to 5 and 13
    undo.add("run the poststop hooks", lambda: _poststop(container))
    _open_descriptors(plan, options)
    if "NOTIFY_SOCKET" in environ():
        from ocirt import notify

        notify.prepare(container, plan)
    plan.listener = container.listen()
    step("make the cgroup")
    descriptor = cgroup.prepare()
    undo.add("remove the cgroup", cgroup.remove)
    foreseen = container.record["cgroup"]
    container.record["cgroup"] = cgroup.record()
    container.record["freezer"] = freezer_file(cgroup)
    plan.cgroups = cgroup.mounts()
    if options.networking:
        options.networking.prepare(container)
    if options.networking or container.record["cgroup"] != foreseen:
        container.save()
    if container.record.get("mounts"):
        mounts = container.record["mounts"]
        undo.add("unmount what was mounted on the host", lambda: rootfs.unmount_host(plan.rootfs, mounts))
    step("prepare the mounts")
    rootfs.prepare_trees(plan)
    try:
        plan.entrances = limiting.prepare_entrances(plan, cgroup)
        pid, channel = spawn(plan, descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        if plan.entrances:
            plan.entrances.close()
    undo.add("kill init", lambda: end_process(pid))
    step("write down init")
    container.set_init(pid)
    container.save()
    if options.networking:
        undo.add("take down the network", lambda: detach_networks(container, pid))
        step("attach to the networks")
        options.networking.attach(container)
    limiting.limit(container, plan, cgroup, pid, undo)
    if "cgroup" in plan.new:
        channel.send("joined")
    if has_runtime_hooks(plan):
        step("wait for the mounts, to run the hooks")
        channel.receive("mounted")
        _run_runtime_hooks(container, plan)
        channel.send("enter")
    step("wait until init is ready")
    if channel.receive("limits", "ready")[0] == "limits":
        limits.apply(pid, plan.process)
        channel.send("limited")
        channel.receive("ready")
    if "cgroup" not in plan.new and not plan.entrances:
        with doing("join the memory cgroup"):
            cgroup.charge(pid)
    channel.close()
    _close_descriptors(plan)


def _networking(runtime: Runtime, bundle: Bundle, options: Options) -> Networking | None:
    """The networks that flags or annotations ask for; nearly always an engine makes the network, and this is None."""
    annotations = bundle.config.get("annotations") or {}
    if not options.network and not any(key.startswith("org.ocirt.network") for key in annotations):
        return None
    from ocirt.networking import wanted

    def pid_of(id: str) -> int:
        other = Container.load(runtime.root, id)
        if not other.alive():
            raise WrongState(f"container {id} has stopped: it has no network to share")
        return other.pid

    return wanted(bundle.config, options.network, pid_of)


def detach_networks(container: Container, pid: int) -> None:
    """Take the container out of its networks; `pid` of init, 0 if it has ended."""
    from ocirt import networking

    networking.detach(container.id, container.record, pid)


def _plan(id: str, bundle: Bundle, options: Options) -> Plan:
    plan = Plan(id, bundle.path, bundle.rootfs, bundle.config)
    plan.no_pivot = options.no_pivot
    plan.no_new_keyring = options.no_new_keyring
    plan.preserve_fds = options.preserve_fds
    plan.steps = steps.CREATE
    _pass_listen_fds(plan)
    if plan.process.get("terminal"):
        size = plan.process.get("consoleSize")
        if size:
            plan.size = (size["height"], size["width"])
    return plan


def _pass_listen_fds(plan: Plan) -> None:
    """Socket activation (sd_listen_fds(3)): the descriptors are passed on, and the program is told."""
    if environ().get("LISTEN_PID") != str(os.getpid()):
        return  # they were meant for an ancestor: numbers from 3 on are something else here
    listen = environ().get("LISTEN_FDS", "")
    if listen.isascii() and listen.isdigit() and int(listen):
        plan.preserve_fds += int(listen)
        # the program is pid 1 of its namespace; in a shared one it can't be told its pid before it has one
        plan.env += [f"LISTEN_FDS={listen}", "LISTEN_PID=1"]
        if "LISTEN_FDNAMES" in environ():
            plan.env.append("LISTEN_FDNAMES=" + environ()["LISTEN_FDNAMES"])


def _check(runtime: Runtime, plan: Plan, options: Options) -> Cgroup:
    """What validation can't know because it depends on this host; nothing has been made yet."""
    process, linux = plan.process, plan.linux
    console.check(bool(process.get("terminal")), options.console_socket, options.console)
    labels.check_available(process)
    if linux.get("mountLabel") and not labels.selinux_enabled():
        # mounts carry no labels here that anything could go by; crun and the validation suite want it taken
        warning(f"linux.mountLabel: {linux['mountLabel']!r} is ignored: SELinux is not enabled on this host")
        del linux["mountLabel"]
    check_preserved(plan)
    new, paths = namespaces.split(linux)
    plan.new = new
    plan.joined = namespaces.open_joined(paths, linux)
    plan.userns = "user" in new or "user" in plan.joined
    plan.capabilities = capabilities.grantable(process.get("capabilities"), plan.userns)
    profile = linux.get("seccomp")
    if profile:
        step("find or compile the seccomp filter")
        plan.filter = seccomp.cached(profile, runtime.root, annotations=plan.config.get("annotations") or {})
        plan.keeps_sys_admin = not process.get("noNewPrivileges")
    if plan.config.get("hooks"):
        _prepare_hooks(plan)
    step("seal the interpreter")
    seal.choose(plan, runtime.argv)
    return cgroups.choose(
        linux,
        plan.id,
        manager=runtime.cgroup_manager,
        rootless=runtime.rootless,
        annotations=plan.config.get("annotations") or {},
    )


def _prepare_hooks(plan: Plan) -> None:
    from ocirt import hooks

    output = hooks.Output(plan.config.get("annotations"), plan.bundle)
    plan.hook_files = output.descriptors()
    plan.run_hooks = lambda kind, wanted, state, cwd: hooks.run(kind, wanted, state, cwd, output)


def new_record(plan: Plan, bundle: Bundle) -> dict[str, Any]:
    """What state.json holds from the beginning (container.Container)."""
    now = time.time()
    record: dict[str, Any] = {
        "status": CREATING,
        "ociVersion": plan.config["ociVersion"],
        "id": plan.id,
        "bundle": bundle.path,
        "rootfs": bundle.rootfs,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e9):09d}Z",
        "owner": "",
        "annotations": plan.config.get("annotations") or {},
        "pidNamespace": "pid" in plan.new,
        "bounding": plan.capabilities.bounding,
    }
    later = {
        kind: wanted for kind, wanted in (plan.config.get("hooks") or {}).items() if kind in ("poststart", "poststop")
    }
    if later:
        record["hooks"] = later
    if "mount" not in plan.new and "mount" not in plan.joined:
        record["mounts"] = rootfs.host_mounts(plan)
    return record


def freezer_file(cgroup: Cgroup) -> list[str]:
    """The file that tells whether the container is paused, and what it says then."""
    directory = cgroup.path("freezer")
    if directory and exists(directory + "/freezer.state"):
        return [directory + "/freezer.state", "FROZEN FREEZING"]
    directory = cgroup.path()
    return [directory + "/cgroup.freeze", "1"] if directory else []


def _open_descriptors(plan: Plan, options: Options) -> None:
    """What init gets from the host as open descriptors, because it can't or mustn't look for it inside."""
    plan.null = null_device()
    plan.console_socket = console.receiver(plan, options.console_socket, options.console)


def _close_descriptors(plan: Plan) -> None:
    """Init has its own copies by now."""
    assert plan.listener is not None
    plan.listener.close()
    for fd in (
        plan.null,
        plan.console_socket,
        *plan.trees.values(),
        *plan.device_trees.values(),
        *plan.joined.values(),
        *plan.hook_files,
    ):
        if fd >= 0:
            os.close(fd)


def _run_runtime_hooks(container: Container, plan: Plan) -> None:
    wanted = plan.config.get("hooks") or {}
    for kind in ("prestart", "createRuntime"):
        if wanted.get(kind):
            # the environment exists (Lifecycle, step 2): the suite and crun tell the old kind of hook `created`
            status = CREATED if kind == "prestart" else CREATING
            state = dump_json(container.state(status, container.pid))
            plan.run_hooks(kind, wanted[kind], state, container.record["bundle"])


def _poststop(container: Container) -> None:
    wanted = container.hooks("poststop")
    if wanted and container.pid:
        state = dump_json(container.state(STOPPED, 0))
        from ocirt import hooks

        failures = hooks.run_poststop(wanted, state, container.record)
        if failures:
            raise failures[0]


def _announce(container: Container, options: Options) -> None:
    """Tell the caller the pid: only now is the container there."""
    if options.pid_file:
        with doing("write the pid file"):
            announcing.write_pid_file(options.pid_file, container.pid)
    annotations: dict[str, str] = container.record.get("annotations") or {}
    receiver = options.pidfd_socket or annotations.get("run.oci.pidfd_receiver")
    if receiver:
        with doing("send the pidfd"):
            announcing.send_pidfd(receiver, container.pid)
