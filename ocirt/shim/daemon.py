"""The process that serves: it is made by `start`, lives as long as a container of its group does, and is warm.

Nothing depends on it being alive: what it knows and state.json doesn't is lost without harm.
"""

from __future__ import annotations

import _signal
import _socket
import gc
import os
import posix

from ocirt import log
from ocirt.linux import prctl, signals, title
from ocirt.shim import sockets, spare
from ocirt.shim.events import Publisher
from ocirt.shim.loop import IN, Loop
from ocirt.shim.reaper import Reaper
from ocirt.shim.service import Service
from ocirt.shim.supervisor import Supervisor
from ocirt.shim.ttrpc import Server
from ocirt.shim.work import perform
from ocirt.shim.worker import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypedDict, Unpack

    from ocirt.shim.tasks import Process

    class Place(TypedDict):
        """Whose shim a daemon is, and how it is to look: plain data, because it is sent to the spare shim.

        address, namespace   the socket's, containerd's
        events               path of containerd's ttrpc socket, "" to tell nobody
        bundle, debug        where the log's fifo is; write everything to it
        environment          of `start`
        score                oom_score_adj
        spare, idle          address of the spare shim to leave, and how long it waits; 0 for none
        """

        address: str
        namespace: str
        events: str
        bundle: str
        debug: bool
        environment: dict[str, str]
        score: int
        spare: str
        idle: int


#: Seconds that answers and events have to go out before the shim ends.
_LAST_WORDS = 2.0
_LOOK_AGAIN = 0.01
_IGNORED = {_signal.SIGPIPE, _signal.SIGHUP}
_SIGNALS = {_signal.SIGCHLD, _signal.SIGTERM, _signal.SIGINT, _signal.SIGUSR1} | _IGNORED


#: What `work` and what it uses import only where a container wants it; -debug says what a worker still had to import.
WARM = (
    "ocirt.creating",
    "ocirt.hooks",
    "ocirt.cgroups.choosing",
    "ocirt.cgroups.making",
    "ocirt.cgroups.oom",
    "ocirt.cgroups.removing",
    "ocirt.identity.seccomp.cache",
    "ocirt.process.start",
    "ocirt.validation.rules.seccomp",
    "ocirt.validation.walk",
)
#: The same by the host's kind of cgroups.
WARM_V1 = ("ocirt.cgroups.v1", "ocirt.cgroups.resources_v1", "ocirt.cgroups.devices", "ocirt.cgroups.hybrid")
WARM_V2 = ("ocirt.cgroups.v2", "ocirt.cgroups.resources_v2", "ocirt.cgroups.devices_v2", "math")


class Daemon:
    """One shim: everything that it is made of, wired together."""

    def __init__(self, socket: _socket.socket, place: Place) -> None:
        self._address = place["address"]
        self._socket = sockets.identity(self._address)
        self._ending = False
        self._loop = Loop(report)
        self._workers = workers = Workers(self._loop, perform)
        self._reaper = Reaper(workers, report)
        self._publisher = Publisher(self._loop, place["events"], place["namespace"])
        self._supervisor = Supervisor(
            self._loop, workers, self._reaper, self._publisher, place["namespace"], self._address, self._end
        )
        services = Service(self._supervisor).services()
        self._server = Server(self._loop, socket, services)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, _SIGNALS)
        self._signals = signals.signalfd(_SIGNALS)
        self._loop.watch(self._signals, IN, self._take_signals)

    def make_ready(self) -> None:
        """Have what the first operation needs."""
        prctl.prctl(prctl.PR_SET_CHILD_SUBREAPER, 1)
        try:
            self._workers.make_ready()
        except OSError:
            pass  # the first operation tries again, and fails if need be

    def run(self) -> None:
        """Serve until the end."""
        self._loop.run()

    def _take_signals(self, _: int) -> None:
        while number := signals.read_signal(self._signals):
            if number == _signal.SIGCHLD:
                self._reaper.reap()
            elif number == _signal.SIGUSR1:
                self._describe()
            elif number not in _IGNORED:
                self._end()

    def _describe(self) -> None:
        """Say in the log what there is: for people who look for trouble."""
        for task in self._supervisor.tasks.values():
            for process in task.processes():
                log.warning(f"{task.id}: {_described(process)}")

    def _end(self) -> None:
        """Take no more calls, say what is left to be said, and go."""
        if self._ending:
            return
        self._ending = True
        self._server.close()
        sockets.remove(self._address, self._socket)
        self._say_last_words(_LAST_WORDS)

    def _say_last_words(self, left: float) -> None:
        busy = not self._publisher.idle or any(connection.busy for connection in self._server.connections)
        if busy and left > 0:
            self._loop.later(_LOOK_AGAIN, lambda: self._say_last_words(left - _LOOK_AGAIN))
        else:
            self._loop.stop()


