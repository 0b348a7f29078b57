"""Configurations to start from, and ways to change them."""

from __future__ import annotations

import re
from typing import Any

#: Put in place of a value: the key or item is removed.
REMOVED = object()

MINIMAL: dict[str, Any] = {"ociVersion": "1.3.0", "root": {"path": "rootfs"}}

HOOK = {"path": "/bin/hook", "args": ["hook", "-v"], "env": ["A=b", "C="], "timeout": 5}
RATE = {"major": 8, "minor": 0, "rate": 1048576}
MAPPING = [{"containerID": 0, "hostID": 100000, "size": 65536}]
CAPABILITIES = ["CAP_CHOWN", "CAP_KILL", "CAP_CHECKPOINT_RESTORE"]

#: Every key of the specification's Linux configuration, each with a value that is right.
FULL: dict[str, Any] = {
    "ociVersion": "1.3.0-rc.1+build.5",
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {
            "destination": "/data",
            "type": "none",
            "source": "data",
            "options": ["rbind", "ridmap"],
            "uidMappings": MAPPING,
            "gidMappings": MAPPING,
        },
    ],
    "process": {
        "terminal": True,
        "consoleSize": {"height": 25, "width": 80},
        "cwd": "/",
        "env": ["PATH=/bin", "EMPTY=", "TWO=a=b"],
        "args": ["sh", ""],
        "commandLine": "ignored",
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 18446744073709551615},
        ],
        "apparmorProfile": "unconfined",
        "capabilities": {
            "bounding": CAPABILITIES,
            "effective": CAPABILITIES,
            "inheritable": CAPABILITIES,
            "permitted": CAPABILITIES,
            "ambient": CAPABILITIES,
        },
        "noNewPrivileges": True,
        "oomScoreAdj": -500,
        "scheduler": {
            "policy": "SCHED_DEADLINE",
            "nice": 0,
            "priority": 0,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 42000,
            "deadline": 100000,
            "period": 1000000,
        },
        "selinuxLabel": "system_u:system_r:container_t:s0",
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
        "execCPUAffinity": {"initial": "0", "final": "0-3, 7"},
        "user": {"uid": 1000, "gid": 1000, "umask": 63, "additionalGids": [5, 6], "username": "ignored"},
    },
    "hostname": "box",
    "domainname": "example.test",
    "hooks": {
        "prestart": [HOOK],
        "createRuntime": [HOOK, {"path": "/bin/true"}],
        "createContainer": [HOOK],
        "startContainer": [HOOK],
        "poststart": [HOOK],
        "poststop": [HOOK],
    },
    "annotations": {"com.example.key": "value", "empty": ""},
    "linux": {
        "namespaces": [
            {"type": "pid"},
            {"type": "network", "path": "/run/netns/other"},
            {"type": "mount"},
            {"type": "ipc"},
            {"type": "uts"},
            {"type": "user"},
            {"type": "cgroup"},
            {"type": "time"},
        ],
        "uidMappings": MAPPING,
        "gidMappings": MAPPING,
        "timeOffsets": {"monotonic": {"secs": 172800, "nanosecs": 999999999}, "boottime": {"secs": -1}},
        "devices": [
            {"type": "c", "path": "/dev/fuse", "major": 10, "minor": 229, "fileMode": 438, "uid": 0, "gid": 5},
            {"type": "p", "path": "/run/pipe"},
            {"type": "u", "path": "/dev/raw", "major": 4095, "minor": 1048575},
        ],
        "netDevices": {"eth0": {"name": "inside%d"}, "eth1": {}},
        "cgroupsPath": "/machines/box",
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "major": -1, "minor": 229, "access": "rw"},
            ],
            "memory": {
                "limit": 536870912,
                "reservation": 1073741824,
                "swap": 536870912,
                "kernel": -1,
                "kernelTCP": -1,
                "swappiness": 100,
                "disableOOMKiller": False,
                "useHierarchy": True,
                "checkBeforeUpdate": False,
            },
            "cpu": {
                "shares": 1024,
                "quota": 100000,
                "burst": 100000,
                "period": 100000,
                "realtimeRuntime": 950000,
                "realtimePeriod": 1000000,
                "cpus": "0-3,7",
                "mems": "0",
                "idle": 1,
            },
            "blockIO": {
                "weight": 10,
                "leafWeight": 10,
                "weightDevice": [
                    {"major": 8, "minor": 0, "weight": 500, "leafWeight": 300},
                    {"major": 8, "minor": 16, "leafWeight": 1000},
                ],
                "throttleReadBpsDevice": [RATE],
                "throttleWriteBpsDevice": [RATE],
                "throttleReadIOPSDevice": [RATE],
                "throttleWriteIOPSDevice": [RATE],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 9223372036854772000}, {"pageSize": "64KB", "limit": 0}],
            "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 500}]},
            "pids": {"limit": -1},
            "rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 1000}},
            "unified": {"io.max": "259:0 rbps=2097152", "memory.high": "max"},
        },
        "intelRdt": {
            "closID": "guaranteed",
            "schemata": ["L3:0=7f0;1=1f", "MB:0=20;1=70"],
            "l3CacheSchema": "L3:0=7f0;1=1f",
            "memBwSchema": "MB:0=20;1=70",
            "enableMonitoring": True,
        },
        "memoryPolicy": {"mode": "MPOL_INTERLEAVE", "nodes": "0-1", "flags": ["MPOL_F_STATIC_NODES"]},
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536", "fs/mqueue/msg_max": "10"},
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_LOONGARCH64", "SCMP_ARCH_SHEB"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "listenerPath": "/run/agent.sock",
            "listenerMetadata": "who=me",
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mknod"], "action": "SCMP_ACT_NOTIFY"},
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_TRACE",
                    "errnoRet": 65535,
                    "args": [
                        {"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"},
                        {"index": 5, "value": 18446744073709551615, "op": "SCMP_CMP_NE"},
                    ],
                },
            ],
        },
        "rootfsPropagation": "slave",
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "mountLabel": "system_u:object_r:container_file_t:s0",
        "personality": {"domain": "LINUX32", "flags": []},
    },
    "freebsd": {"jail": {"vnet": "anything"}},
    "solaris": {},
    "vm": {"hypervisor": {"path": "/bin/vm"}},
    "windows": {},
    "zos": {"namespaces": []},
}


