"""The operations of the runtime specification, as functions (runtime.md, Operations).

Every front calls these: the command line, the shim, the Python API. What is made
on the host is followed at once by how it is taken back (Undo).
"""

from __future__ import annotations

import posix

from ocirt import container as _container
from ocirt import log
from ocirt.container import CREATED, CREATING, PAUSED, RUNNING, STOPPED, Container
from ocirt.errors import Error, HookFailed, WrongState, doing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ocirt.notify import Relay

SIGKILL = _container.SIGKILL


class Runtime:
    """What the global options say.

    root            directory of the containers' state
    cgroup_manager  cgroupfs, systemd or disabled
    rootless        the caller isn't root, or root of a user namespace only
    argv            the command line, for a start over from a sealed interpreter, or what gives it then; empty in a
                    library
    """

    __slots__ = ("argv", "cgroup_manager", "debug", "root", "rootless")

    def __init__(
        self,
        root: str = "/run/ocirt",
        *,
        cgroup_manager: str = "cgroupfs",
        rootless: bool = False,
        debug: bool = False,
        argv: tuple[str, ...] | Callable[[], tuple[str, ...]] = (),
    ) -> None:
        self.root = root.rstrip("/") or "/"
        self.cgroup_manager = cgroup_manager
        self.rootless = rootless
        self.debug = debug
        self.argv = argv


def create(
    runtime: Runtime,
    id: str,
    bundle: str,
    *,
    config: str | None = None,
    console_socket: str | None = None,
    console: int = -1,
    pid_file: str | None = None,
    pidfd_socket: str | None = None,
    no_pivot: bool = False,
    no_new_keyring: bool = False,
    preserve_fds: int = 0,
    network: dict[str, Any] | None = None,
) -> Container:
    """Create a container from a bundle; its program waits for `start`.

    console  a connected socket that gets the terminal's master if the process wants a terminal
    network  the networks to attach it to: the keyword arguments of ocirt.cni.attach.parse

    Raises InvalidConfig before anything was made, AlreadyExists, Unsupported,
    Error; nothing is left then (runtime.md, Create and Errors).
    """
    from ocirt.creating import Options
    from ocirt.creating import create as make

    options = Options(
        config=config,
        console_socket=console_socket,
        console=console,
        pid_file=pid_file,
        pidfd_socket=pidfd_socket,
        no_pivot=no_pivot,
        no_new_keyring=no_new_keyring,
        preserve_fds=preserve_fds,
        network=network,
    )
    return make(runtime, id, bundle, options)


def start(runtime: Runtime, id: str, *, relay: bool = True) -> Relay | None:
    """Run the program of a created container (runtime.md, Start).

    Returns once the program has been executed and the poststart hooks have run;
    with NOTIFY_SOCKET in the environment, once the program says that it is ready.
    WrongState if the container isn't `created`.

    relay  False: the caller passes the readiness messages on, with what is returned
    """
    container = Container.load(runtime.root, id, lock=True)
    try:
        notifications = _start(container)
        from ocirt.process.start import run_poststart

        # a hook may want to use the runtime on the container
        container.unlock()
        with doing(f"start container {id}"):
            run_poststart(container)
    except HookFailed:
        # runtime.md, Lifecycle, steps 7 and 9: generate an error, stop the container, go on with destroying it
        container.unlock()
        delete(runtime, id, force=True)
        raise
    finally:
        container.unlock()  # whoever undoes what led here wants it
    if notifications and relay:
        notifications.wait()
    return notifications


def _start(container: Container) -> Relay | None:
    """The checks of `start` and the conversation with init, under the lock."""
    log.step("start the container")
    id, status = container.id, container.status()
    if status == STOPPED:
        raise WrongState(f"cannot start a container that has stopped: {id}")
    if status == CREATING:
        raise WrongState(f"cannot start a container that is not created: {id} is {status}")
    if status != CREATED:
        raise WrongState(f"cannot start an already running container: {id} is {status}")
    from ocirt.process.start import start_init

    notifications = None
    if b"NOTIFY_SOCKET" in posix.environ:
        from ocirt.notify import Relay

        notifications = Relay.open(container)
    with doing(f"start container {id}"):
        start_init(container)
    return notifications


