"""What a shim leaves in a bundle for `delete`, which may be run when nobody else knows of the container any more."""

from __future__ import annotations

import posix

from ocirt.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_ROOT = "/run/containerd/ocirt"
_NOTE = "ocirt-root"
_DELETED = "ocirt-deleted"
_ADDRESS = "address"


def state_root(options: dict[str, Any], namespace: str) -> str:
    """The directory of the runtime's state for the containers of a namespace (`ocirt --root` finds them there).

    InvalidConfig for one that isn't absolute: `delete` is called in another directory.
    """
    root = options.get("root") or DEFAULT_ROOT
    if not root.startswith("/"):
        raise InvalidConfig(f"option Root: {root!r} isn't an absolute path")
    return f"{root}/{namespace}"


def note(bundle: str, root: str) -> None:
    """Write down where the container's state is, before there is any."""
    try:
        posix.unlink(f"{bundle}/{_DELETED}")
    except FileNotFoundError:
        pass
    write(f"{bundle}/{_NOTE}", root.encode("utf-8", "surrogateescape"))


def noted_root(bundle: str) -> str:
    """Where the container's state is; "" if it was never to be created."""
    return read(f"{bundle}/{_NOTE}").decode("utf-8", "surrogateescape")


def note_deleted(bundle: str, answer: bytes, address: str) -> None:
    """Write down that nothing is left of the container, for whom a shell is enough (hack/containerd-shim-ocirt-v1.sh).

    answer   what `delete` is to print
    address  of the shim, which is to be alive, or its socket gone
    """
    text = "".join(f"\\{byte:03o}" for byte in answer)
    write(f"{bundle}/{_DELETED}", f"{text}\n{posix.getpid()}\n{address.removeprefix('unix://')}\n".encode())


def noted_answer(bundle: str) -> bytes:
    """What `delete` is to print of a container that the shim has deleted; empty of another."""
    text = read(f"{bundle}/{_DELETED}").partition(b"\n")[0]
    return bytes(int(byte, 8) for byte in text.split(b"\\")[1:])


def note_address(bundle: str, address: str) -> None:
    """Write down the shim's address: containerd 1.6 finds a shim again by it."""
    write(f"{bundle}/{_ADDRESS}", address.encode())


def noted_address(bundle: str) -> str:
    """The shim's address, "" if there is none."""
    return read(f"{bundle}/{_ADDRESS}").decode()


def read(path: str) -> bytes:
    """A file's content; empty if it isn't there."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        data = b""
        while more := posix.read(fd, 1 << 20):
            data += more
        return data
    finally:
        posix.close(fd)


def write(path: str, data: bytes) -> None:
    """Replace a file, atomically."""
    fd = posix.open(path + ".new", posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[posix.write(fd, data) :]
    finally:
        posix.close(fd)
    posix.rename(path + ".new", path)
