"""`checkpoint`: the state of a running container's processes in files, by CRIU.

What of the container is not in its processes (bind mounts, namespaces that were joined, pipes of the engine) is
external to CRIU: it is named in the dump, and restore says what stands for it.
"""

from __future__ import annotations

import os
import stat

from ocirt import cgroups, criu, lifecycle, log, namespaces
from ocirt.bundle import dump_json
from ocirt.container import CREATED, CREATING, STOPPED, Container
from ocirt.errors import Error, InvalidConfig, NotFound, Unsupported, WrongState, doing
from ocirt.linux import paths
from ocirt.process.plan import Plan
from ocirt.rootfs import nodes
from ocirt.rootfs import options as mount_options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.lifecycle import Runtime
    from ocirt.spec import Config

#: What the container's stdin, stdout and stderr were: read by restore.
DESCRIPTORS = "descriptors.json"
#: CRIU's own configuration, as runc names it; the annotation names another file, or none if empty.
CONFIG_FILE = "/etc/criu/runc.conf"
CONFIG_ANNOTATION = "org.criu.config"

#: Namespaces by path that CRIU can leave alone: {type: file, name of the outside one}.
EXTERNAL = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}

_CLONE_NEWNET = 0x40000000


class Images:
    """What checkpoint and restore have in common: rows of the command line, as the table of it names them."""

    def __init__(self, given: Any) -> None:
        self.path = os.path.abspath(given.image_path)
        self.work = os.path.abspath(given.work_path) if given.work_path else self.path
        self.given = given

    def options(self, log: str) -> dict[str, Any]:
        """criu_opts of both; InvalidConfig for what can't be."""
        given = self.given
        for kind in given.empty_ns or ():
            if kind != "network":
                raise InvalidConfig(f"--empty-ns {kind}: only network is known")
        return {
            "tcp_established": given.tcp_established,
            "tcp_close": given.tcp_close,
            "ext_unix_sk": given.ext_unix_sk,
            "shell_job": given.shell_job,
            "file_locks": given.file_locks,
            "auto_dedup": given.auto_dedup,
            "lazy_pages": given.lazy_pages,
            "link_remap": given.link_remap,
            "manage_cgroups": True,
            "manage_cgroups_mode": criu.CGROUP_MODES[given.manage_cgroups_mode],
            "empty_ns": _CLONE_NEWNET if given.empty_ns else None,
            "log_level": 4,
            "log_file": log,
            "notify_scripts": True,
        }


def config_file(annotations: dict[str, str]) -> str | None:
    """The configuration file for CRIU."""
    if CONFIG_ANNOTATION in annotations:
        return annotations[CONFIG_ANNOTATION] or None
    return CONFIG_FILE if os.path.exists(CONFIG_FILE) else None


def external_mounts(config: Config) -> list[tuple[str, str]]:
    """(destination, source) of every bind mount: what CRIU finds mounted from outside."""
    return [
        (os.path.normpath(entry["destination"]), entry.get("source") or "")
        for entry in config.get("mounts") or ()
        if mount_options.parse(entry.get("options") or ()).bind
    ]


def bound_devices(plan: Plan) -> list[str]:
    """Paths of the devices that are bound: in a user namespace none can be made."""
    new, joined = namespaces.split(plan.linux)
    return list(nodes.bound(plan)) if "user" in new or "user" in joined else []


def checkpoint(runtime: Runtime, id: str, images: Images) -> None:
    """Save a container; it is deleted unless it is to run on. WrongState, Unsupported, Error."""
    container = Container.load(runtime.root, id, lock=True)
    status = container.status()
    if status in (STOPPED, CREATING, CREATED):
        raise WrongState(f"cannot checkpoint container {id}: it is {status}")
    if os.geteuid() != 0:
        raise Unsupported("checkpoint needs root")
    pre_dump = images.given.pre_dump
    log.step("prepare the dump")
    with doing(f"checkpoint container {id}"):
        _dump(container, images, pre_dump)
    if not pre_dump and not images.given.leave_running:
        container.unlock()
        try:
            lifecycle.delete(runtime, id, force=True)
        except NotFound:
            pass  # a `run` in the foreground has seen the end of its process and was faster