def state(runtime: Runtime, id: str) -> dict[str, Any]:
    """The state of a container (runtime.md, State); NotFound if there is none."""
    return Container.load(runtime.root, id).state()


def containers(runtime: Runtime) -> list[dict[str, Any]]:
    """The states of all containers; one that goes away meanwhile is left out."""
    states: list[dict[str, Any]] = []
    owners: dict[int, str] = {}
    for id in _container.ids(runtime.root):
        try:
            container = Container.load(runtime.root, id)
            states.append({**container.state(), "owner": _owner(container.directory, owners)})
        except (Error, OSError) as error:
            log.debug(f"list: {error}")
    return states


def _owner(directory: str, known: dict[int, str]) -> str:
    """The name of the user who created a container; the number if it has none. `known` spares the next one's search."""
    uid = posix.stat(directory).st_uid
    if uid not in known:
        import pwd

        try:
            known[uid] = pwd.getpwuid(uid).pw_name
        except KeyError:
            known[uid] = str(uid)
    return known[uid]


def kill(runtime: Runtime, id: str, signal: int, *, all: bool = False) -> None:
    """Send a signal to init, or to every process of the container (runtime.md, Kill).

    WrongState when the container is neither created nor running.
    """
    container = Container.load(runtime.root, id)
    status = container.status()
    log.step("send the signal")
    if status in (STOPPED, CREATING):
        if all and status == STOPPED:
            # a container without a pid namespace may have processes left after init has gone
            _cgroup(container).signal(signal)
            return
        raise WrongState(f"container not running: {id} is {status}")
    if all:
        _signal_all(container, signal)
        return
    _signal_init(container, signal)
    if status == PAUSED and signal == SIGKILL:
        # SIGKILL takes effect only when the cgroup thaws on v1
        _cgroup(container).thaw()
    elif signal == SIGKILL and not container.record.get("pidNamespace", True):
        _cgroup(container).kill()


def _signal_all(container: Container, signal: int) -> None:
    """To every process of the cgroup; of a container that has none, to every process of its pid namespace."""
    cgroup = _cgroup(container)
    if cgroup.pids():
        cgroup.signal(signal)
        return
    if container.record.get("pidNamespace", True):
        init = posix.stat(f"/proc/{container.pid}/ns/pid").st_ino
        for name in posix.listdir("/proc"):
            if name.isdigit():
                _signal_member(int(name), init, signal)
        return
    _signal_init(container, signal)


def _signal_member(pid: int, namespace: int, signal: int) -> None:
    """If the process is in the pid namespace; it can't be another one of the same pid by then."""
    import _signal

    try:
        pidfd = posix.pidfd_open(pid)
    except OSError:
        return  # it has ended; or is a thread
    try:
        if posix.stat(f"/proc/{pid}/ns/pid").st_ino == namespace:
            _signal.pidfd_send_signal(pidfd, signal)
    except OSError:
        pass  # it has ended, or is somebody else's
    finally:
        posix.close(pidfd)


def _signal_init(container: Container, signal: int) -> None:
    """Through a pidfd, so that a reused pid can't be hit."""
    import _signal

    pid = container.pid
    try:
        pidfd = posix.pidfd_open(pid)
    except ProcessLookupError:
        raise WrongState(f"container not running: {container.id} is {STOPPED}") from None
    except OSError as error:
        if error.errno != 38:
            raise
        posix.kill(pid, signal)
        return
    try:
        if not container.alive():
            raise WrongState(f"container not running: {container.id} is {STOPPED}")
        try:
            _signal.pidfd_send_signal(pidfd, signal)
        except OSError as error:
            if error.errno != 38:
                raise
            posix.kill(pid, signal)
    except ProcessLookupError:
        raise WrongState(f"container not running: {container.id} is {STOPPED}") from None
    finally:
        posix.close(pidfd)


