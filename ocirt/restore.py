"""`restore`: a container whose processes CRIU makes from the files of a checkpoint.

CRIU makes namespaces, mounts and processes. Ours is what is outside of them: the state directory, the cgroup, the root
file system where CRIU mounts it, what stands for bind mounts, pipes and the terminal, hooks, and the record.
"""

from __future__ import annotations

import _socket
import errno
import os

from ocirt import announcing, cgroups, console, criu, hooks, log, namespaces
from ocirt.bundle import dump_json, load, parse_json
from ocirt.cgroups.host import own
from ocirt.checkpoint import (
    DESCRIPTORS,
    EXTERNAL,
    Images,
    bound_devices,
    config_file,
    external_mounts,
    remove_log,
    with_log,
)
from ocirt.container import CONFIG, Container, end_process
from ocirt.creating import Options, freezer_file, new_record
from ocirt.errors import Error, InvalidConfig, Undo, Unsupported, doing
from ocirt.identity import capabilities
from ocirt.linux import fds, mount, paths
from ocirt.process.plan import Plan
from ocirt.rootfs import nodes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.bundle import Bundle
    from ocirt.cgroups.base import Cgroup
    from ocirt.lifecycle import Runtime
    from ocirt.spec import Config, IDMapping

_MNT_DETACH = 2

#: The flags of create that are not given.
_NOTHING: dict[str, Any] = {
    "config": None,
    "console_socket": None,
    "console": -1,
    "pid_file": None,
    "pidfd_socket": None,
    "no_pivot": False,
    "no_new_keyring": False,
    "preserve_fds": 0,
    "network": None,
}


def restore(runtime: Runtime, id: str, path: str, images: Images, creation: dict[str, Any]) -> Container:
    """Make a container of `id` from a bundle and image files; it runs when this returns.

    creation  the keyword arguments of lifecycle.create
    Raises Error; nothing is left then.
    """
    if os.geteuid() != 0:
        raise Unsupported("restore needs root")
    if not os.path.isdir(images.path):
        raise InvalidConfig(f"--image-path {images.path}: there is no such directory")
    options = Options(**{**_NOTHING, **creation})
    bundle = load(path, None)
    process, linux = bundle.config.get("process") or {}, bundle.config.get("linux") or {}
    console.check(bool(process.get("terminal")), options.console_socket, options.console)
    if options.console >= 0 and not process.get("terminal"):
        os.close(options.console)
        options.console = -1
    cgroup = cgroups.choose(
        linux,
        id,
        manager=runtime.cgroup_manager,
        rootless=runtime.rootless,
        annotations=bundle.config.get("annotations") or {},
    )
    with doing(f"restore container {id}"), Undo() as undo:
        container = Container.make(runtime.root, id, _record(id, bundle))
        undo.add("remove the state directory", container.remove)
        container.write(CONFIG, bundle.raw)
        descriptor = cgroup.prepare()
        if descriptor >= 0:
            os.close(descriptor)
        undo.add("remove the cgroup", cgroup.remove)
        container.record["cgroup"] = cgroup.record()
        container.record["freezer"] = freezer_file(cgroup)
        # written down first: delete must not walk into them after a crash
        given = container.record["criu"] = [f"{container.directory}/criu-root", f"/run/.ocirt-devices-{id}"]
        container.save()
        undo.add("unmount what CRIU was given", lambda: take_back(given))
        undo.add("kill the processes", lambda: _end(container))
        _Restoration(container, bundle, images, options, cgroup).run()
        if options.pid_file:
            announcing.write_pid_file(options.pid_file, container.pid)
        if options.pidfd_socket:
            announcing.send_pidfd(options.pidfd_socket, container.pid)
        take_back(given)
        del container.record["status"], container.record["criu"]
        container.save()
    container.unlock()
    return container


def take_back(directories: list[str]) -> None:
    """Unmount and remove the directories that CRIU takes the root and the devices from."""
    for directory in directories:
        if os.path.isdir(directory):
            try:
                mount.umount2(os.fsencode(directory), _MNT_DETACH | mount.UMOUNT_NOFOLLOW)
            except Error as error:
                if error.errno != errno.EINVAL:  # it is no mount yet
                    raise
            os.rmdir(directory)


def _end(container: Container) -> None:
    if container.pid:
        end_process(container.pid)


