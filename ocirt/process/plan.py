"""The one record that the steps between clone and execve share.

The parent fills the first part before the clone: everything that can be
computed outside is. The steps fill the second part as they go.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ocirt.spec import Config, Linux, Process


class Plan:
    """What init has to do, and what it has found out.

    Filled by the parent
        id, bundle (absolute), rootfs (absolute path of the root filesystem)
        config, linux, process   the parsed config.json and its two big parts ({} if absent)
        new, joined     namespace types (spec names) made by clone / unshare, and {type: fd} entered by setns
        userns          init lives in a user namespace that is not the runtime's
        cgroups         list of (controllers, mount root, path): what a `cgroup` mount shows;
                        controllers is "" for cgroup v2; path is relative to the hierarchy's root
        no_pivot, no_new_keyring, preserve_fds   as the flags of create
        sync            SOCK_SEQPACKET to the parent (see sync.py), -1 once closed
        listener        listening socket on which `start` calls, -1 for exec
        console_socket  connected socket that wants the pty master, -1 if none
        null            O_PATH fd of the host's /dev/null, verified to be char 1:3 (CVE-2025-31133)
        trees           {index in config.mounts: fd of a detached mount} prepared by the parent
        device_trees    {path: fd of a detached bind} of device nodes, where mknod isn't possible
        program         the seccomp filter, b"" if none

    Filled by the steps
        root            O_PATH fd of the container's root directory
        proc            fd of a private, unmasked procfs mount (detached), -1 before it is made
        console         fd of the pty slave, -1 if there is none
        executable      path of the program as execve wants it
    """

    __slots__ = (
        "bundle",
        "cgroups",
        "config",
        "console",
        "console_socket",
        "device_trees",
        "env",
        "executable",
        "id",
        "joined",
        "linux",
        "listener",
        "new",
        "no_new_keyring",
        "no_pivot",
        "null",
        "preserve_fds",
        "proc",
        "process",
        "program",
        "root",
        "rootfs",
        "sync",
        "trees",
        "userns",
    )

    def __init__(self, id: str, bundle: str, rootfs: str, config: Config) -> None:
        self.id = id
        self.bundle = bundle
        self.rootfs = rootfs
        self.config: Config = config
        self.linux: Linux = config.get("linux") or {}
        self.process: Process = config.get("process") or {}
        self.env: list[str] = list(self.process.get("env") or [])
        self.new: frozenset[str] = frozenset()
        self.joined: dict[str, int] = {}
        self.userns = False
        self.cgroups: list[tuple[str, str, str]] = []
        self.no_pivot = False
        self.no_new_keyring = False
        self.preserve_fds = 0
        self.sync = -1
        self.listener = -1
        self.console_socket = -1
        self.null = -1
        self.trees: dict[int, int] = {}
        self.device_trees: dict[str, int] = {}
        self.program = b""
        self.root = -1
        self.proc = -1
        self.console = -1
        self.executable = ""
