"""`delete`: take away what is left of a container.

containerd calls it after every ordinary Delete, when nothing is left, and it answers at once; and when a shim has
died or doesn't answer, when this is the only one who cleans up.
"""

from __future__ import annotations

import posix
import time

from ocirt.shim import bundles, main, sockets, wire
from ocirt.shim.messages import DELETED, timestamp

_KILLED = 128 + 9


def delete(options: main.Options) -> None:
    """Kill and remove the container, unmount its root filesystem, and say that it was killed."""
    bundle = posix.getcwd().rpartition("/")[0] + f"/{options.id}"
    root = bundles.noted_root(bundle)
    if root and _exists(f"{root}/{options.id}"):
        from ocirt import lifecycle
        from ocirt.errors import NotFound

        try:
            lifecycle.delete(lifecycle.Runtime(root), options.id, force=True)
        except NotFound:
            pass  # somebody was faster
    rootfs = f"{bundle}/rootfs"
    if f"/{options.id}/rootfs".encode() in bundles.read("/proc/self/mountinfo"):
        from ocirt.shim.rootfs import unmount

        unmount(rootfs)
    address = bundles.noted_address(bundle)
    if address.startswith("unix://"):
        sockets.remove_dead(address)
    main.write(wire.encode(DELETED, {"exit_status": _KILLED, "exited_at": timestamp(time.time())}))


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True