def _record(id: str, bundle: Bundle) -> dict[str, Any]:
    plan = Plan(id, bundle.path, bundle.rootfs, bundle.config)
    plan.new, joined = namespaces.split(plan.linux)
    plan.userns = "user" in plan.new or "user" in joined
    plan.capabilities = capabilities.grantable(plan.process.get("capabilities"), plan.userns)
    return new_record(plan, bundle)


class _Restoration:
    """One conversation with CRIU."""

    def __init__(self, container: Container, bundle: Bundle, images: Images, options: Options, cgroup: Cgroup) -> None:
        self.container = container
        self.bundle = bundle
        self.config = bundle.config
        self.images = images
        self.options = options
        self.cgroup = cgroup
        self._root, self._devices = container.record["criu"]
        self.passed: list[int] = []
        self.inherit: list[dict[str, Any]] = []

    def run(self) -> None:
        """Mount the root where CRIU takes it from, ask, and remember the pid."""
        images = self.images
        opened: list[int] = []
        os.makedirs(images.work, mode=0o700, exist_ok=True)
        self._inherit_descriptors()
        self._inherit_namespaces(opened)
        root = self._root
        if bound_devices(self._plan()):
            self._make_devices()
        os.mkdir(root, 0o700)
        mount.mount(os.fsencode(self.bundle.rootfs), os.fsencode(root), None, mount.MS_BIND | mount.MS_REC, None)
        try:
            _let_in(images.path, self.config)
            _make_mountpoints(root, self.config)
            for directory in (images.path, images.work):
                opened.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            request = self._options(root) | {"images_dir_fd": opened[-2], "work_dir_fd": opened[-1]}
            remove_log(f"{images.work}/restore.log")
            log.step("let CRIU make the processes")
            with criu.Service(passed=tuple(self.passed)) as service:
                self.cgroup.join(service.pid)
                self.cgroup.apply((self.config.get("linux") or {}).get("resources") or {})
                request["cg_root"] = _cgroup_roots(service.pid)
                try:
                    answer = service.ask(criu.RESTORE, request, self._notified)
                except Error as error:
                    raise with_log(error, f"{images.work}/restore.log") from None
            pid = int(criu.parse(answer.get(4, [b""])[-1]).get(1, [0])[-1])
            if not self.container.pid:
                self._remember(pid)
        finally:
            for fd in opened:
                os.close(fd)

    def _plan(self) -> Plan:
        return Plan(self.container.id, self.bundle.path, self.bundle.rootfs, self.config)

    def _make_devices(self) -> None:
        """Nodes for a user namespace, as `rootfs.nodes` makes them.

        CRIU binds them when it is in that namespace, so that root of it must reach them, and nobody else; the mount
        has the flags that they had, because it may not change them there.
        """
        os.mkdir(self._devices, 0o700)
        target = os.fsencode(self._devices)
        mount.mount(b"dev", target, b"tmpfs", mount.MS_NOEXEC, b"mode=700,size=1m")
        linux = self.config.get("linux") or {}
        os.chown(self._devices, _root_of(linux.get("uidMappings")), _root_of(linux.get("gidMappings")))
        store = os.open(self._devices, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            nodes.fill(store, self._plan())
        finally:
            os.close(store)

    def _options(self, root: str) -> dict[str, Any]:
        given = self.images.given
        external = [f"mnt[{key}]:{source}" for key, source in self._sources()]
        sources = {path: f"{self._devices}/{n}" for n, path in enumerate(bound_devices(self._plan()))}
        masked = (self.config.get("linux") or {}).get("maskedPaths") or ()
        external += [f"mnt[{path}]:{sources.get('/dev/null', '/dev/null')}" for path in masked]
        external += [f"mnt[{path}]:{source}" for path, source in sources.items()]
        return {
            **self.images.options("restore.log"),
            "root": root,
            "rst_sibling": True,
            "inherit_fd": self.inherit,
            "external": external,
            "orphan_pts_master": bool((self.config.get("process") or {}).get("terminal")),
            "config_file": config_file(self.config.get("annotations") or {}),
            "lsm_profile": given.lsm_profile,
            "lsm_mount_context": given.lsm_mount_context,
        }

    def _sources(self) -> list[tuple[str, str]]:
        return [(key, os.path.join(self.bundle.path, source)) for key, source in external_mounts(self.config)]

    def _inherit_descriptors(self) -> None:
        """Our stdin, stdout and stderr take the place of the pipes that the container had."""
        try:
            with open(f"{self.images.path}/{DESCRIPTORS}", "rb") as file:
                names = parse_json(file.read(), f"{self.images.path}/{DESCRIPTORS}")
        except FileNotFoundError:
            raise InvalidConfig(
                f"{self.images.path} has no {DESCRIPTORS}: it is not a checkpoint's directory"
            ) from None
        if not isinstance(names, list):
            raise InvalidConfig(f"{self.images.path}/{DESCRIPTORS} is not a list")
        members: list[object] = names  # pyright: ignore[reportUnknownVariableType]
        for fd, name in enumerate(members):
            if isinstance(name, str) and name.startswith("pipe:"):
                self._inherit(name, fd)

    def _inherit_namespaces(self, opened: list[int]) -> None:
        for namespace in (self.config.get("linux") or {}).get("namespaces") or ():
            path = namespace.get("path")
            if path and namespace["type"] in EXTERNAL:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                opened.append(fd)
                self._inherit(EXTERNAL[namespace["type"]][1], fd)

    def _inherit(self, key: str, fd: int) -> None:
        """CRIU has what is passed as 4, 5, …"""
        self.inherit.append({"key": key, "fd": 4 + len(self.passed)})
        self.passed.append(fd)

    def _notified(self, what: str, pid: int, descriptors: list[int]) -> None:
        """CRIU waits for us at certain points of its work."""
        if what == "setup-namespaces":
            self._run_hooks(pid, "prestart", "createRuntime")
        elif what == "post-restore":
            self._remember(pid)
            self._run_hooks(pid, "poststart")
        elif what == "orphan-pts-master" and descriptors:
            self._hand_over(descriptors[0])
        for fd in descriptors:
            os.close(fd)

    def _remember(self, pid: int) -> None:
        self.container.set_init(pid)
        self.container.save()

    def _run_hooks(self, pid: int, *kinds: str) -> None:
        wanted: dict[str, Any] = {**(self.config.get("hooks") or {})}
        for kind in kinds:
            if wanted.get(kind):
                state = dump_json(self.container.state("running" if kind == "poststart" else "creating", pid))
                with hooks.Output(self.config.get("annotations"), self.bundle.path) as output:
                    hooks.run(kind, wanted[kind], state, self.bundle.path, output)

    def _hand_over(self, master: int) -> None:
        """The terminal's other end goes where create would have sent it."""
        if self.options.console_socket:
            socket = console.connect(self.options.console_socket)
        elif self.options.console >= 0:
            socket = _socket.socket(fileno=self.options.console)
        else:
            return
        fds.send(socket, b"/dev/ptmx", (master,))
        socket.close()


def _cgroup_roots(pid: int) -> list[dict[str, Any]]:
    """Where CRIU puts what was in the container's cgroup: where it is itself.

    The images have the cgroup's path. Where the restored container has another one, CRIU would make the old one again:
    neither limits nor `delete` would reach the processes.
    """
    return [{"ctrl": controllers.partition(",")[0] or None, "path": path} for controllers, path in own(pid).items()]


def _let_in(directory: str, config: Config) -> None:
    """Give the images to root of the container's user namespace: CRIU reads them when it is in there already."""
    linux = config.get("linux") or {}
    owner, group = _root_of(linux.get("uidMappings")), _root_of(linux.get("gidMappings"))
    seen: set[str] = set()
    while owner and os.path.isdir(directory) and directory not in seen:
        seen.add(directory)
        os.chown(directory, owner, group)
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    os.chown(entry.path, owner, group, follow_symlinks=False)
        directory = os.path.realpath(f"{directory}/parent")  # of a pre-dump


def _root_of(mappings: list[IDMapping] | None) -> int:
    """What the container's id 0 is on the host."""
    return next((entry["hostID"] for entry in mappings or () if entry["containerID"] == 0), 0)


def _make_mountpoints(root: str, config: Config) -> None:
    """CRIU mounts only onto what exists: the destinations of bind mounts may be new to this root file system."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    covered = [
        os.path.normpath(entry["destination"]) + "/"
        for entry in config.get("mounts") or ()
        if entry.get("type") in ("tmpfs", "proc", "sysfs", "devpts")
    ]
    try:
        for destination, source in external_mounts(config):
            if destination.startswith(tuple(covered)):
                continue  # below a file system that CRIU makes with all that is in it
            os.close(paths.make_in_root(fd, destination, 0o755, directory=os.path.isdir(source)))
    finally:
        os.close(fd)