def _dump(container: Container, images: Images, pre_dump: bool) -> None:
    config: Config = container.config()  # type: ignore[assignment]
    service = criu.Service()
    for directory in (images.path, images.work):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    options = _options(container, config, images)
    log_file = f"{images.work}/dump.log"
    remove_log(log_file)
    image_fd = os.open(images.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    work_fd = os.open(images.work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not pre_dump:
            _save_descriptors(container.pid, images.path)
        log.step("let CRIU save the processes")
        with service:
            directories = {"images_dir_fd": image_fd, "work_dir_fd": work_fd}
            service.ask(criu.PRE_DUMP if pre_dump else criu.DUMP, options | directories)
    except Error as error:
        raise with_log(error, log_file) from None
    finally:
        os.close(image_fd)
        os.close(work_fd)


def _options(container: Container, config: Config, images: Images) -> dict[str, Any]:
    given = images.given
    freezer = cgroups.load(container.record.get("cgroup") or {"manager": "disabled"})
    external = [f"mnt[{destination}]:{destination}" for destination, _ in external_mounts(config)]
    external += _external_namespaces(config)
    external += [f"mnt[{path}]:{path}" for path in _masked_files(container.pid, config)]
    plan = Plan(container.id, container.record["bundle"], container.record["rootfs"], config)
    external += [f"mnt[{path}]:{path}" for path in bound_devices(plan)]
    return {
        **images.options("dump.log"),
        "pid": container.pid,
        "root": container.record["rootfs"],
        "leave_running": given.leave_running or given.pre_dump,
        "track_mem": given.pre_dump or bool(given.parent_path),
        "parent_img": _parent(given.parent_path, images.path),
        "ps": _page_server(given.page_server),
        "status_fd": given.status_fd,
        "tcp_skip_in_flight": given.tcp_skip_in_flight,
        "network_lock": _network_lock(given.network_lock),
        "freeze_cgroup": freezer.path("freezer") or freezer.path() or None,
        "orphan_pts_master": bool((config.get("process") or {}).get("terminal")),
        "config_file": config_file(config.get("annotations") or {}),
        "external": external,
    }


def _masked_files(pid: int, config: Config) -> list[str]:
    """The masked paths that have the null device on them; directories have a file system of their own."""
    found: list[str] = []
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in (config.get("linux") or {}).get("maskedPaths") or ():
            try:
                fd = paths.open_in_root(root, path)
            except (Error, OSError):
                continue
            if stat.S_ISCHR(os.fstat(fd).st_mode):
                found.append(path)
            os.close(fd)
    finally:
        os.close(root)
    return found


def _external_namespaces(config: Config) -> list[str]:
    found: list[str] = []
    for namespace in (config.get("linux") or {}).get("namespaces") or ():
        path = namespace.get("path")
        if path and namespace["type"] in EXTERNAL:
            file, name = EXTERNAL[namespace["type"]]
            found.append(f"{file}[{os.stat(path).st_ino}]:{name}")
    return found


def _parent(parent: str | None, images: str) -> str | None:
    """--parent-path: relative to the image directory, so that the images can be moved together."""
    if parent is None:
        return None
    if os.path.isabs(parent):
        raise InvalidConfig(f"--parent-path {parent}: it must be relative to --image-path")
    if not os.path.isdir(os.path.join(images, parent)):
        raise InvalidConfig(f"--parent-path {parent}: {os.path.join(images, parent)} is not a directory")
    return parent


def _page_server(text: str | None) -> dict[str, Any] | None:
    if not text:
        return None
    address, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidConfig(f"--page-server {text}: ADDRESS:PORT is wanted")
    return {"address": address.strip("[]"), "port": int(port)}


def _network_lock(method: str | None) -> int | None:
    if method is None:
        return None
    if method not in criu.NETWORK_LOCKS:
        raise InvalidConfig(f"--network-lock {method}: one of {', '.join(criu.NETWORK_LOCKS)} is wanted")
    return criu.NETWORK_LOCKS[method]


def _save_descriptors(pid: int, directory: str) -> None:
    names = [os.readlink(f"/proc/{pid}/fd/{fd}") if os.path.lexists(f"/proc/{pid}/fd/{fd}") else "" for fd in range(3)]
    fd = os.open(f"{directory}/{DESCRIPTORS}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, dump_json(names))
    finally:
        os.close(fd)


def remove_log(log: str) -> None:
    """What CRIU wrote another time says nothing of this one."""
    try:
        os.unlink(log)
    except FileNotFoundError:
        pass


def with_log(error: Error, log: str) -> Error:
    """The error with what CRIU's log says of it, and who may know more if CRIU gave no reason."""
    hint = "`ocirt check` and `criu check` say what this host lacks"
    try:
        with open(log, encoding="utf-8", errors="replace") as file:
            wrong = [line.strip() for line in file if "Error (" in line]
    except OSError:
        error.note(f"criu wrote no log: {hint}")
        return error
    for line in wrong[-3:]:
        error.note(line)
    error.note(f"see {log}")
    if isinstance(error, criu.Unexplained):
        error.note(hint)
    return error
