"""The first steps inside: namespaces, session, keyring, loopback."""

from __future__ import annotations

import _signal
import _socket
import _struct as struct
import fcntl
import posix as os

from ocirt import namespaces
from ocirt.errors import Error
from ocirt.identity import labels
from ocirt.linux import libc, numbers, prctl, sched

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

_KEYCTL_JOIN_SESSION_KEYRING = 1
_KEYCTL_SETPERM = 5
_KEYCTL_DESCRIBE = 6
_SIOCSIFFLAGS = 0x8914
_IFF_UP_LOOPBACK_RUNNING = 0x1 | 0x8 | 0x40


def wait_for_ids(plan: Plan) -> None:
    """wait until the ids of this process are mapped"""
    # should the runtime be killed from here on, this process ends with it
    prctl.prctl(prctl.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if "user" in plan.new and not plan.mapped:
        plan.channel.receive("mapped")


def join_namespaces(plan: Plan) -> None:
    """join the namespaces that have a path"""
    if plan.joined:
        # processes that live there must not be able to trace this one (CVE-2016-9962)
        prctl.set_dumpable(False)
        namespaces.join(plan.joined, set(plan.joined) - plan.entered)
        for fd in plan.joined.values():
            os.close(fd)


def make_other_namespaces(plan: Plan) -> None:
    """make the namespaces that clone has not made"""
    late = plan.new - plan.entered - {"cgroup"}
    if late:
        sched.unshare(namespaces.flags(late))


def enter_cgroup(plan: Plan) -> None:
    """enter the cgroup

    By files that the runtime has opened; nothing of the container has been joined yet.
    """
    if plan.entrances:
        plan.entrances.enter()


def charge_memory(plan: Plan) -> None:
    """enter the memory cgroup

    Pages that were touched before it belong to whoever called the runtime.
    """
    if plan.entrances:
        plan.entrances.charge()


def make_cgroup_namespace(plan: Plan) -> None:
    """make the cgroup namespace

    Its root is the cgroup of whoever makes it: not before the runtime has moved
    us, where it has to.
    """
    if "cgroup" in plan.new:
        wait_for_cgroup(plan)
        sched.unshare(sched.CLONE_NEWCGROUP)


def wait_for_cgroup(plan: Plan) -> None:
    """wait until this process is in its cgroup"""
    plan.channel.receive("joined")


def set_plain_umask(plan: Plan) -> None:
    """set the umask for what is made in the container"""
    os.umask(0o022)


def make_session(plan: Plan) -> None:
    """lead a session"""
    os.setsid()


def hide_from_container(plan: Plan) -> None:
    """become invisible to debuggers

    Until execve this process holds the host's interpreter, paths and configuration.
    Not dumpable, only root of the *host's* user namespace may trace it or open its
    /proc/PID/exe, fd, mem (CVE-2016-9962, CVE-2019-5736).
    """
    prctl.set_dumpable(False)


def make_keyring(plan: Plan) -> None:
    """join a session keyring of its own"""
    if plan.no_new_keyring:
        return
    labels.label_keyring(plan)
    keyctl = numbers.number("keyctl")
    try:
        name = f"_ses.{plan.id}".encode()
        ring = libc.syscall("keyctl", keyctl, _KEYCTL_JOIN_SESSION_KEYRING, name)
        # the user may search it: otherwise a process that isn't root can't use its own keyring
        libc.syscall("keyctl", keyctl, _KEYCTL_SETPERM, ring, _with_user_search(keyctl, ring))
    except Error as error:
        if error.errno not in (libc.ENOSYS, libc.EPERM, 13, 122):  # EACCES; EDQUOT: the user's quota of keys is used up
            raise


def _with_user_search(keyctl: int, ring: int) -> int:
    """The key's permissions as they are, plus search for its user."""
    buffer = libc.Buffer(256)
    libc.syscall("keyctl", keyctl, _KEYCTL_DESCRIBE, ring, buffer, 256)
    # type;uid;gid;perm;description
    fields = bytes(buffer.data).split(b"\0", 1)[0].split(b";")
    return int(fields[3], 16) | 0x080000


def open_root(plan: Plan) -> None:
    """open the root of the container that was entered"""
    plan.root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def raise_loopback(plan: Plan) -> None:
    """bring up the loopback interface of the new network namespace"""
    if "network" not in plan.new:
        return
    socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        fcntl.ioctl(socket.fileno(), _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP_LOOPBACK_RUNNING))
    finally:
        socket.close()
