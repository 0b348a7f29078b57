"""The one record that the steps between clone and execve share.

The parent fills the first part before the clone: everything that can be
computed outside is. The steps fill the second part as they go.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable

    from ocirt.cgroups.entrances import Entrances
    from ocirt.identity.capabilities import Sets
    from ocirt.identity.seccomp import Filter
    from ocirt.process.sync import Channel
    from ocirt.spec import Config, Hook, Linux, Process, User

    Step = Callable[["Plan"], object]


def _no_hooks(kind: str, hooks: list[Hook], state: bytes, cwd: str | None) -> None:
    del kind, hooks, state, cwd


class Plan:
    """What init has to do, and what it has found out.

    Filled by the parent
        id, bundle (absolute), rootfs (absolute path of the root filesystem)
        config, linux, process, user   the parsed config.json and its parts ({} if absent)
        new, joined     namespace types (spec names) made by clone / unshare, and {type: fd} entered by setns
        entered         those of both that init is in from its start
        mapped          the ids of the new user namespace are mapped
        userns          init lives in a user namespace that is not the runtime's
        cgroups         list of (controllers, mount root, path): what a `cgroup` mount shows;
                        controllers is "" for cgroup v2; path is relative to the hierarchy's root
        no_pivot, no_new_keyring, preserve_fds   as the flags of create
        channel         init's end of the handshake with the parent, later with `start` (see sync.py)
        listener        listening socket on which `start` calls, None for exec
        capabilities    the five sets as masks (identity/capabilities.py), less what can't be granted
        keeps_sys_admin CAP_SYS_ADMIN stays until the seccomp filter is loaded
        cpu_affinity    CPUs of exec's process (execCPUAffinity); empty: as they are; None: all
        size            (rows, columns) of the console, (0, 0) if not set
        entrances       by which init enters its cgroups itself, None: the runtime moves it
        run_hooks       hooks.run, if there are hooks: init can't import it
        hook_files      descriptors of the files that get what hooks print
        state           (status, pid) -> the state JSON that hooks read on stdin
        console_socket  connected socket that wants the pty master, -1 if none
        null            O_PATH fd of the host's /dev/null, verified to be char 1:3 (CVE-2025-31133)
        trees           {index in config.mounts: fd of a detached mount} prepared by the parent
        device_trees    {path: fd of a detached bind} of device nodes, where mknod isn't possible
        copy_up         copies a directory (descriptor, descriptor) for tmpcopyup; set by prepare_trees
        filter          the compiled seccomp filter, None if there is none
        uses_trampoline the last execve goes through the trampoline (process/trampoline.py)
        trampoline      fd of the sealed memory file that the last execve goes through, -1: execve directly

    Filled by the steps
        root            O_PATH fd of the container's root directory
        proc            fd of a private, unmasked procfs mount (detached), -1 before it is made
        late_readonly   (destination, fd) of mounts that become read-only when everything in them is made
        console         fd of the pty slave, -1 if there is none
        executable      path of the program as execve wants it
    """

    __slots__ = (
        "bundle",
        "capabilities",
        "cgroups",
        "channel",
        "config",
        "console",
        "console_socket",
        "copy_up",
        "cpu_affinity",
        "device_trees",
        "entered",
        "entrances",
        "env",
        "executable",
        "filter",
        "hook_files",
        "id",
        "joined",
        "keeps_sys_admin",
        "late_readonly",
        "linux",
        "listener",
        "mapped",
        "new",
        "no_new_keyring",
        "no_pivot",
        "null",
        "preserve_fds",
        "proc",
        "process",
        "root",
        "rootfs",
        "run_hooks",
        "size",
        "state",
        "steps",
        "trampoline",
        "trees",
        "user",
        "userns",
        "uses_trampoline",
    )

    def __init__(self, id: str, bundle: str, rootfs: str, config: Config) -> None:
        self.id = id
        self.bundle = bundle
        self.rootfs = rootfs
        self.config: Config = config
        self.linux: Linux = config.get("linux") or {}
        self.process: Process = config.get("process") or {}
        self.user: User = self.process.get("user") or {}  # type: ignore[assignment]
        self.env: list[str] = list(self.process.get("env") or [])
        self.new: frozenset[str] = frozenset()
        self.joined: dict[str, int] = {}
        self.entered: set[str] = set()
        self.entrances: Entrances | None = None
        self.mapped = False
        self.userns = False
        self.uses_trampoline = False
        self.cgroups: list[tuple[str, str, str]] = []
        self.no_pivot = False
        self.no_new_keyring = False
        self.preserve_fds = 0
        self.channel: Channel = None  # type: ignore[assignment]  # set before the clone, always
        self.listener: socket | None = None
        self.capabilities: Sets = None  # type: ignore[assignment]  # likewise
        self.keeps_sys_admin = False
        self.cpu_affinity: list[int] | None = None
        self.size: tuple[int, int] = (0, 0)
        self.state: Callable[[str, int], bytes] = lambda _status, _pid: b"{}"
        self.run_hooks: Callable[[str, list[Hook], bytes, str | None], None] = _no_hooks
        self.hook_files: list[int] = []
        self.steps: tuple[Step, ...] = ()
        self.console_socket = -1
        self.null = -1
        self.trees: dict[int, int] = {}
        self.device_trees: dict[str, int] = {}
        self.copy_up: Callable[[int, int], None] = lambda _source, _destination: None
        self.filter: Filter | None = None
        self.trampoline = -1
        self.root = -1
        self.proc = -1
        self.late_readonly: list[tuple[str, int]] = []
        self.console = -1
        self.executable = ""
