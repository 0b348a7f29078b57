"""`delete`: take away what is left of a container.

containerd calls it after every ordinary Delete, when nothing is left, and it answers at once (where hack/install has
made the launcher, a shell does); and when a shim has died or doesn't answer, when this is the only one who cleans up.
"""

from __future__ import annotations

import posix
import time

from ocirt.shim import bundles, main, sockets, wire
from ocirt.shim.messages import DELETED, timestamp

_KILLED = 128 + 9
#: Seconds that a worker has to die after its shim; containerd gives `delete` five.
_DYING = 3.0


def delete(options: main.Options) -> None:
    """Kill and remove the container, unmount its root filesystem, and say how it ended: was killed, if nobody knows."""
    bundle = posix.getcwd().rpartition("/")[0] + f"/{options.id}"
    root = bundles.noted_root(bundle)
    try:
        if root and _exists(f"{root}/{options.id}"):
            _remove(root, options.id)
    finally:
        # containerd removes the bundle next, whatever we say
        if f"/{options.id}/rootfs".encode() in bundles.read("/proc/self/mountinfo"):
            from ocirt.shim.rootfs import unmount

            unmount(f"{bundle}/rootfs")
    address = bundles.noted_address(bundle)
    if address.startswith("unix://"):
        sockets.remove_dead(address)
    killed = {"exit_status": _KILLED, "exited_at": timestamp(time.time())}
    main.write(bundles.noted_answer(bundle) or wire.encode(DELETED, killed))


def _remove(root: str, id: str) -> None:
    """Delete the container, which another process may still be creating: a worker that dies with its shim."""
    from ocirt import lifecycle
    from ocirt.errors import NotFound, WrongState

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