def delete(runtime: Runtime, id: str, *, force: bool = False) -> None:
    """Undo what create made, then run the poststop hooks (runtime.md, Delete).

    A created container is killed and deleted as well, as every engine expects;
    one that runs is WrongState unless `force` kills it. `force` also removes what
    a crashed create has left.
    """
    container = Container.load(runtime.root, id)
    if container.record.get("status") == CREATING and _is_being_created(container, patience=1.0 if force else 0.0):
        raise WrongState(f"cannot delete container {id} while it is being created")
    container = Container.load(runtime.root, id, lock=True)
    status = container.status()
    if status in (RUNNING, PAUSED, CREATING) and not force:
        raise WrongState(f"cannot delete container {id} that is not stopped: {status}")
    with doing(f"delete container {id}"):
        _destroy(container, status)
    _run_poststop(container)


def _is_being_created(container: Container, patience: float) -> bool:
    """Does create still run? If it was killed, an init that hasn't come to closing its copy of the lock has it yet."""
    import time

    until = time.monotonic() + patience
    while container.is_being_created():
        if time.monotonic() >= until:
            return True
        time.sleep(0.005)
    return False


def _destroy(container: Container, status: str) -> None:
    """Take back everything; what fails is told at the end, so that the rest still goes."""
    log.step("delete the container")
    failures: list[Error] = []
    cgroup = _cgroup(container)
    steps = [
        ("kill the container's processes", lambda: _end(container, cgroup, status)),
        ("remove the cgroup", cgroup.remove),
        *_leftovers(container.record),
    ]
    for what, step in steps:
        try:
            with doing(what):
                step()
        except Error as error:
            failures.append(error)
    if failures:
        first = failures[0]
        for failure in failures[1:]:
            first.note(str(failure))
        raise first
    container.remove()


def _leftovers(record: dict[str, Any]) -> list[tuple[str, Any]]:
    """What only some containers leave on the host."""
    steps: list[tuple[str, Any]] = []
    if record.get("mounts"):
        from ocirt.rootfs import unmount_host

        steps.append(("unmount what was mounted on the host", lambda: unmount_host(record["rootfs"], record["mounts"])))
    if record.get("criu"):
        from ocirt.restore import take_back

        steps.append(("unmount what CRIU was given", lambda: take_back(record["criu"])))
    if record.get("intelRdt"):
        from ocirt.cgroups import intelrdt

        steps.append(("remove the resctrl group", lambda: intelrdt.remove(record["intelRdt"])))
    if record.get("network"):
        from ocirt import networking

        steps.append(("take down the network", lambda: networking.detach(record["id"], record, 0)))
    return steps


def _end(container: Container, cgroup: Any, status: str) -> None:
    """Kill init, wait for it, then everything else in the cgroup."""
    pid = container.pid
    if pid and status != STOPPED and container.alive():
        _container.end_process(pid, cgroup.thaw if status == PAUSED else None)
    # in a pid namespace of its own everything has gone with init; but a CRIU whose restore was killed is outside of it
    if not container.record.get("pidNamespace", False) or container.record.get("criu"):
        cgroup.kill()


def _cgroup(container: Container) -> Any:
    from ocirt import cgroups

    return cgroups.load(container.record.get("cgroup") or {"manager": "disabled"})


def _run_poststop(container: Container) -> None:
    hooks = container.hooks("poststop")
    if hooks:
        from ocirt.bundle import dump_json
        from ocirt.hooks import run_poststop

        state = dump_json(container.state(STOPPED))
        for failure in run_poststop(hooks, state, container.record):
            log.warning(str(failure))
