"""A container on disk: id, directory, lock, record, status.

One directory a container below the runtime's root, mode 0700:

    state.json   the record (see Container), replaced atomically
    config.json  the configuration as it was at create: later edits of the bundle's have no effect
    start.sock   init listens on it until `start`

Everything is found from there by any later process: nothing depends on one
being alive. `creating` is written before anything else exists, so that
`delete --force` finds what a crash has left.
"""

from __future__ import annotations

import fcntl
import posix
import time

from ocirt.errors import AlreadyExists, Error, NotFound, WrongState, from_oserror
from ocirt.ids import ID_CHARACTERS, check_id
from ocirt.jsontext import dump_json, parse_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import Any

    from ocirt.spec import Hook

CREATING = "creating"
CREATED = "created"
RUNNING = "running"
PAUSED = "paused"
STOPPED = "stopped"

STATE = "state.json"
CONFIG = "config.json"
SOCKET = "start.sock"

SIGKILL = 9


class Container:
    """A container that exists.

    record: what is kept in state.json
        ociVersion, id, bundle, rootfs, annotations, created (RFC 3339), owner   as `state` shows them
        pid, startTime     of init; the start time (clock ticks since boot) tells a reused pid
        cgroup             the record of ocirt.cgroups
        hooks              poststart and poststop
        mounts             what was mounted for a container without a mount namespace
        …                  whatever else delete has to take back
    """

    __slots__ = ("_lock", "directory", "id", "record")

    def __init__(self, id: str, directory: str, record: dict[str, Any]) -> None:
        self.id = id
        self.directory = directory
        self.record = record
        self._lock = -1

    @classmethod
    def make(cls, root: str, id: str, record: dict[str, Any]) -> Container:
        """Make the directory, locked, with the record in it; AlreadyExists if the id is taken."""
        check_id(id)
        _make_root(root)
        directory = f"{root}/{id}"
        try:
            posix.mkdir(directory, 0o700)
        except FileExistsError:
            raise AlreadyExists(f"container with given ID already exists: {id}") from None
        except OSError as error:
            raise from_oserror(error, f'mkdir("{directory}")') from None
        container = cls(id, directory, record)
        container.lock()
        container.save()
        return container

    @classmethod
    def load(cls, root: str, id: str, *, lock: bool = False) -> Container:
        """Find a container; NotFound if there is none. `lock` waits for other commands on it to end."""
        check_id(id)
        directory = f"{root}/{id}"
        container = cls(id, directory, {})
        if lock:
            container.lock()
        try:
            fd = posix.open(f"{directory}/{STATE}", posix.O_RDONLY | posix.O_CLOEXEC)
        except FileNotFoundError:
            # killed between mkdir and the first write
            if not _is_directory(directory):
                raise NotFound(f"container {id} does not exist") from None
            container.record = {"id": id, "bundle": "", "ociVersion": "1.0.0"}
            return container
        except NotADirectoryError:
            raise NotFound(f"container {id} does not exist") from None
        try:
            data = _read_all(fd)
        finally:
            posix.close(fd)
        container.record = parse_json(data, f"{directory}/{STATE}")  # type: ignore[assignment]
        return container

    def lock(self) -> None:
        """Hold the container for a change; the kernel gives it back however the process ends.

        NotFound when it doesn't exist, also when it went away while we waited.
        """
        try:
            fd = posix.open(self.directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"container {self.id} does not exist") from None
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                break
            except InterruptedError:
                continue
        if posix.fstat(fd).st_nlink == 0:
            posix.close(fd)
            raise NotFound(f"container {self.id} does not exist")
        self._lock = fd

    def unlock(self) -> None:
        """Give the container back."""
        if self._lock >= 0:
            posix.close(self._lock)
            self._lock = -1

    def is_being_created(self) -> bool:
        """Does another process hold the lock? It does while create runs, and no longer once it died."""
        fd = posix.open(self.directory, posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
        except BlockingIOError:
            return True
        finally:
            posix.close(fd)

    def save(self) -> None:
        """Replace state.json atomically."""
        self.write(STATE, dump_json(self.record))

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of the container's directory atomically, mode 0600."""
        path = f"{self.directory}/{name}"
        fd = posix.open(
            path + ".new", posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600
        )
        try:
            view = memoryview(data)
            while view:
                view = view[posix.write(fd, view) :]
        finally:
            posix.close(fd)
        posix.rename(path + ".new", path)

    def read(self, name: str) -> bytes:
        """A file of the container's directory."""
        fd = posix.open(f"{self.directory}/{name}", posix.O_RDONLY | posix.O_CLOEXEC)
        try:
            return _read_all(fd)
        finally:
            posix.close(fd)

    def config(self) -> dict[str, Any]:
        """The configuration as it was at create."""
        return parse_json(self.read(CONFIG), f"{self.directory}/{CONFIG}")  # type: ignore[return-value]

    def hooks(self, kind: str) -> list[Hook]:
        """The poststart or poststop hooks as they were at create."""
        kept: dict[str, list[Hook]] = self.record.get("hooks") or {}
        return kept.get(kind) or []

    def remove(self) -> None:
        """Remove the directory and what is in it."""
        try:
            names = posix.listdir(self.directory)
        except FileNotFoundError:
            return
        # the record goes last: a crash in between leaves something that delete --force still finds
        for name in sorted(names, key=lambda name: name == STATE):
            path = f"{self.directory}/{name}"
            if _is_directory(path):
                for inner in posix.listdir(path):
                    posix.unlink(f"{path}/{inner}")
                posix.rmdir(path)
            else:
                posix.unlink(path)
        posix.rmdir(self.directory)
        self.unlock()

    @property
    def pid(self) -> int:
        """The pid of init, also when it has ended; 0 if there never was one."""
        return int(self.record.get("pid", 0))

    def set_init(self, pid: int) -> None:
        """Remember init, before anything is done with it."""
        self.record["pid"] = pid
        self.record["startTime"] = start_time(pid)

    def alive(self) -> bool:
        """Is init running (and not a zombie, and not another process of the same pid)?"""
        pid = self.pid
        return pid > 0 and start_time(pid, zombie=False) == self.record.get("startTime")

    def status(self) -> str:
        """creating, created, running, paused or stopped (runtime.md, State)."""
        if "status" in self.record:
            # only `creating` is written down: what comes after it, the kernel knows better
            return str(self.record["status"])
        if not self.alive():
            return STOPPED
        if self.frozen():
            return PAUSED
        return CREATED if self._waits_for_start() else RUNNING

    def frozen(self) -> bool:
        """Is the cgroup frozen? One read of the file that its record names."""
        file, frozen = (self.record.get("freezer") or ("", ""))[:2]
        if not file:
            return False
        try:
            fd = posix.open(file, posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError:
            return False
        try:
            return posix.read(fd, 64).strip().decode("ascii", "replace") in frozen.split()
        except OSError:
            return False
        finally:
            posix.close(fd)

    def _waits_for_start(self) -> bool:
        """Does init still listen? The file may be left of a `start` that was killed; otherwise `start` removes it."""
        if not posix.access(f"{self.directory}/{SOCKET}", posix.F_OK):
            return False  # nearly always: no socket is needed
        try:
            self.call().close()
        except OSError:
            return False
        return True

    def call(self) -> _socket.socket:
        """Connect to the init that waits for start; OSError if none does."""
        import _socket

        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            with_directory(self.directory, lambda directory: socket.connect(f"{directory}/{SOCKET}"))
        except OSError:
            socket.close()
            raise
        return socket

    def listen(self) -> _socket.socket:
        """The socket on which init waits for start."""
        import _socket

        socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        try:
            with_directory(self.directory, lambda directory: socket.bind(f"{directory}/{SOCKET}"))
            socket.listen(8)
        except OSError as error:
            socket.close()
            raise from_oserror(error, f"bind {self.directory}/{SOCKET}") from None
        return socket

    def state(self, status: str | None = None, pid: int | None = None) -> dict[str, Any]:
        """The state of runtime.md, with `rootfs`, `created` and `owner` as runc has them."""
        status = status or self.status()
        record = self.record
        if pid is None:
            pid = 0 if status == STOPPED else record.get("pid", 0)
        result = {
            "ociVersion": record.get("ociVersion", "1.0.0"),
            "id": self.id,
            "pid": pid,
            "status": status,
            "bundle": record.get("bundle", ""),
            "rootfs": record.get("rootfs", ""),
            "created": record.get("created", ""),
            "owner": record.get("owner", ""),
        }
        if record.get("annotations"):
            result["annotations"] = record["annotations"]
        return result


def end_process(pid: int, after_kill: Any = None) -> None:
    """SIGKILL a process and wait until it is gone, whoever its parent is."""
    try:
        pidfd = posix.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        pidfd = -1
    try:
        posix.kill(pid, SIGKILL)
        if after_kill is not None:
            after_kill()
        if pidfd >= 0:
            import select

            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if not poll.poll(10_000):
                raise Error(f"process {pid} does not end after SIGKILL (is it stuck in the kernel?)")
        else:
            deadline = time.monotonic() + 10
            while start_time(pid, zombie=False) and time.monotonic() < deadline:
                time.sleep(0.01)
    except ProcessLookupError:
        pass
    finally:
        if pidfd >= 0:
            posix.close(pidfd)
    try:
        posix.waitpid(pid, posix.WNOHANG)
    except ChildProcessError:
        pass


def with_directory(directory: str, use: Callable[[str], None]) -> None:
    """Call `use` with a short path of the directory: a unix socket's is 108 bytes at most."""
    if len(directory.encode("utf-8", "surrogateescape")) < 90:
        use(directory)
        return
    fd = posix.open(directory, posix.O_PATH | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        use(f"/proc/self/fd/{fd}")
    finally:
        posix.close(fd)


def ids(root: str) -> list[str]:
    """The ids of all containers, in order; what isn't a valid id is something else's."""
    try:
        names = posix.listdir(root)
    except FileNotFoundError:
        return []
    return sorted(
        n for n in names if not n.startswith(".") and ID_CHARACTERS.issuperset(n.encode("utf-8", "surrogateescape"))
    )


def _read_all(fd: int) -> bytes:
    """A whole file. The first read takes nearly every one; larger buffers are mapped and unmapped for it each time."""
    data = posix.read(fd, 32768)
    if len(data) == 32768:
        parts = [data]
        while part := posix.read(fd, 1 << 20):
            parts.append(part)
        data = b"".join(parts)
    return data


def _is_directory(path: str) -> bool:
    try:
        return posix.lstat(path).st_mode & 0o170000 == 0o040000
    except OSError:
        return False


def _make_root(root: str) -> None:
    from ocirt.linux.oslike import makedirs

    try:
        makedirs(root, 0o700)
    except OSError as error:
        raise from_oserror(error, f'mkdir("{root}")', "is --root writable for this user?") from None


def start_time(pid: int, *, zombie: bool = True) -> int:
    """The start time of a process in clock ticks since boot (proc(5), field 22 of stat); 0 if there is none.

    zombie  False: a process that has exited but isn't reaped counts as none
    """
    fields = _stat(pid)
    if not fields or (not zombie and fields[0] in _DEAD):
        return 0
    return int(fields[19])


def is_exiting(pid: int) -> bool:
    """Has the process ended, or is it on its way out of the kernel (field 9 of stat)?"""
    fields = _stat(pid)
    return not fields or fields[0] in _DEAD or bool(int(fields[6]) & _PF_EXITING)


_DEAD = (b"Z", b"X", b"x")
_PF_EXITING = 4


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on; empty if there is no such process."""
    try:
        fd = posix.open(f"/proc/{pid}/stat", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return []
    try:
        data = posix.read(fd, 4096)
    except OSError:
        return []
    finally:
        posix.close(fd)
    # the name in parentheses may hold anything, parentheses too
    return data[data.rindex(b")") + 2 :].split()


def require(container: Container, allowed: tuple[str, ...], message: str) -> str:
    """The status, if it is one of `allowed`; WrongState with the message otherwise."""
    status = container.status()
    if status not in allowed:
        raise WrongState(message.format(id=container.id, status=status))
    return status
