"""User, groups, umask and the home directory: config.md, POSIX-platform User."""

from __future__ import annotations

import _stat as stat
import errno
import posix as os

from ocirt.errors import from_oserror
from ocirt.linux import prctl
from ocirt.linux.oslike import fsdecode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

#: What runc and crun use, and every engine relies on, when user.umask isn't given.
DEFAULT_UMASK = 0o022

_PASSWD_LIMIT = 1 << 20


def become_root(plan: Plan) -> None:
    """become root of the user namespace"""
    if not plan.userns:
        return
    try:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        # EINVAL: 0 isn't mapped. The capabilities in the namespace suffice for what follows.
        if error.errno != 22:
            raise from_oserror(error, "setresuid(0, 0, 0)") from None
    if keeps_groups(plan):
        return
    try:
        os.setgroups([])
    except PermissionError:
        pass  # denied for good where an unprivileged user wrote the gid map (user_namespaces(7))


def keeps_groups(plan: Plan) -> bool:
    """Does the process keep the groups of the caller, for files that only these may read?

    podman sets the annotation for `--group-add keep-groups`.
    """
    return (plan.config.get("annotations") or {}).get("run.oci.keep_original_groups") == "1"


def set_umask(plan: Plan) -> None:
    """set the umask"""
    if plan.process:
        umask = plan.user.get("umask")
        os.umask(DEFAULT_UMASK if umask is None else umask)


def own_stdio(plan: Plan) -> None:
    """give the standard streams to the container's user

    So that a process that isn't root may open /dev/stdout: pipes, sockets and files. The
    container's terminal has its owner already; the caller's keeps it, because whoever owns
    it can read and push input long after the container has gone. So do devices.
    """
    if not plan.process:
        return
    uid = plan.user.get("uid", 0)
    for fd in (0, 1, 2):
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        if status.st_uid == uid or stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            continue
        try:
            os.fchown(fd, uid, -1)
        except OSError as error:
            # EINVAL: not mapped; EPERM: somebody else's; EROFS; ENOSYS and the like of odd file systems
            if error.errno not in (22, 1, 30, 38, 95):
                raise from_oserror(error, f"fchown({fd}, {uid}, -1)") from None


def set_home(plan: Plan) -> None:
    """find the home directory in the container's /etc/passwd"""
    if not plan.process or any(e.startswith("HOME=") and len(e) > 5 for e in plan.env):
        return
    uid = plan.user.get("uid", 0)
    plan.env[:] = [e for e in plan.env if not e.startswith("HOME=")]
    plan.env.append("HOME=" + (_home_of(uid) or "/"))


def _home_of(uid: int) -> str:
    """The sixth field of the user's line; NSS would load the container's libraries."""
    try:
        fd = os.open("/etc/passwd", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return ""
    try:
        data = os.read(fd, _PASSWD_LIMIT)
    except OSError:
        return ""
    finally:
        os.close(fd)
    for line in data.split(b"\n"):
        fields = line.split(b":")
        if len(fields) >= 6 and fields[2] == str(uid).encode() and fields[5].startswith(b"/"):
            return fsdecode(fields[5])
    return ""


def set_user(plan: Plan) -> None:
    """become the container's user"""
    if not plan.process:
        return
    uid, gid = plan.user.get("uid", 0), plan.user.get("gid", 0)
    groups = list(plan.user.get("additionalGids") or [])
    try:
        if not keeps_groups(plan):
            os.setgroups(groups)
    except OSError as error:
        if not (plan.userns and error.errno == errno.EPERM):
            raise from_oserror(error, f"setgroups({groups})", _unmapped(error)) from None
        if groups:
            hint = "additionalGids need a user namespace whose gids newgidmap mapped"
            raise from_oserror(error, f"setgroups({groups})", hint) from None
    try:
        os.setresgid(gid, gid, gid)
    except OSError as error:
        raise from_oserror(error, f"setresgid({gid}, {gid}, {gid})", _unmapped(error)) from None
    try:
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise from_oserror(error, f"setresuid({uid}, {uid}, {uid})", _unmapped(error)) from None
    # a change of user makes the process dumpable by /proc/sys/fs/suid_dumpable: be sure (CVE-2016-9962)
    prctl.set_dumpable(False)


def _unmapped(error: OSError) -> str:
    return "is the id mapped in the container's user namespace?" if error.errno == 22 else ""
