"""The spare shim: a process that has imported everything and waits to become the next one.

A shim's first seconds are its imports, and its memory is mostly what they leave behind. So the first shim of a
containerd leaves a spare one, clean, before it has any container; `start` asks it for a fork, which is warm at once
and shares its memory. `start` uses it only if it is to be told from a fork of itself by nothing (`likeness`): same
cgroups, namespaces, root, credentials, limits, scheduling; what may differ (environment, OOM score, descriptors, log)
is sent along. Where it differs or doesn't answer, `start` forks as if there were none.

It ends when it hasn't been asked for a while and no shim of its making lives; OCIRT_SHIM_SPARE is that time in
seconds, 0 for no spare shim at all. There is none for a checkout, which changes: only where an image tells one
installation from the next (cli/image.py).
"""

from __future__ import annotations

import _socket
import marshal
import posix
import sys

from ocirt.shim import bundles, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ocirt.shim.daemon import Place

VARIABLE = "OCIRT_SHIM_SPARE"
_DEFAULT = 30
_MESSAGE_MAX = 1 << 17
#: What `start` answers the new shim: it has heard of it in time, and won't fork another one for the same socket.
_TAKEN = b"taken"
_BACKLOG = 128
#: Milliseconds: for the answer of a spare shim; for a request's arrival.
_PATIENCE, _ARRIVAL = 2000, 1000

#: Lines of /proc/PID/status that must be alike.
_STATUS = (
    b"Uid", b"Gid", b"Groups", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb", b"NoNewPrivs",
    b"Seccomp", b"Seccomp_filters", b"Speculation_Store_Bypass", b"Cpus_allowed", b"Mems_allowed", b"SigIgn",
    b"Umask", b"SpeculationIndirectBranch", b"THP_enabled",
)  # fmt: skip
#: Files of /proc/PID that must be alike; some kernels haven't all of them.
_FILES = ("cgroup", "limits", "personality", "timerslack_ns", "coredump_filter", "loginuid", "attr/current")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts")


def seconds(environment: dict[str, str]) -> int:
    """How long a spare shim waits; 0 where there is to be none."""
    if image() < 0:
        return 0
    text = environment.get(VARIABLE, str(_DEFAULT))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else _DEFAULT


def image() -> int:
    """The descriptor that modules are loaded from (cli/image.py), -1 if they aren't: a launcher's, `__main__`."""
    return int(getattr(sys.modules["__main__"], "IMAGE", -1))


def address_of(directory: str, grpc: str) -> str:
    """Where the spare shim of an installation listens for a containerd."""
    status = posix.fstat(image())
    installation = f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}"
    return sockets.address_of(directory, grpc, "ocirt-spare", installation) + ".spare"


def likeness(pid: str) -> list[bytes]:
    """What processes must have in common so that a fork of one can stand for a fork of the other."""
    of = f"/proc/{pid}/"
    found = [line for line in bundles.read(of + "status").splitlines() if line.partition(b":")[0] in _STATUS]
    found.append(posix.readlink(of + "root").encode())
    for name in _FILES:
        try:
            found.append(bundles.read(of + name))
        except OSError:
            found.append(b"")  # attr/current without a security module
    for name in _NAMESPACES:
        try:
            found.append(posix.readlink(f"{of}ns/{name}").encode())
        except FileNotFoundError:
            found.append(b"")
    fields = bundles.read(of + "stat").rpartition(b")")[2].split()
    found += [fields[15], fields[16], fields[38], fields[37]]  # priority, nice, policy, rt_priority
    return found