def _described(process: Process) -> str:
    what = f"exec {process.id}" if process.id else "init"
    return f"{what}: pid {process.pid}, status {process.status}, starting {process.starting}, {process.given}"


def report(error: Exception) -> None:
    """A callback has failed: a bug, and not the end of the other containers' shim."""
    import traceback

    log.warning("bug in ocirt: " + "".join(traceback.format_exception(error)))


def open_log(bundle: str, debug: bool) -> None:
    """Log to the fifo that containerd has made in the bundle; what it doesn't take in time is dropped."""
    try:
        # for reading too: opening doesn't wait for containerd, and its leaving ends nothing
        fd = os.open(f"{bundle}/log", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(fd, 2)
    log.to_descriptor(fd, log.DEBUG if debug else log.WARNING)


def close_inherited() -> None:
    """Close what whoever started us has left open: all of ours is close-on-exec."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and os.get_inheritable(fd):
                os.close(fd)
        except OSError:
            pass  # the listing's own


def warm_up() -> None:
    """Import what creating, starting and deleting containers needs: no worker has to."""
    unified = os.access("/sys/fs/cgroup/cgroup.controllers", os.F_OK)
    for name in WARM + (WARM_V2 if unified else WARM_V1):
        __import__(name)


def serve(socket: _socket.socket, place: Place) -> None:
    """Be the daemon that `start` has forked, cold. Returns at the end."""
    _settle(place)
    daemon = Daemon(socket, place)
    warm_up()
    # forks share what there is now: the collector must not touch it
    gc.collect()
    gc.freeze()
    gc.enable()
    if place["idle"]:
        spare.leave(place["spare"], place["idle"], place["score"])
    daemon.make_ready()
    daemon.run()


def take_over(connection: _socket.socket, socket: _socket.socket, **place: Unpack[Place]) -> None:
    """Be the daemon that the spare shim has forked, warm. Returns at the end.

    Gets ready while `start` looks whether it wants it; `connection` tells.
    """
    posix.setsid()
    prctl.set_name("containerd-shim")
    spare.write_oom_score("self", place["score"])
    # the arguments are still those of the first shim: people look for a container's shim by its id
    title.set_arguments("-namespace", place["namespace"], "-id", place["bundle"].rpartition("/")[2], "start")
    os.environ.clear()
    os.environ.update(place["environment"])
    _settle(place)
    try:
        daemon = Daemon(socket, place)
        daemon.make_ready()
        if _is_taken(connection):
            daemon.run()
    except Exception as error:
        report(error)


def _is_taken(connection: _socket.socket) -> bool:
    """Has `start` found that this process is like itself? If not, or too late, it has forked a shim by itself."""
    try:
        try:
            return bool(connection.recv(32))
        except TimeoutError:
            connection.shutdown(_socket.SHUT_RD)  # `start` hears so from here on; what it has said before counts
            return bool(connection.recv(32))
    except OSError:
        return False
    finally:
        connection.close()


def _settle(place: Place) -> None:
    open_log(place["bundle"], place["debug"])
    close_inherited()
    os.chdir("/")
    os.environ.pop("NOTIFY_SOCKET", None)
    posix.environ.pop(b"NOTIFY_SOCKET", None)