def docker(count: int = 380) -> dict[str, Any]:
    """What Docker writes for `docker run alpine sh`, with a seccomp profile of `count` names."""
    safe = ["nosuid", "noexec", "nodev"]
    own = "/var/lib/docker/containers/4f5d3c2b1a09/"
    capabilities = [f"CAP_{name}" for name in ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETUID", "MKNOD")]
    rules: list[dict[str, Any]] = [
        {"names": [f"system_call_{n}" for n in range(count)], "action": "SCMP_ACT_ALLOW"},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
    ]
    for value in (0, 8, 131072, 131080, 4294967295):
        condition = {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}
        rules.append({"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [condition]})
    return {
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 1, 2, 3, 10]},
            "args": ["sh"],
            "env": ["PATH=/usr/local/bin:/usr/bin:/bin", "HOSTNAME=4f5d3c2b1a09", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "apparmorProfile": "docker-default",
            "oomScoreAdj": 0,
        },
        "root": {"path": "rootfs"},
        "hostname": "4f5d3c2b1a09",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*safe, "ro"]},
            *(
                {"destination": f"/etc/{f}", "type": "bind", "source": own + f, "options": ["rbind", "rprivate"]}
                for f in ("resolv.conf", "hostname", "hosts")
            ),
        ],
        "hooks": {"prestart": [{"path": "/proc/1/exe", "args": ["libnetwork-setkey", "4f5d3c2b1a09"]}]},
        "linux": {
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"},
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    *({"allow": True, "type": "c", "major": 1, "minor": n, "access": "rwm"} for n in (3, 5, 7, 8, 9)),
                ],
                "memory": {},
                "cpu": {"shares": 0},
                "pids": {"limit": 0},
                "blockIO": {"weight": 0},
            },
            "cgroupsPath": "system.slice:docker:4f5d3c2b1a09",
            "namespaces": [{"type": kind} for kind in ("mount", "network", "uts", "pid", "ipc", "cgroup")],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": rules,
            },
            "maskedPaths": ["/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def steps(path: str) -> list[str | int]:
    """A path such as `a.b[2].c` or `a["x.y"]` as keys and indexes."""
    found: list[str | int] = []
    for name, index, quoted in re.findall(r'\.?([^.\[]+)|\[(\d+)\]|\["([^"]*)"\]', path):
        found.append(int(index) if index else name or quoted)
    return found


def set_paths(config: dict[str, Any], changes: dict[str, object]) -> dict[str, Any]:
    """A copy of `config` with the value at each path replaced, added (an index one past the end appends) or removed."""
    changed = clone(config)
    for path, value in changes.items():
        *way, last = steps(path)
        here = changed
        for step in way:
            here = here.setdefault(step, {}) if isinstance(here, dict) else here[step]
        if value is REMOVED:
            del here[last]
        elif isinstance(here, list) and last == len(here):
            here.append(clone(value))
        else:
            here[last] = clone(value)
    return changed  # type: ignore[no-any-return]


def clone(value: Any) -> Any:
    """A copy in which nothing is shared, not even with itself as deepcopy would have it."""
    if isinstance(value, dict):
        return {key: clone(inner) for key, inner in value.items()}
    return [clone(inner) for inner in value] if isinstance(value, list) else value


def paths(value: Any, way: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to every value inside `value`."""
    found = [way] if way else []
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in members:
        found += paths(inner, (*way, key))
    return found
