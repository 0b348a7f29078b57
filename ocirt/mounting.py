"""`mounts add` and `mounts remove`: mounts of a container that runs already.

Sources of bind mounts are the host's, so they are cloned here; a process in the container's namespaces attaches them,
and makes new file systems, by the steps that create uses. What is mounted this way isn't in the container's config.
"""

from __future__ import annotations

import os

from ocirt.bundle import parse_json
from ocirt.container import CREATING, STOPPED, Container
from ocirt.errors import Error, InvalidConfig, Unsupported, WrongState, doing, from_oserror
from ocirt.exec import namespaces_of
from ocirt.identity import capabilities
from ocirt.linux import mount, paths
from ocirt.linux.files import null_device
from ocirt.process import seal, steps
from ocirt.process.entering import open_root
from ocirt.process.plan import Plan
from ocirt.process.runtime import spawn
from ocirt.process.start import died
from ocirt.process.starting import tell_ready
from ocirt.process.sync import Gone
from ocirt.rootfs import binds, copyup, options, trees
from ocirt.rootfs.masks import make_mounts_readonly
from ocirt.rootfs.mounts import mount_filesystems
from ocirt.rootfs.pivot import open_procfs
from ocirt.validation import check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.lifecycle import Runtime
    from ocirt.process.plan import Step

_EINVAL = 22

#: What can't be added to a container that runs: it would show the runtime's own.
_NOT_ADDED = ("cgroup", "cgroup2")


def read(path: str) -> list[Any]:
    """The mounts of a file: a JSON list as `mounts` of config.json, or an object that has one."""
    with doing(f"read the mounts from {path}"), open(path, "rb") as file:
        value: Any = parse_json(file.read(), path)
    if isinstance(value, dict):
        members: dict[str, Any] = value  # pyright: ignore[reportUnknownVariableType]
        value = members.get("mounts")
    if value == []:
        raise InvalidConfig(f"{path}: the list of mounts is empty")
    if not isinstance(value, list):
        raise InvalidConfig(f"{path}: a list of mounts is wanted, as in config.json")
    mounts: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
    return mounts


def add(runtime: Runtime, id: str, mounts: list[Any]) -> None:
    """Make mounts in a container, in the order given. What was made before a failure stays made."""
    container, plan = _plan(runtime, id, mounts)
    with doing(f"add mounts to container {id}"):
        plan.copy_up = copyup.copy
        try:
            _prepare(plan)
            _run(container, plan, (open_procfs, mount_filesystems, make_mounts_readonly))
        finally:
            for fd in plan.trees.values():
                os.close(fd)


def remove(runtime: Runtime, id: str, mounts: list[Any]) -> None:
    """Unmount the destinations, the last first; each must be a mount point. Busy ones go when nobody uses them."""
    container, plan = _plan(runtime, id, mounts)
    with doing(f"remove mounts of container {id}"):
        _run(container, plan, (open_procfs, unmount_filesystems))


def unmount_filesystems(plan: Plan) -> None:
    """unmount the filesystems"""
    for entry in reversed(plan.config.get("mounts") or ()):
        destination = entry["destination"]
        fd = paths.open_in_root(plan.root, destination, os.O_PATH | os.O_NOFOLLOW)
        try:
            mount.umount2(mount.by_fd(plan.proc, fd), mount.MNT_DETACH)
        except Error as error:
            if error.errno == _EINVAL:
                raise Error(f'"{destination}" is not a mount point', _EINVAL) from None
            raise
        finally:
            os.close(fd)


def _plan(runtime: Runtime, id: str, mounts: list[Any]) -> tuple[Container, Plan]:
    container = Container.load(runtime.root, id, lock=True)
    status = container.status()
    if status in (STOPPED, CREATING):
        raise WrongState(f"cannot change the mounts of container {id}: it is {status}")
    config: Any = {**container.config(), "mounts": mounts}
    check(config, name="list of mounts")
    plan = Plan(id, container.record["bundle"], container.record["rootfs"], config)
    plan.joined = namespaces_of(container)
    if "mount" not in plan.joined:
        raise Unsupported(f"container {id} has no mount namespace of its own")
    plan.userns = "user" in plan.joined
    plan.capabilities = capabilities.grantable(plan.process.get("capabilities"), plan.userns)
    # a process there that may trace ours must not get at its interpreter (CVE-2019-5736)
    seal.choose(plan, runtime.argv, others=container.record.get("bounding", 0))
    return container, plan


def _prepare(plan: Plan) -> None:
    """Clone the sources of bind mounts: inside, they can't be reached."""
    for index, entry in enumerate(plan.config.get("mounts") or ()):
        o = options.parse(entry.get("options") or ())
        source = entry.get("source") or ""
        with doing(f'mounts[{index}]: mount "{source}" to rootfs at "{entry["destination"]}"'):
            if entry.get("type") in _NOT_ADDED:
                raise Unsupported("a cgroup file system can't be added to a container that runs")
            if o.idmap is not None or entry.get("uidMappings") or entry.get("gidMappings"):
                raise Unsupported("mounts with mapped ids can't be added to a container that runs")
            if o.bind and not o.flags & mount.MS_REMOUNT:
                plan.trees[index] = tree = binds.clone(os.path.join(plan.bundle, source), o)
                # not shared with the host's: what the container mounts below must stay inside
                trees.finish(plan, entry, o, tree)


def _run(container: Container, plan: Plan, work: tuple[Step, ...]) -> None:
    """Run steps in the container's namespaces, in a process that ends with them."""
    plan.steps = (*steps.ENTER, open_root, *work, tell_ready)
    plan.null = null_device()
    pid, channel = spawn(plan)
    try:
        channel.receive("ready")
    except Gone as error:
        raise died(container, error) from None
    finally:
        channel.close()
        os.close(plan.null)
        for fd in plan.joined.values():
            os.close(fd)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass
        except OSError as error:
            raise from_oserror(error, f"waitpid({pid})") from None
