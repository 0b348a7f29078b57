"""The shapes of the runtime specification (1.3, Linux) as TypedDicts: config.json, state, features.

Only ever imported under TYPE_CHECKING. What must be there is said by schemas/
and checked by ocirt.validation before anybody else sees a configuration, so
Required keys may be indexed. (A Process has none for the type checker, because
`{}` stands for the process of a container that has none yet.)
"""

from __future__ import annotations

from typing import Any, Literal, Required, TypedDict

NamespaceType = Literal["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"]


class IDMapping(TypedDict):
    """config-linux.md, User namespace mappings."""

    containerID: int
    hostID: int
    size: int


class Root(TypedDict, total=False):
    """config.md, Root."""

    path: Required[str]
    readonly: bool


class Mount(TypedDict, total=False):
    """config.md, Mounts."""

    destination: Required[str]
    source: str
    type: str
    options: list[str]
    uidMappings: list[IDMapping]
    gidMappings: list[IDMapping]


class Hook(TypedDict, total=False):
    """config.md, POSIX-platform Hooks."""

    path: Required[str]
    args: list[str]
    env: list[str]
    timeout: int


class Hooks(TypedDict, total=False):
    """config.md, POSIX-platform Hooks."""

    prestart: list[Hook]
    createRuntime: list[Hook]
    createContainer: list[Hook]
    startContainer: list[Hook]
    poststart: list[Hook]
    poststop: list[Hook]


class ConsoleSize(TypedDict):
    """In characters."""

    height: int
    width: int


class User(TypedDict, total=False):
    """config.md, POSIX-platform User."""

    uid: Required[int]
    gid: Required[int]
    umask: int
    additionalGids: list[int]


class Rlimit(TypedDict):
    """config.md, POSIX process."""

    type: str
    soft: int
    hard: int


class Capabilities(TypedDict, total=False):
    """config.md, Linux Process: names such as CAP_CHOWN."""

    bounding: list[str]
    effective: list[str]
    inheritable: list[str]
    permitted: list[str]
    ambient: list[str]


class Scheduler(TypedDict, total=False):
    """config.md, Linux Process; runtime, deadline and period in nanoseconds."""

    policy: Required[str]
    nice: int
    priority: int
    flags: list[str]
    runtime: int
    deadline: int
    period: int


IOPriority = TypedDict("IOPriority", {"class": str, "priority": int})


class ExecCPUAffinity(TypedDict, total=False):
    """Lists such as "0-3,7"."""

    initial: str
    final: str


class Process(TypedDict, total=False):
    """config.md, Process; `args` (not empty) and `cwd` (absolute) are always there."""

    terminal: bool
    consoleSize: ConsoleSize
    cwd: str
    env: list[str]
    args: list[str]
    user: User
    rlimits: list[Rlimit]
    apparmorProfile: str
    capabilities: Capabilities
    noNewPrivileges: bool
    oomScoreAdj: int
    scheduler: Scheduler
    selinuxLabel: str
    ioPriority: IOPriority
    execCPUAffinity: ExecCPUAffinity


class Namespace(TypedDict, total=False):
    """config-linux.md, Namespaces."""

    type: Required[NamespaceType]
    path: str


class TimeOffset(TypedDict, total=False):
    """config-linux.md, Offset for Time Namespace."""

    secs: int
    nanosecs: int


class Device(TypedDict, total=False):
    """config-linux.md, Devices."""

    type: Required[str]
    path: Required[str]
    major: int
    minor: int
    fileMode: int
    uid: int
    gid: int


class NetDevice(TypedDict, total=False):
    """config-linux.md, Network Devices."""

    name: str


class DeviceRule(TypedDict, total=False):
    """config-linux.md, Allowed Device list; unset major or minor, or -1, means all."""

    allow: Required[bool]
    type: str
    major: int
    minor: int
    access: str


class Memory(TypedDict, total=False):
    """config-linux.md, Memory: bytes, -1 for no limit."""

    limit: int
    reservation: int
    swap: int
    kernel: int
    kernelTCP: int
    swappiness: int
    disableOOMKiller: bool
    useHierarchy: bool
    checkBeforeUpdate: bool


class CPU(TypedDict, total=False):
    """config-linux.md, CPU: microseconds."""

    shares: int
    quota: int
    burst: int
    period: int
    realtimeRuntime: int
    realtimePeriod: int
    cpus: str
    mems: str
    idle: int


class WeightDevice(TypedDict, total=False):
    """config-linux.md, Block IO."""

    major: Required[int]
    minor: Required[int]
    weight: int
    leafWeight: int


