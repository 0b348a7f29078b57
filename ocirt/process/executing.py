"""The last steps: working directory, program, signals, seccomp, execve."""

from __future__ import annotations

import _socket
import errno
import posix as os

from ocirt import log
from ocirt.errors import Error, call_failed, from_oserror
from ocirt.identity import seccomp
from ocirt.linux import fds, prctl, signals
from ocirt.linux.paths import mkdir_in_root
from ocirt.process import trampoline

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.process.plan import Plan

_NULL = os.makedev(1, 3)
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def reopen_null(plan: Plan) -> None:
    """replace streams that are the host's /dev/null by the container's"""
    replacement = -1
    for fd in (0, 1, 2):
        try:
            if os.fstat(fd).st_rdev != _NULL:
                continue
        except OSError:
            continue
        if replacement < 0:
            try:
                replacement = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return
            if os.fstat(replacement).st_rdev != _NULL:
                break
        os.dup2(replacement, fd)
    if replacement >= 0:
        os.close(replacement)


def make_cwd(plan: Plan) -> None:
    """make the working directory"""
    cwd = plan.process.get("cwd")
    if cwd and cwd != "/":
        os.close(mkdir_in_root(plan.root, cwd, 0o755))


def enter_cwd(plan: Plan) -> None:
    """enter the working directory

    A path such as /proc/self/fd/7 could lead out of the container through a
    descriptor of ours (CVE-2024-21626). All are closed or close-on-exec; and
    where we have landed must be below the container's root: getcwd(2) gives
    "(unreachable)…" for everything else.
    """
    if not plan.process:
        return
    cwd = plan.process.get("cwd") or "/"
    try:
        os.chdir(cwd)
    except OSError as error:
        raise from_oserror(
            error, f'chdir("{cwd}")', "can the container's user enter it?" if error.errno == 13 else ""
        ) from None
    try:
        where = os.getcwd()
    except OSError as error:
        raise Error(
            f'chdir("{cwd}"): the directory is not below the container\'s root: {error.strerror}', error.errno or 0
        ) from None
    if not where.startswith("/"):
        raise Error(f'chdir("{cwd}"): the directory is not below the container\'s root', errno.EPERM)


def find_program(plan: Plan) -> None:
    """find the program"""
    if not plan.process:
        return
    name = plan.process["args"][0]
    if "/" in name:
        problem = _problem(name)
        if problem:
            raise Error(f'exec: "{name}": {problem[1]}', problem[0])
        plan.executable = name
        return
    denied: tuple[int, str] | None = None
    for directory in _search_path(plan.env).split(":"):
        path = f"{directory or '.'}/{name}"
        problem = _problem(path)
        if problem is None:
            plan.executable = path
            return
        if problem[0] == errno.EACCES:
            denied = denied or problem
    if denied:
        raise Error(f'exec: "{name}": {denied[1]}', denied[0])
    raise Error(f'exec: "{name}": executable file not found in $PATH', errno.ENOENT)


def _search_path(env: list[str]) -> str:
    for entry in reversed(env):
        if entry.startswith("PATH="):
            return entry[5:]
    return _DEFAULT_PATH


def _problem(path: str) -> tuple[int, str] | None:
    """Why `path` can't be executed: (errno, text); engines tell 126 from 127 by the text."""
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno or 0, call_failed(f"stat {path}", error.errno or 0, error.strerror or "")
    if status.st_mode & 0o170000 == 0o040000:
        return errno.EACCES, "permission denied (is a directory)"
    if not os.access(path, os.X_OK, effective_ids=True):
        return errno.EACCES, "permission denied"
    return None


def set_no_new_privileges(plan: Plan) -> None:
    """forbid new privileges"""
    if plan.process.get("noNewPrivileges"):
        prctl.prctl(prctl.PR_SET_NO_NEW_PRIVS, 1)


def make_trampoline(plan: Plan) -> None:
    """make the trampoline"""
    if plan.process and plan.uses_trampoline:
        plan.trampoline = trampoline.make(plan.executable, _report_fd(plan))


def close_other_descriptors(plan: Plan) -> None:
    """close what only set-up needed"""
    keep = {plan.channel.socket.fileno(), plan.trampoline, *range(3 + plan.preserve_fds)}
    if plan.listener is not None:
        keep.add(plan.listener.fileno())
    if (plan.config.get("hooks") or {}).get("startContainer"):
        keep.update(plan.hook_files)
    keep.discard(-1)
    log.detach()
    fds.close_all_but(keep)


def _report_fd(plan: Plan) -> int:
    """Where the trampoline reports: the first descriptor after those that are passed on."""
    return 3 + plan.preserve_fds


def reset_signals(plan: Plan) -> None:
    """reset signal dispositions and the signal mask"""
    signals.reset()


def prepare_execve(plan: Plan) -> None:
    """arrange the descriptors for the program

    Whatever can be done before the seccomp filter is loaded is done here: after
    it only capset, execveat and execve are called.
    """
    if not plan.process:
        raise Error("process is not set in config.json: there is nothing to start")
    plan.channel.send("executing")
    target = _report_fd(plan)
    if plan.trampoline >= 0:
        socket = plan.channel.socket
        if socket.fileno() != target:
            if plan.trampoline == target:
                plan.trampoline = os.dup(plan.trampoline)
            os.dup2(socket.fileno(), target)
            plan.channel.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, target)
        fds.cloexec_from(target + 1)
        os.set_inheritable(target, True)
    else:
        fds.cloexec_from(target)


def load_seccomp(plan: Plan) -> None:
    """load the seccomp filter"""
    if plan.filter is None:
        return
    listener = seccomp.load(plan.filter)
    if listener < 0:
        return
    # A call that the filter notifies of now blocks until the agent has the listener.
    # Only write(2) is needed to tell the runtime its number (it takes it by
    # pidfd_getfd): validation refuses profiles that notify of write.
    os.write(plan.channel.socket.fileno(), b"seccomp\0%d" % listener)
    if not os.read(plan.channel.socket.fileno(), 64):
        os._exit(1)  # the agent couldn't be told, or the runtime is gone: the program must not run unwatched
    os.close(listener)


def execute(plan: Plan) -> None:
    """execute the program"""
    environment: dict[str, str] = {}
    for entry in plan.env:
        name, _, value = entry.partition("=")
        environment[name] = value
    arguments = plan.process["args"]
    if plan.trampoline >= 0:
        os.execve(plan.trampoline, arguments, environment)
    try:
        os.execve(plan.executable, arguments, environment)
    except OSError as error:
        raise Error(
            call_failed(f'exec "{plan.executable}"', error.errno or 0, error.strerror or ""), error.errno or 0
        ) from None
