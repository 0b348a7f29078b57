"""The table of the command line: global options, commands, their arguments and options.

The parser, click's help, usage errors and completion, the man pages and docs/cli.md are all made from it. It is
constants only, so that loading it costs next to nothing.

An option is a row `(name, short, kind, metavar, default, help)`; kind is one of
    flag      no value; `--flag=true` and `--flag=false` as Go's flag package writes them
    value     a string
    int       a whole number, at least 0
    choice    one of the words of the metavar
    repeat    a string each time, collected in a list
An option without help is accepted and not shown. An argument is a row `(name, kind, help)`; kind is one, optional or
rest; rest takes all that follows the argument before it, flags included.

A command `NAME` is there when `ocirt/commands/NAME.py` is, with `def run(options: Options) -> int`; an option
`--some-flag` is its attribute `some_flag`. Adding a command is an entry here and that file.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Row = tuple[str, str, str, str, str | int | bool | None, str]
    Positional = tuple[str, str, str]
    Command = tuple[str, str, tuple[Positional, ...], tuple[Row, ...]]

# fmt: off
GLOBAL: tuple[Row, ...] = (
    ("root", "", "value", "DIR", None, "directory of the containers' state; default /run/ocirt, "
     "or $XDG_RUNTIME_DIR/ocirt for a user other than root and inside a user namespace"),
    ("log", "", "value", "FILE", None, "append to FILE; errors are written to stderr as well"),
    ("log-format", "", "choice", "text|json", "text", "format of the log's entries"),
    ("log-level", "", "choice", "error|warning|info|debug", "warning", "least level that is written"),
    ("debug", "", "flag", "", False, "the same as --log-level debug: also every step, with the microseconds since the "
     "start of the command"),
    ("systemd-cgroup", "s", "flag", "", False, "the same as --cgroup-manager systemd"),
    ("cgroup-manager", "", "choice", "cgroupfs|systemd|disabled", "cgroupfs", "who makes the containers' cgroups"),
    ("rootless", "", "choice", "auto|true|false", "auto", "whether to go on without cgroups that may not be made"),
    ("version", "v", "flag", "", False, "print the version"),
    ("criu", "", "value", "PATH", None, ""),  # of old runc; engines' settings may still carry it
)

ID = ("id", "one", "the container's id")

BUNDLE = ("bundle", "b", "value", "DIR", ".", "the bundle: the directory of config.json")
CONSOLE = ("console-socket", "", "value", "SOCKET", None,
           "unix socket to which the master of the new pseudoterminal is sent")
PID_FILE = ("pid-file", "", "value", "FILE", None, "write the process id of the container's process to FILE")
PIDFD = ("pidfd-socket", "", "value", "SOCKET", None, "unix socket to which a pidfd of the container's process is sent")
NO_PIVOT = ("no-pivot", "", "flag", "", False,
            "move the root file system instead of pivot_root: for a root on an initial ramdisk")
PRESERVE = ("preserve-fds", "", "int", "N", 0, "pass N more file descriptors, from 3 on (after those of LISTEN_FDS)")
SUBREAPER = ("no-subreaper", "", "flag", "", False, "don't adopt the container's orphaned processes")
FORMAT = ("format", "f", "choice", "table|json", "table", "format of the output")
DETACH = ("detach", "d", "flag", "", False, "return once the process runs")

_CREATE = (
    BUNDLE,
    ("config", "f", "value", "FILE", None, "read FILE instead of the bundle's config.json"),
    CONSOLE,
    PID_FILE,
    PIDFD,
    NO_PIVOT,
    ("no-new-keyring", "", "flag", "", False, "keep the caller's session keyring"),
    PRESERVE,
    SUBREAPER,
    ("network", "", "repeat", "NETWORK", None,
     "attach to this network (NAME[:ip=…,mac=…,interface=…]), or host, none, container:ID"),
    ("publish", "p", "repeat", "[[IP:]PORT:]PORT[/PROTO]", None,
     "map a port of the host, or a range, to one inside; without one of the host, the same number"),
    ("ip", "", "repeat", "IP", None, "the container's address in the first network"),
    ("mac", "", "value", "MAC", None, "the container's hardware address in the first network"),
    ("dns", "", "repeat", "IP", None, "ask this name server"),
    ("dns-search", "", "repeat", "DOMAIN", None, "search names in this domain"),
    ("dns-option", "", "repeat", "OPTION", None, "an option of resolv.conf"),
    ("network-alias", "", "repeat", "NAME", None, "a further name for the others of its networks"),
)

_IMAGES = (
    ("image-path", "", "value", "DIR", "checkpoint", "directory of CRIU's image files"),
    ("work-path", "", "value", "DIR", None, "directory of CRIU's log and working files"),
    ("tcp-established", "", "flag", "", False, "allow open TCP connections"),
    ("ext-unix-sk", "", "flag", "", False, "allow unix sockets connected to outside the container"),
    ("shell-job", "", "flag", "", False, "allow a process whose session is outside the container"),
    ("file-locks", "", "flag", "", False, "allow file locks"),
    ("manage-cgroups-mode", "", "choice", "soft|full|strict|ignore", "soft", "how CRIU treats cgroups"),
    ("empty-ns", "", "repeat", "TYPE", None, "make a namespace of this type without its properties (network)"),
    ("auto-dedup", "", "flag", "", False, "drop memory pages from the images as soon as they are duplicates"),
    ("lazy-pages", "", "flag", "", False, "restore memory pages when they are first used (userfaultfd)"),
    ("link-remap", "", "flag", "", False, "allow open files that have been unlinked"),
    ("tcp-close", "", "flag", "", False, "close TCP connections on restore"),
)

COMMANDS: dict[str, Command] = {
    "create": (
        "create a container",
        "Makes a container from the bundle and leaves its process waiting just before the program is executed. "
        "'ocirt start' lets it go on.",
        (ID,),
        _CREATE,
    ),
    "start": (
        "start the process of a created container",
        "Runs the startContainer hooks, executes the program and runs the poststart hooks.",
        (ID,),
        (),
    ),
    "run": (
        "create and start a container",
        "Makes a container, starts it, forwards signals to it and exits with its process's status, 128 + N when "
        "signal N ended it. The container is deleted at the end.",
        (ID,),
        (*_CREATE, DETACH, ("keep", "", "flag", "", False, "keep the container after its process has ended"),
         ("profile", "", "value", "FILE", None, "write a timeline of the steps, in the runtime and in the container's "
          "process, to FILE, for trace viewers of browsers (Trace Event Format)")),
    ),
    "state": (
        "print a container's state",
        "Prints the state of the runtime specification as JSON: ociVersion, id, status (creating, created, running, "
        "paused, stopped), pid, bundle, annotations, and rootfs, created and owner.",
        (ID,),
        (),
    ),
    "kill": (
        "send a signal to a container's process",
        "The signal is a name with or without SIG, or a number; TERM by default.",
        (ID, ("signal", "optional", "name or number of the signal")),
        (
            ("all", "a", "flag", "", False, "send the signal to every process of the container"),
            ("regex", "r", "flag", "", False, "ID is a regular expression: signal all containers that match"),
        ),
    ),
    "delete": (
        "delete a container",
        "Removes what create made of a container that has stopped, and runs the poststop hooks.",
        (ID,),
        (
            ("force", "f", "flag", "", False, "kill the container first; no error if there is none"),
            ("regex", "r", "flag", "", False, "ID is a regular expression: delete all containers that match"),
        ),
    ),
    "list": (
        "list containers",
        "Lists the containers below the root directory.",
        (),
        (("quiet", "q", "flag", "", False, "print only the ids"), FORMAT),
    ),
    "exec": (
        "run a further process in a container",
        "Runs COMMAND, or the process that a file describes, in the container. Everything after ID belongs to the "
        "command. Exits with its status; 255 if it could not be run.",
        (ID, ("command", "rest", "the program and its arguments")),
        (
            ("process", "p", "value", "FILE", None, "read the process from FILE (JSON, as process in config.json)"),
            DETACH,
            ("tty", "t", "flag", "", False, "give it a pseudoterminal"),
            ("user", "u", "value", "UID[:GID]", None, "user and group of the process"),
            ("additional-gids", "g", "repeat", "GID", None, "an additional group"),
            ("cwd", "", "value", "DIR", None, "working directory in the container"),
            ("env", "e", "repeat", "NAME=VALUE", None, "set an environment variable"),
            ("cap", "c", "repeat", "CAP", None, "add a capability"),
            ("no-new-privs", "", "flag", "", False, "set no_new_privs"),
            ("process-label", "", "value", "LABEL", None, "SELinux label of the process"),
            ("apparmor", "", "value", "PROFILE", None, "AppArmor profile of the process"),
            ("cgroup", "", "repeat", "[CONTROLLERS:]PATH", None, "run in this cgroup below the container's"),
            ("ignore-paused", "", "flag", "", False, "go ahead in a paused container"),
            CONSOLE,
            PID_FILE,
            PIDFD,
            ("preserve-fds", "", "int", "N", 0, "pass N more file descriptors, from 3 on"),
        ),
    ),
    "ps": (
        "list the processes of a container",
        "Shows ps's lines of the container's processes. What follows ID goes to ps, -ef by default.",
        (ID, ("options", "rest", "arguments of ps")),
        (FORMAT,),
    ),
    "pause": ("freeze all processes of a container", "Freezes them through the cgroup freezer.", (ID,), ()),
    "resume": ("thaw a paused container", "Lets its processes go on.", (ID,), ()),
    "update": (
        "change a container's resource limits",
        "Changes what is given and leaves the rest. Sizes take the units k, m, g and t.",
        (ID,),
        (
            ("resources", "r", "value", "FILE", None,
             "read the limits from FILE, - for stdin (JSON, as linux.resources in config.json)"),
            ("memory", "", "value", "BYTES", None, "memory limit"),
            ("memory-reservation", "", "value", "BYTES", None, "memory that is kept under pressure"),
            ("memory-swap", "", "value", "BYTES", None, "limit of memory and swap together, -1 for none"),
            ("cpu-period", "", "value", "USEC", None, "period of the CPU quota"),
            ("cpu-quota", "", "value", "USEC", None, "CPU time in each period, -1 for no limit"),
            ("cpu-burst", "", "value", "USEC", None, "quota that may be saved up for a burst"),
            ("cpu-share", "", "value", "N", None, "relative weight of CPU time"),
            ("cpu-rt-period", "", "value", "USEC", None, "period of the real-time quota"),
            ("cpu-rt-runtime", "", "value", "USEC", None, "real-time CPU time in each period"),
            ("cpu-idle", "", "value", "0|1", None, "run only when nothing else wants the CPU"),
            ("cpuset-cpus", "", "value", "LIST", None, "CPUs to use, such as 0-2,7"),
            ("cpuset-mems", "", "value", "LIST", None, "memory nodes to use"),
            ("pids-limit", "", "value", "N", None, "most processes, -1 for no limit"),
            ("blkio-weight", "", "value", "N", None, "relative weight of block I/O, 10 to 1000"),
            ("l3-cache-schema", "", "value", "SCHEMA", None, "Intel RDT: L3 cache schema"),
            ("mem-bw-schema", "", "value", "SCHEMA", None, "Intel RDT: memory bandwidth schema"),
            ("kernel-memory", "", "value", "BYTES", None, ""),  # gone from kernels; engines may still send them
            ("kernel-memory-tcp", "", "value", "BYTES", None, ""),
        ),
    ),
    "events": (
        "print a container's statistics and events",
        "Prints one JSON object a line: stats at each interval, and oom when it happens.",
        (ID,),
        (
            ("interval", "", "value", "DURATION", "5s", "time between two statistics"),
            ("stats", "", "flag", "", False, "print the statistics once and exit"),
        ),
    ),
    "checkpoint": (
        "save a running container to files",
        "Saves the state of its processes with CRIU.",
        (ID,),
        (
            *_IMAGES,
            ("parent-path", "", "value", "DIR", None, "images of the pre-dump before, relative to --image-path"),
            ("leave-running", "", "flag", "", False, "let the container run on"),
            ("pre-dump", "", "flag", "", False, "save only memory, and let the container run on"),
            ("status-fd", "", "int", "FD", None, "CRIU writes a NUL byte there when it serves pages"),
            ("page-server", "", "value", "ADDRESS:PORT", None, "send the memory pages to this server"),
            ("tcp-skip-in-flight", "", "flag", "", False, "skip TCP connections that are not established yet"),
            ("network-lock", "", "value", "METHOD", None, "how CRIU locks the network: iptables, nftables, skip"),
        ),
    ),
    "restore": (
        "restore a container from files",
        "Makes a container whose processes go on where checkpoint saved them.",
        (ID,),
        (
            BUNDLE,
            *_IMAGES,
            ("parent-path", "", "value", "DIR", None, ""),
            DETACH,
            PID_FILE,
            PIDFD,
            CONSOLE,
            NO_PIVOT,
            SUBREAPER,
            ("lsm-profile", "", "value", "TYPE:NAME", None, "restore with this profile or label of a security module"),
            ("lsm-mount-context", "", "value", "CONTEXT", None, "restore mounts with this SELinux context"),
        ),
    ),
    "spec": (
        "write a config.json to start from",
        "Writes config.json of a shell in a container to the bundle.",
        (),
        (
            ("bundle", "b", "value", "DIR", ".", "directory to write config.json to"),
            ("rootless", "", "flag", "", False, "for a user other than root"),
            ("file", "f", "value", "FILE", None, "write FILE instead"),
        ),
    ),
    "validate": (
        "check a bundle without running anything",
        "Reports every error of config.json with its place, what stands there and what would be right, and warns of "
        "misspelt keys.",
        (("bundle", "optional", "the bundle; the current directory by default"),),
        (
            ("config", "", "value", "FILE", None, "read FILE instead of the bundle's config.json"),
            ("format", "f", "choice", "text|json", "text", "format of the report"),
        ),
    ),
    "features": (
        "print what this runtime can do",
        "Prints the features structure of the runtime specification as JSON.",
        (),
        (),
    ),
    "check": (
        "report what this host offers to a runtime",
        "Looks for what containers need of the kernel and the system and names remedies.",
        (),
        (("format", "f", "choice", "text|json", "text", "format of the report"),),
    ),
    "mounts": (
        "add mounts to a running container, or remove them",
        "With add, makes the mounts of FILE in the container; with remove, unmounts their destinations. FILE holds a "
        "list of mounts as in config.json. The container must have a mount namespace of its own.",
        (
            ("action", "one", "what to do: add or remove"),
            ID,
            ("file", "one", "JSON file of the mounts"),
        ),
        (),
    ),
    "seccomp": (
        "show the filter of a bundle, or find the smallest one for a program",
        "dump shows what each system call gets, by architecture and action. record runs the bundle's container"
        " watched by a seccomp agent, and writes the profile that allows just the system calls it made.",
        (
            ("action", "one", "what to do: dump or record"),
            ("target", "optional", "dump: the bundle; record: a program to run instead of the bundle's"),
            ("arguments", "rest", "its arguments"),
        ),
        (
            BUNDLE,
            ("config", "", "value", "FILE", None, "read FILE instead of the bundle's config.json"),
            ("bpf", "", "flag", "", False, "dump: list the program's instructions, too"),
            ("output", "o", "value", "FILE", "seccomp.json", "record: the file of the profile, - for stdout"),
            ("id", "", "value", "ID", None, "record: the container's id"),
        ),
    ),
    "network": (
        "make, list and remove networks of containers",
        "create NAME, rm NAME, ls, inspect NAME; check NAME says whether a container can be attached; gc takes back "
        "what containers that are gone have left; reload tells the kernel again what it should have, after a flushed "
        "ruleset or with other hosts of an overlay; plugins DIR writes the CNI plugins of ocirt there for other "
        "engines.",
        (
            ("action", "one", "what to do: create, ls, inspect, rm, check, gc, reload or plugins"),
            ("name", "optional", "name of the network; plugins: the directory"),
        ),
        (
            ("driver", "d", "choice", "bridge|macvlan|overlay|ptp", "bridge", "create: what connects the containers"),
            ("subnet", "", "repeat", "CIDR", None, "create: addresses of the network; a free subnet by default"),
            ("ip-range", "", "value", "CIDR", "", "create: the part of the subnet to give addresses from"),
            ("gateway", "", "value", "IP", "", "create: the host's address in the network"),
            ("bridge", "", "value", "NAME", "", "create: name of the bridge on the host"),
            ("parent", "", "value", "NAME", "", "create: interface of the host, for macvlan"),
            ("mtu", "", "int", "N", 0, "create: largest packet"),
            ("internal", "", "flag", "", False, "create: no way out of the network"),
            ("isolate", "", "flag", "", False, "create: its containers don't reach each other"),
            ("ports", "", "choice", "nftables|proxy|iptables", "nftables", "create: how ports are mapped"),
            ("option", "o", "repeat", "KEY=JSON", None, "create: a key of the plugin, such as vni=42"),
            ("directory", "", "value", "DIR", None, "where networks are configured: $NETCONFPATH, or /etc/cni/net.d"),
            ("watch", "", "flag", "", False, "reload: stay, and do it again whenever something changes"),
            FORMAT,
        ),
    ),
    "version": ("print the version", "The same as ocirt --version.", (), ()),
    "completion": (
        "print a shell's completion script",
        "For example: ocirt completion bash > /etc/bash_completion.d/ocirt",
        (("shell", "one", "bash, zsh or fish"),),
        (),
    ),
}
# fmt: on
