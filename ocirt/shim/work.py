"""The operations that a worker does: the runtime's own, with what only a shim adds to them.

An operation is a dict: "operation" names it, "root", "systemd" and "id" say of which container, the rest is the
operation's. It is plain JSON, because a worker may have to start over from a sealed interpreter (process/seal.py).
"""

from __future__ import annotations

import os
import sys

from ocirt import exec as execution
from ocirt import lifecycle, operations
from ocirt.errors import Error, NotFound, Undo
from ocirt.jsontext import dump_json
from ocirt.lifecycle import Runtime
from ocirt.shim import rootfs
from ocirt.validation import check_process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def perform(operation: dict[str, Any]) -> dict[str, Any]:
    """Do an operation; gives what the daemon wants to know. Raises Error."""
    return OPERATIONS[operation["operation"]](operation)


def _runtime(operation: dict[str, Any]) -> Runtime:
    def start_over() -> tuple[str, ...]:
        """The command line that does the same, from a sealed interpreter; descriptors are kept by their numbers."""
        fd = os.memfd_create("operation", 0)
        os.write(fd, dump_json(operation))
        os.lseek(fd, 0, os.SEEK_SET)
        for kept in handed_over(operation):
            os.set_inheritable(kept, True)
        given = len(sys.orig_argv) - len(sys.argv) + 1
        return (*sys.orig_argv[1:given], "-operation", str(fd))

    return Runtime(operation["root"], cgroup_manager="systemd" if operation.get("systemd") else "auto", argv=start_over)


def handed_over(operation: dict[str, Any]) -> list[int]:
    """The descriptors that a worker needs when it has started over."""
    return [fd for fd in (operation["answer"], operation["log"], operation.get("console", -1)) if fd >= 0]


def create(operation: dict[str, Any]) -> dict[str, Any]:
    """Mount the root filesystem and create the container."""
    bundle = operation["bundle"]
    with Undo() as undo:
        again = operation.get("mounted", False)
        if operation.get("mounts") and (again or not rootfs.is_mounted(f"{bundle}/rootfs")):
            undo.add("unmount the root filesystem", lambda: rootfs.unmount(f"{bundle}/rootfs"))
            if not again:
                rootfs.mount_all(operation["mounts"], f"{bundle}/rootfs")
                operation["mounted"] = True  # by whoever had to start over
        if operation.get("checkpoint"):
            return {"pid": 0}
        container = lifecycle.create(
            _runtime(operation),
            operation["id"],
            bundle,
            console=operation.get("console", -1),
            no_pivot=operation.get("no_pivot", False),
            no_new_keyring=operation.get("no_new_keyring", False),
        )
    return {"pid": container.pid}


def start(operation: dict[str, Any]) -> dict[str, Any]:
    """Run the container's program."""
    lifecycle.start(_runtime(operation), operation["id"])
    return {}


def restore(operation: dict[str, Any]) -> dict[str, Any]:
    """Make the processes of a checkpoint."""
    from ocirt.checkpoint import Images
    from ocirt.restore import restore as restore_container

    creation = {"console": operation.get("console", -1)}
    images = Images(_Images(image_path=operation["checkpoint"], work_path=operation["work"]))
    container = restore_container(_runtime(operation), operation["id"], operation["bundle"], images, creation)
    return {"pid": container.pid}


def execute(operation: dict[str, Any]) -> dict[str, Any]:
    """Run one more process in the container."""
    runtime = _runtime(operation)
    container = execution.load(runtime, operation["id"])
    config = container.config()
    process = operation["process"]
    check_process(process, config)  # type: ignore[arg-type]
    options = execution.Options(console=operation.get("console", -1))
    return {"pid": execution.execute(runtime, container, config, process, options)}


def kill(operation: dict[str, Any]) -> dict[str, Any]:
    """Send a signal to init, or to all."""
    lifecycle.kill(_runtime(operation), operation["id"], operation["signal"], all=operation.get("all", False))
    return {}


def delete(operation: dict[str, Any]) -> dict[str, Any]:
    """Take everything back, the root filesystem too."""
    try:
        lifecycle.delete(_runtime(operation), operation["id"], force=operation.get("force", False))
    except NotFound:
        pass  # a poststart hook failed, or somebody has used the command line
    rootfs.unmount(f"{operation['bundle']}/rootfs")
    return {}


def pause(operation: dict[str, Any]) -> dict[str, Any]:
    """Freeze the container."""
    operations.pause(_runtime(operation), operation["id"])
    return {}


def resume(operation: dict[str, Any]) -> dict[str, Any]:
    """Thaw the container."""
    operations.resume(_runtime(operation), operation["id"])
    return {}


def update(operation: dict[str, Any]) -> dict[str, Any]:
    """Change limits."""
    operations.update(_runtime(operation), operation["id"], operation["resources"])
    return {}


def checkpoint(operation: dict[str, Any]) -> dict[str, Any]:
    """Save the container's processes."""
    from ocirt.checkpoint import Images
    from ocirt.checkpoint import checkpoint as save

    given = operation["given"]
    try:
        save(_runtime(operation), operation["id"], Images(_Images(**given)))
    except Error as error:
        _keep_log(f"{given['work_path']}/dump.log", f"{operation['bundle']}/criu-dump.log", error)
        raise
    return {}


def _keep_log(log: str, kept: str, error: Error) -> None:
    """CRIU's log outlives the directory that it worked in."""
    try:
        with open(log, "rb") as source, open(kept, "wb") as target:
            target.write(source.read())
    except OSError:
        return  # CRIU wrote none
    error.note(f"path= {kept}")


class _Images:
    """What checkpoint and restore ask for, as the options of their command lines are named."""

    _DEFAULTS: dict[str, Any] = {  # noqa: RUF012
        "tcp_established": False,
        "tcp_close": False,
        "tcp_skip_in_flight": False,
        "ext_unix_sk": False,
        "shell_job": False,
        "file_locks": False,
        "auto_dedup": False,
        "lazy_pages": False,
        "link_remap": False,
        "leave_running": False,
        "pre_dump": False,
        "manage_cgroups_mode": "soft",
        "empty_ns": (),
        "lsm_profile": None,
        "lsm_mount_context": None,
        "parent_path": None,
        "page_server": None,
        "status_fd": None,
        "network_lock": None,
        "work_path": None,
    }

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(self._DEFAULTS)
        self.__dict__.update(given)


#: name -> function(operation) -> result
OPERATIONS = {f.__name__: f for f in (create, start, restore, execute, kill, delete, pause, resume, update, checkpoint)}