def ask(address: str, listener: _socket.socket, place: Place) -> int:
    """Have the spare shim become the shim of `listener`: its pid, 0 if there is none that could."""
    socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        socket.settimeout(_PATIENCE / 1000)
        socket.connect(sockets.path_of(address))
        credentials = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        pid = int.from_bytes(credentials[:4], sys.byteorder)
        rights = listener.fileno().to_bytes(4, sys.byteorder)
        socket.sendmsg([marshal.dumps(dict(place))], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        if likeness(str(pid)) != likeness("self"):  # it forks meanwhile; a fork that isn't taken ends
            return 0
        pid = int(socket.recv(32) or b"0")
        socket.send(_TAKEN, _socket.MSG_NOSIGNAL)
        return pid
    except (OSError, TimeoutError):
        return 0  # nobody there, or too late: who answers now finds nobody to answer, and ends
    finally:
        socket.close()


def leave(address: str, idle: int, score: int) -> None:
    """Fork the spare shim, if there is none: from a warm daemon that has nothing to do yet."""
    with sockets.Locked(address):
        listener = sockets.listen(address, _socket.SOCK_SEQPACKET)
    if listener is None:
        return
    if posix.fork():
        listener.close()
        return
    try:
        wait(listener, address, idle, score)
    finally:
        posix._exit(0)


def wait(listener: _socket.socket, address: str, idle: int, score: int) -> None:
    """Be the spare shim. Returns when nobody has asked for long enough, or on SIGTERM."""
    import _signal
    import select

    from ocirt import log
    from ocirt.linux import fds, prctl, signals, title

    posix.setsid()
    prctl.set_name("ocirt-spare")
    title.set_arguments("spare")
    null = posix.open("/dev/null", posix.O_RDWR | posix.O_CLOEXEC)
    for fd in (0, 1, 2):
        posix.dup2(null, fd)
    log.detach()
    fds.close_all_but({0, 1, 2, listener.fileno(), image()})
    write_oom_score("self", score)
    listener.listen(_BACKLOG)  # SO_PEERCRED tells of whoever called it last: of us from now on
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, {_signal.SIGCHLD, _signal.SIGTERM})
    received = signals.signalfd({_signal.SIGCHLD, _signal.SIGTERM})
    poll.register(received, select.POLLIN)
    children = 0
    while True:
        ready = [fd for fd, _ in poll.poll(idle * 1000)]
        told = received in ready and signals.read_signal(received) == _signal.SIGTERM
        if received in ready:
            children -= _reap()
        if listener.fileno() in ready:
            children += _answer(listener)
        if told or not (ready or children):
            sockets.remove(address, sockets.identity(address))
            # who has connected meanwhile is answered by nobody, and forks by itself
            return


def _reap() -> int:
    """How many shims have ended."""
    count = 0
    try:
        while posix.waitpid(-1, posix.WNOHANG)[0]:
            count += 1
    except ChildProcessError:
        pass
    return count


def _answer(listener: _socket.socket) -> int:
    """Take one request and fork: the child becomes a shim and doesn't return. How many shims there are more."""
    from ocirt.linux import fds
    from ocirt.shim import daemon

    connection = _socket.socket(fileno=fds.accept(listener))
    try:
        if not sockets.is_ours(connection):
            return 0
        connection.settimeout(_ARRIVAL / 1000)
        data, received = fds.receive(connection, _MESSAGE_MAX)
        if not data or len(received) != 1:
            for fd in received:
                posix.close(fd)
            return 0
        socket = _socket.socket(fileno=received[0])  # closed in any case: a shim's socket mustn't outlive it here
        try:
            if pid := posix.fork():
                _tell(connection, pid)
                return 1
            try:
                listener.close()
                request: Any = marshal.loads(data)  # noqa: S302 (of our own user, see is_ours)
                daemon.take_over(connection, socket, **request)
            finally:
                posix._exit(0)
        finally:
            socket.close()
    except OSError:
        return 0
    finally:
        connection.close()


def _tell(connection: _socket.socket, pid: int) -> None:
    try:
        connection.send(b"%d" % pid, _socket.MSG_NOSIGNAL)
    except OSError:
        pass  # `start` has found that they differ: the fork will hear so, and end


def write_oom_score(pid: int | str, score: int) -> None:
    """Set a process's oom_score_adj."""
    fd = posix.open(f"/proc/{pid}/oom_score_adj", posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, b"%d" % score)
    except OSError:
        pass  # without CAP_SYS_RESOURCE it may only rise
    finally:
        posix.close(fd)
