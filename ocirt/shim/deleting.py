"""`delete`: take away what is left of a container.

containerd calls it after every ordinary Delete, when nothing is left, and it answers at once (where hack/install has
made the launcher, a shell does); and when a shim has died or doesn't answer, when this is the only one who cleans up.
"""

from __future__ import annotations

import posix
import time

from ocirt import log
from ocirt.errors import Error, NotFound, WrongState
from ocirt.shim import bundles, main, sockets, wire
from ocirt.shim.messages import DELETED, timestamp

_KILLED = 128 + 9
#: Seconds that a worker has to die after its shim; containerd gives `delete` five.
_DYING = 3.0


def delete(options: main.Options) -> None:
    """Kill and remove the container, unmount its root filesystem, and say how it ended: was killed, if nobody knows."""
    bundle = posix.getcwd().rpartition("/")[0] + f"/{options.id}"
    root = bundles.noted_root(bundle)
    address = bundles.noted_address(bundle)
    try:
        _clean(root, options.id, bundle)
    finally:
        if address.startswith("unix://") and sockets.remove_dead(address):
            _clean_group(root, options.id, bundle)
    killed = {"exit_status": _KILLED, "exited_at": timestamp(time.time())}
    main.write(bundles.noted_answer(bundle) or wire.encode(DELETED, killed))


def _clean(root: str, id: str, bundle: str) -> None:
    try:
        if root and _exists(f"{root}/{id}"):
            _remove(root, id)
    finally:
        # containerd removes the bundle next, whatever we say
        if f"/{id}/rootfs".encode() in bundles.read("/proc/self/mountinfo"):
            from ocirt.shim.rootfs import unmount

            unmount(f"{bundle}/rootfs")


def _clean_group(root: str, id: str, bundle: str) -> None:
    """Do the same for the other containers of a shim that is dead: containerd has given them up as well.

    It calls `delete` for each of them, but version 2.3 for a pod's sandbox only.
    """
    from ocirt import container
    from ocirt.shim.starting import group_among, group_of

    if not root:
        return
    try:
        group = group_of(bundle) or id
    except Error:
        group = id  # config.json can't be read
    for other in container.ids(root):
        try:
            record = container.Container.load(root, other).record
            if group_among(record.get("annotations") or {}) == group:
                _clean(root, other, record["bundle"])
        except NotFound:
            pass  # somebody was faster
        except (Error, OSError) as error:
            log.warning(f"{other}: {error}")


def _remove(root: str, id: str) -> None:
    """Delete the container, which another process may still be creating: a worker that dies with its shim."""
    from ocirt import lifecycle

    until = time.monotonic() + _DYING
    while True:
        try:
            lifecycle.delete(lifecycle.Runtime(root), id, force=True)
            return
        except NotFound:
            return  # somebody was faster
        except WrongState:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