class ThrottleDevice(TypedDict):
    """config-linux.md, Block IO."""

    major: int
    minor: int
    rate: int


class BlockIO(TypedDict, total=False):
    """config-linux.md, Block IO."""

    weight: int
    leafWeight: int
    weightDevice: list[WeightDevice]
    throttleReadBpsDevice: list[ThrottleDevice]
    throttleWriteBpsDevice: list[ThrottleDevice]
    throttleReadIOPSDevice: list[ThrottleDevice]
    throttleWriteIOPSDevice: list[ThrottleDevice]


class HugepageLimit(TypedDict):
    """config-linux.md, Huge page limits."""

    pageSize: str
    limit: int


class InterfacePriority(TypedDict):
    """config-linux.md, Network."""

    name: str
    priority: int


class Network(TypedDict, total=False):
    """config-linux.md, Network."""

    classID: int
    priorities: list[InterfacePriority]


class Pids(TypedDict, total=False):
    """config-linux.md, PIDs: -1 for no limit."""

    limit: int


class Rdma(TypedDict, total=False):
    """config-linux.md, RDMA."""

    hcaHandles: int
    hcaObjects: int


class Resources(TypedDict, total=False):
    """config-linux.md, Control groups."""

    devices: list[DeviceRule]
    memory: Memory
    cpu: CPU
    blockIO: BlockIO
    hugepageLimits: list[HugepageLimit]
    network: Network
    pids: Pids
    rdma: dict[str, Rdma]
    unified: dict[str, str]


class IntelRdt(TypedDict, total=False):
    """config-linux.md, IntelRdt."""

    closID: str
    schemata: list[str]
    l3CacheSchema: str
    memBwSchema: str
    enableMonitoring: bool


class MemoryPolicy(TypedDict, total=False):
    """config-linux.md, Memory policy."""

    mode: Required[str]
    nodes: str
    flags: list[str]


class SyscallArg(TypedDict, total=False):
    """config-linux.md, Seccomp."""

    index: Required[int]
    value: Required[int]
    valueTwo: int
    op: Required[str]


class Syscall(TypedDict, total=False):
    """config-linux.md, Seccomp."""

    names: Required[list[str]]
    action: Required[str]
    errnoRet: int
    args: list[SyscallArg]


class Seccomp(TypedDict, total=False):
    """config-linux.md, Seccomp."""

    defaultAction: Required[str]
    defaultErrnoRet: int
    architectures: list[str]
    flags: list[str]
    listenerPath: str
    listenerMetadata: str
    syscalls: list[Syscall]


class Personality(TypedDict, total=False):
    """config-linux.md, Personality."""

    domain: Required[str]
    flags: list[str]


class Linux(TypedDict, total=False):
    """config-linux.md."""

    namespaces: list[Namespace]
    uidMappings: list[IDMapping]
    gidMappings: list[IDMapping]
    timeOffsets: dict[str, TimeOffset]
    devices: list[Device]
    netDevices: dict[str, NetDevice]
    cgroupsPath: str
    resources: Resources
    intelRdt: IntelRdt
    memoryPolicy: MemoryPolicy
    sysctl: dict[str, str]
    seccomp: Seccomp
    rootfsPropagation: str
    maskedPaths: list[str]
    readonlyPaths: list[str]
    mountLabel: str
    personality: Personality


class Config(TypedDict, total=False):
    """config.md."""

    ociVersion: Required[str]
    root: Required[Root]
    mounts: list[Mount]
    process: Process
    hostname: str
    domainname: str
    hooks: Hooks
    annotations: dict[str, str]
    linux: Linux


class State(TypedDict, total=False):
    """runtime.md, State; `pid` is there while the container is created or running."""

    ociVersion: Required[str]
    id: Required[str]
    status: Required[str]
    pid: int
    bundle: Required[str]
    annotations: dict[str, str]


class ContainerProcessState(TypedDict, total=False):
    """config-linux.md, The Container Process State: what a seccomp agent is sent."""

    ociVersion: Required[str]
    fds: list[str]
    pid: Required[int]
    metadata: str
    state: Required[State]


class Features(TypedDict, total=False):
    """features.md."""

    ociVersionMin: Required[str]
    ociVersionMax: Required[str]
    hooks: list[str]
    mountOptions: list[str]
    linux: dict[str, Any]
    annotations: dict[str, str]
    potentiallyUnsafeConfigAnnotations: list[str]
