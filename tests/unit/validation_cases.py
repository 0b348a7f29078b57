"""For every rule of ocirt/validation/rules: configurations that it lets pass, and configurations that it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ocirt.validation.rules import (
    advice,
    annotations,
    basics,
    mounts,
    namespaces,
    process,
    rdt,
    resources,
    scheduling,
    seccomp,
    sysctl,
)
from tests.unit.validation_samples import CAPABILITIES, MINIMAL, REMOVED, set_paths

if TYPE_CHECKING:
    from ocirt.validation.found import Rule

NS = "linux.namespaces"
TYPES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")

#: A container with every namespace of its own.
OWN: dict[str, Any] = {
    **MINIMAL,
    "process": {"cwd": "/", "args": ["sh"], "user": {"uid": 0, "gid": 0}},
    "linux": {
        "namespaces": [{"type": kind} for kind in TYPES],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 1000}],
        "gidMappings": [{"containerID": 0, "hostID": 200000, "size": 1000}],
    },
}


def without(kind: str) -> dict[str, Any]:
    """OWN without a namespace of this type."""
    return set_paths(OWN, {NS: [n for n in OWN["linux"]["namespaces"] if n["type"] != kind]})


def joined(kind: str, path: str = "/proc/1/ns/x") -> dict[str, Any]:
    """OWN with the namespace of this type joined."""
    entries = [{"type": k, "path": path} if k == kind else {"type": k} for k in TYPES]
    return set_paths(OWN, {NS: entries})


NO_USER = set_paths(without("user"), {"linux.uidMappings": REMOVED, "linux.gidMappings": REMOVED})
PROFILE: dict[str, Any] = {"defaultAction": "SCMP_ACT_ALLOW"}
MAP = {"containerID": 0, "hostID": 0, "size": 10}
DEADLINE = {"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 3000, "period": 4000}

#: rule: configurations (base, changes) that it has nothing against
GOOD: list[tuple[Rule, dict[str, Any], dict[str, Any]]] = [
    *((basics.oci_version, MINIMAL, {"ociVersion": v}) for v in (
        "1.0.0", "1.3.0", "1.99.0", "1.0.0-rc2-dev", "1.3.0-rc.1+build.01", "1.2.3+x", "1.0.0-alpha-1.0.-")),
    (basics.names, OWN, {"hostname": "a" * 64, "domainname": "é" * 32}),
    (basics.names, joined("uts"), {"hostname": "box"}),
    (basics.names, MINIMAL, {"hostname": ""}),
    (basics.hook_environments, OWN, {"hooks": {"poststop": [{"path": "/x", "env": ["A=", "B==", "C=d e"]}], "x": 1}}),
    *((basics.cgroups_path, OWN, {"linux.cgroupsPath": p}) for p in ("/a/b", "a..b", "system.slice:x:y", "")),
    (basics.paths_need_mount_namespace, OWN, {"linux.maskedPaths": ["/x"], "linux.readonlyPaths": ["/y"]}),
    (basics.paths_need_mount_namespace, without("mount"), {"linux.maskedPaths": []}),
    (namespaces.unique_types, OWN, {}),
    (namespaces.mappings_need_user_namespace, OWN, {}),
    (namespaces.mappings_need_user_namespace, NO_USER, {"linux.uidMappings": []}),
    (namespaces.mappings_need_user_namespace, joined("user"),
     {"linux.uidMappings": REMOVED, "linux.gidMappings": REMOVED}),
    (namespaces.mappings_are_sound, OWN, {
        "linux.uidMappings": [MAP, {"containerID": 10, "hostID": 10, "size": 4294967285}]}),
    (namespaces.mappings_are_sound, OWN, {
        "linux.gidMappings": [{"containerID": 5, "hostID": 1, "size": 1}, {"containerID": 4, "hostID": 2, "size": 1}]}),
    (namespaces.offsets_need_time_namespace, OWN, {"linux.timeOffsets": {"monotonic": {"secs": 1}, "boottime": {}}}),
    (namespaces.offsets_need_time_namespace, without("time"), {"linux.timeOffsets": {}}),
    (namespaces.net_devices, joined("network"), {"linux.netDevices": {"eth0": {"name": "a" * 15}, "eth1": {}}}),
    (namespaces.net_devices, OWN, {"linux.netDevices": {"eth0": {"name": "c%d"}, "eth1": {"name": "c%d"}}}),
    (mounts.absolute_destinations, OWN, {"mounts": [{"destination": "/a"}, {"destination": "//b/../c"}]}),
    (mounts.mount_mappings, OWN, {"mounts": [{"destination": "/a", "options": ["bind", "idmap"]}]}),
    (mounts.mount_mappings, joined("user"), {"mounts": [{"destination": "/a", "options": ["ridmap"]}]}),
    (mounts.mount_mappings, NO_USER, {"mounts": [
        {"destination": "/a", "options": ["ridmap"], "uidMappings": [MAP], "gidMappings": [MAP]}]}),
    (mounts.mount_mappings, NO_USER, {"mounts": [{"destination": "/a", "options": ["idmap=uids=0-1-10;gids=0-1-10"]}]}),
    (mounts.device_paths, OWN, {"linux.devices": [
        {"type": "c", "path": "/dev/a", "major": 1, "minor": 2}, {"type": "u", "path": "/dev/a", "major": 1,
         "minor": 2},
        {"type": "c", "path": "/dev/b", "major": 1, "minor": 2}, {"type": "p", "path": "/p", "major": 1},
        {"type": "p", "path": "/p"}]}),
    (process.program, OWN, {"process.args": ["sh", ""]}),
    (process.process_environment, OWN, {"process.env": ["A=", "A=b", "LONG=\n=", "É=1"]}),
    (process.console_size, OWN, {"process.terminal": True, "process.consoleSize": {"height": 65535, "width": 0}}),
    (process.console_size, OWN, {"process.terminal": False, "process.consoleSize": {"height": 1 << 40, "width": 1}}),
    (process.rlimits, OWN, {"process.rlimits": [
        {"type": "RLIMIT_CPU", "soft": 1, "hard": 1}, {"type": "RLIMIT_AS", "soft": 0, "hard": (1 << 64) - 1}]}),
    (process.ids_are_mapped, OWN, {"process.user": {"uid": 999, "gid": 0, "additionalGids": [1, 999]}}),
    (process.ids_are_mapped, joined("user"), {"process.user": {"uid": 5000, "gid": 5000}}),
    (process.ids_are_mapped, NO_USER, {"process.user": {"uid": 5000, "gid": 5000}}),
    *((scheduling.scheduler, OWN, {"process.scheduler": s}) for s in (
        {"policy": "SCHED_OTHER", "nice": -20}, {"policy": "SCHED_BATCH", "nice": 19, "priority": 0},
        {"policy": "SCHED_FIFO", "priority": 1}, {"policy": "SCHED_RR", "priority": 99}, {"policy": "SCHED_IDLE"},
        DEADLINE, {**DEADLINE, "nice": 19, "period": 0})),
    *((scheduling.exec_cpu_affinity, OWN, {"process.execCPUAffinity": {"initial": t, "final": "0"}}) for t in (
        "", " ", "0", "0-3,7", "1, 2 - 3", "65535")),
    *((scheduling.memory_policy, OWN, {"linux.memoryPolicy": p}) for p in (
        {"mode": "MPOL_DEFAULT"}, {"mode": "MPOL_LOCAL", "nodes": ""}, {"mode": "MPOL_PREFERRED"},
        {"mode": "MPOL_PREFERRED", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"]},
        {"mode": "MPOL_BIND", "nodes": "0-1023", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_NUMA_BALANCING"]},
        {"mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0,1"})),
    (resources.swap_has_limit, OWN, {"linux.resources": {"memory": {"swap": 0}}}),
    (resources.swap_has_limit, OWN, {"linux.resources": {"memory": {"swap": -1}}}),
    (resources.swap_has_limit, OWN, {"linux.resources": {"memory": {"swap": 10, "limit": -1}}}),
    (resources.swap_covers_limit, OWN, {"linux.resources": {"memory": {"swap": 10, "limit": 10}}}),
    (resources.swap_covers_limit, OWN, {"linux.resources": {"memory": {"swap": -1, "limit": 10}}}),
    *((resources.cpu, OWN, {"linux.resources": {"cpu": c}}) for c in (
        {"quota": -1, "burst": 5}, {"quota": 0, "period": 0}, {"quota": 1000, "burst": 1000, "period": 1000},
        {"burst": 7}, {"period": 1000000}, {"cpus": "0-1,5", "mems": "0"}, {"cpus": "", "mems": ""})),
    (resources.block_io, OWN, {"linux.resources": {"blockIO": {"weight": 1000, "leafWeight": 0, "weightDevice": [
        {"major": 1, "minor": 1, "weight": 10}]}}}),
    (resources.device_rules, OWN, {"linux.resources": {"devices": [{"allow": True, "major": -1, "minor": 0}]}}),
    (resources.unified, OWN, {"linux.resources": {"unified": {"memory.high": "max", "hugetlb.1GB.max": "1"}}}),
    *((seccomp.errno_has_action, OWN, {"linux.seccomp": s}) for s in (
        {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4095},
        {"defaultAction": "SCMP_ACT_TRACE", "defaultErrnoRet": 65535},
        {**PROFILE, "syscalls": [{"names": ["a"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0}]})),
    (seccomp.notify_can_work, OWN, {"linux.seccomp": {
        **PROFILE, "listenerPath": "/s", "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": ["read", "close"], "action": "SCMP_ACT_NOTIFY"},
                     {"names": ["write"], "action": "SCMP_ACT_ALLOW"}]}}),
    (seccomp.notify_can_work, OWN, {"annotations": {"run.oci.seccomp.receiver": "/s"}, "linux.seccomp": {
        **PROFILE, "syscalls": [{"names": ["mknod"], "action": "SCMP_ACT_NOTIFY"}]}}),
    (seccomp.metadata_has_path, OWN, {"linux.seccomp": {**PROFILE, "listenerPath": "/s", "listenerMetadata": "m"}}),
    *((sysctl.sysctl_names, OWN, {"linux.sysctl": {k: "1"}}) for k in (
        "net.ipv4.ip_forward", "net/ipv4/conf/eth0.100/rp_filter", "net.ipv4.conf.eth0/100.rp_filter",
        "fs.mqueue.msg_max", "net.ipv4.conf.br-0:1.forwarding")),
    *((sysctl.sysctl_namespaces, OWN, {"linux.sysctl": {k: "1"}}) for k in (
        "net.core.somaxconn", "net/core/somaxconn", "kernel.sem", "kernel/shm_rmid_forced", "fs.mqueue.queues_max",
        "user.max_user_namespaces", "kernel.domainname")),
    (sysctl.sysctl_namespaces, joined("network"), {"linux.sysctl": {"net.ipv4.ip_forward": "1"}}),
    (sysctl.sysctl_namespaces, OWN, {"domainname": "a", "linux.sysctl": {"kernel.domainname": "a"}}),
    *((rdt.clos_id, OWN, {"linux.intelRdt": {"closID": n}}) for n in ("/", "", "group-1", "..x")),
    (rdt.l3_cache_schema, OWN, {"linux.intelRdt": {"l3CacheSchema": "L3:0=f"}}),
    (advice.capabilities, OWN, {"process.capabilities": {
        "ambient": CAPABILITIES, "permitted": CAPABILITIES, "inheritable": CAPABILITIES}}),
    (annotations.known_annotations, OWN, {"annotations": {
        "run.oci.hooks.stdout": "/x", "run.oci.seccomp.receiver": "/s", "com.example.x": "", "run.ocix": ""}}),
    (advice.deprecated_hooks, OWN, {"hooks": {"prestart": [], "createRuntime": [{"path": "/x"}]}}),
    (advice.kernel_memory, OWN, {"linux.resources": {"memory": {"limit": 1}}}),
]  # fmt: skip

#: rule: configurations (base, changes) that it refuses, where, and a part of what it says
BAD: list[tuple[Rule, dict[str, Any], dict[str, Any], str, str]] = [
    *((basics.oci_version, MINIMAL, {"ociVersion": v}, "ociVersion", "must be a SemVer 2.0.0 version") for v in (
        "", "1", "1.0", "v1.0.0", "1.0.0.0", "01.0.0", "1.00.0", "1.0.0-", "1.0.0-a..b", "1.0.0-01", "1.0.0+", "1.0.0 ",
        "1.0.0+a_b", "-1.0.0", "١.0.0", "1.0.x", "1.0.99999999999")),
    *((basics.oci_version, MINIMAL, {"ociVersion": v}, "ociVersion", "must be 1.x") for v in ("0.5.0-dev", "2.0.0",
     "11.0.0")),
    (basics.names, without("uts"), {"hostname": "box"}, "hostname",
     "unable to set hostname without a private UTS namespace"),
    (basics.names, MINIMAL, {"domainname": "x"}, "domainname",
     "unable to set domainname without a private UTS namespace"),
    (basics.names, OWN, {"hostname": "é" * 33}, "hostname", "longer than 64 bytes"),
    (basics.hook_environments, OWN, {"hooks": {"createRuntime": [{"path": "/x"}, {"path": "/x", "env": ["A=b",
     "PATH"]}]}},
     "hooks.createRuntime[1].env[1]", "must be NAME=value"),
    (basics.cgroups_path, OWN, {"linux.cgroupsPath": "/a/../../b"}, "linux.cgroupsPath", "must not hold .."),
    (basics.paths_need_mount_namespace, without("mount"), {"linux.maskedPaths": ["/x"]}, "linux.maskedPaths",
     "unable to restrict sys entries without a private MNT namespace"),
    (basics.paths_need_mount_namespace, without("mount"), {"linux.readonlyPaths": ["/x"]}, "linux.readonlyPaths",
     "MNT"),
    (namespaces.unique_types, OWN, {f"{NS}[8]": {"type": "pid", "path": "/x"}}, f"{NS}[8].type", "duplicated ns"),
    (namespaces.mappings_need_user_namespace, without("user"), {}, "linux.uidMappings",
     "user namespace mappings specified, but user namespace isn't enabled"),
    (namespaces.mappings_need_user_namespace, without("user"), {"linux.uidMappings": REMOVED}, "linux.gidMappings",
     "isn't"),
    (namespaces.mappings_need_user_namespace, OWN, {"linux.gidMappings": REMOVED}, "linux.gidMappings",
     "no namespace path to join nor mappings to apply"),
    (namespaces.mappings_need_user_namespace, OWN, {"linux.uidMappings": []}, "linux.uidMappings", "no namespace path"),
    (namespaces.mappings_are_sound, OWN, {"linux.uidMappings": [MAP, {"containerID": 9, "hostID": 10, "size": 1}]},
     "linux.uidMappings[1]", "containerID overlaps with entry 0"),
    (namespaces.mappings_are_sound, OWN, {"linux.gidMappings": [
        {"containerID": 0, "hostID": 5, "size": 9}, {"containerID": 20, "hostID": 0, "size": 6}]},
     "linux.gidMappings[1]", "hostID overlaps with entry 0"),
    (namespaces.mappings_are_sound, OWN, {"linux.uidMappings": [
        {"containerID": 0, "hostID": 0, "size": 100}, {"containerID": 10, "hostID": 200, "size": 1},
        {"containerID": 50, "hostID": 300, "size": 1}]},
     "linux.uidMappings[2]", "containerID overlaps with entry 0"),
    (namespaces.mappings_are_sound, OWN, {"linux.uidMappings": [{"containerID": 4294967295, "hostID": 0, "size": 1}]},
     "linux.uidMappings[0]", "containerID plus size"),
    (namespaces.mappings_are_sound, OWN, {"linux.uidMappings": [{"containerID": 0, "hostID": 2, "size": 4294967294}]},
     "linux.uidMappings[0]", "hostID plus size"),
    (namespaces.mappings_are_sound, OWN, {"linux.uidMappings": [
        {"containerID": n, "hostID": n, "size": 1} for n in range(341)]}, "linux.uidMappings", "at most 340 mappings"),
    (namespaces.offsets_need_time_namespace, without("time"), {"linux.timeOffsets": {"boottime": {"secs": 1}}},
     "linux.timeOffsets", "time namespace isn't enabled"),
    (namespaces.offsets_need_time_namespace, joined("time"), {"linux.timeOffsets": {"boottime": {"secs": 1}}},
     "linux.timeOffsets", "both namespace path and time offsets"),
    (namespaces.offsets_need_time_namespace, OWN, {"linux.timeOffsets": {"realtime": {"secs": 1}}},
     "linux.timeOffsets.realtime", "must be monotonic or boottime"),
    (namespaces.net_devices, without("network"), {"linux.netDevices": {"eth0": {}}}, "linux.netDevices",
     "unable to move network devices without a NET namespace"),
    *((namespaces.net_devices, OWN, {"linux.netDevices": {"eth0": {"name": n}}}, "linux.netDevices.eth0.name",
       "invalid network device name") for n in ("a" * 16, "a/b", "a b", "a:b", "..", "a%d%d", "a%s", "é" * 8, "a\n")),
    *((namespaces.net_devices, OWN, {"linux.netDevices": {n: {}}}, f'linux.netDevices["{n}"]',
       "invalid network device name") for n in ("", "a/b", "eth%d", "0123456789abcdef")),
    (namespaces.net_devices, OWN, {"linux.netDevices": {"eth0": {}, "eth1": {"name": "eth0"}}},
     "linux.netDevices.eth1.name", "eth0 gets the same name"),
    (mounts.absolute_destinations, OWN, {"mounts": [{"destination": "a"}]}, "mounts[0].destination", "deprecated"),
    (mounts.mount_mappings, OWN, {"mounts": [{"destination": "/a", "uidMappings": [MAP]}]}, "mounts[0].gidMappings",
     "id-mapped mounts must have both uid and gid mappings specified"),
    (mounts.mount_mappings, OWN, {"mounts": [{"destination": "/a", "gidMappings": [MAP]}]}, "mounts[0].uidMappings",
     "both"),
    (mounts.mount_mappings, NO_USER, {"mounts": [{"destination": "/a", "options": ["bind", "ridmap"]}]},
     "mounts[0].options", "ridmap needs uidMappings and gidMappings, or a user namespace"),
    (mounts.mount_mappings, OWN, {"mounts": [{"destination": "/a", "uidMappings": [MAP], "gidMappings": [MAP]}]},
     "mounts[0].options", "neither idmap nor ridmap"),
    (mounts.mount_mappings, OWN, {"mounts": [
        {"destination": "/a", "options": ["idmap"], "uidMappings": [MAP, MAP], "gidMappings": [MAP]}]},
     "mounts[0].uidMappings[1]", "overlaps"),
    (mounts.device_paths, OWN, {"linux.devices": [
        {"type": "c", "path": "/dev/a", "major": 1, "minor": 2}, {"type": "b", "path": "/dev/a", "major": 1,
         "minor": 2}]},
     "linux.devices[1].path", "another device has this path"),
    (process.program, OWN, {"process.args": [""]}, "process.args[0]", "executable file not found in $PATH"),
    *((process.process_environment, OWN, {"process.env": ["A=b", e]}, "process.env[1]", "must be NAME=value")
      for e in ("", "A", "=b")),
    (process.console_size, OWN, {"process.terminal": True, "process.consoleSize": {"height": 1, "width": 65536}},
     "process.consoleSize.width", "65535"),
    (process.rlimits, OWN, {"process.rlimits": [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2},
     "process.rlimits[1].type", "given twice"),
    (process.rlimits, OWN, {"process.rlimits": [{"type": "RLIMIT_CPU", "soft": 2, "hard": 1}]},
     "process.rlimits[0].soft", "must not be more than hard, which is 1"),
    (process.ids_are_mapped, OWN, {"process.user": {"uid": 1000, "gid": 0}}, "process.user.uid", "not mapped"),
    (process.ids_are_mapped, OWN, {"process.user": {"uid": 0, "gid": 1000}}, "process.user.gid", "linux.gidMappings"),
    (process.ids_are_mapped, OWN, {"process.user": {"uid": 0, "gid": 0, "additionalGids": [1, 1000]}},
     "process.user.additionalGids[1]", "not mapped"),
    *((scheduling.scheduler, OWN, {"process.scheduler": s}, f"process.scheduler.{k}", t) for s, k, t in (
        ({"policy": "SCHED_ISO"}, "policy", "unsupported"),
        ({"policy": "SCHED_OTHER", "nice": 20}, "nice", "-20 to 19"), ({"policy": "SCHED_BATCH", "nice": -21}, "nice",
         "-20"),
        ({"policy": "SCHED_FIFO"}, "priority", "1 to 99"), ({"policy": "SCHED_RR", "priority": 100}, "priority",
         "1 to 99"),
        ({"policy": "SCHED_IDLE", "priority": 1}, "priority", "only be specified for SCHED_FIFO and SCHED_RR"),
        ({"policy": "SCHED_OTHER", "period": 1}, "period", "only be specified for SCHED_DEADLINE"),
        ({**DEADLINE, "runtime": 1000}, "runtime", "at least 1024"))),
    (scheduling.scheduler, OWN, {"process.scheduler": {**DEADLINE, "runtime": 3001}}, "process.scheduler", "deadline"),
    (scheduling.scheduler, OWN, {"process.scheduler": {**DEADLINE, "period": 2999}}, "process.scheduler", "period"),
    *((scheduling.exec_cpu_affinity, OWN, {"process.execCPUAffinity": {"final": t}}, "process.execCPUAffinity.final",
       "invalid list of CPUs") for t in (",", "0,", "-1", "1-", "3-1", "0-1-2", "65536", "1 2",
        "99999999999999999999")),
    *((scheduling.memory_policy, OWN, {"linux.memoryPolicy": p}, "linux.memoryPolicy",
     "invalid argument: " + t) for p, t in (
        ({"mode": "MPOL_DEFAULT", "nodes": "0"}, "MPOL_DEFAULT takes no nodes"),
        ({"mode": "MPOL_LOCAL", "nodes": "0"}, "MPOL_LOCAL takes no nodes"),
        ({"mode": "MPOL_BIND"}, "MPOL_BIND needs at least one node"),
        ({"mode": "MPOL_INTERLEAVE", "nodes": ""}, "MPOL_INTERLEAVE needs"),
        ({"mode": "MPOL_PREFERRED", "flags": ["MPOL_F_STATIC_NODES"]}, "MPOL_PREFERRED without nodes"),
        ({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]},
         "MPOL_F_STATIC"),
        ({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_NUMA_BALANCING"]}, "MPOL_F_NUMA_BALANCING"))),
    (scheduling.memory_policy, OWN, {"linux.memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0-9876543210"}},
     "linux.memoryPolicy.nodes", "invalid memory policy node: 9876543210"),
    (resources.swap_has_limit, OWN, {"linux.resources": {"memory": {"swap": 1}}}, "linux.resources.memory.swap",
     "unable to set swap limit without memory limit"),
    (resources.swap_covers_limit, OWN, {"linux.resources": {"memory": {"swap": 9, "limit": 10}}},
     "linux.resources.memory.swap", "less than the memory limit 10"),
    (resources.cpu, OWN, {"linux.resources": {"cpu": {"quota": 1000, "burst": 1001}}}, "linux.resources.cpu.burst",
     "quota"),
    (resources.cpu, OWN, {"linux.resources": {"cpu": {"quota": 999}}}, "linux.resources.cpu.quota", "at least 1000"),
    (resources.cpu, OWN, {"linux.resources": {"cpu": {"period": 999}}}, "linux.resources.cpu.period",
     "1000 to 1000000"),
    (resources.cpu, OWN, {"linux.resources": {"cpu": {"period": 1000001}}}, "linux.resources.cpu.period", "1000 to"),
    (resources.cpu, OWN, {"linux.resources": {"cpu": {"cpus": "x"}}}, "linux.resources.cpu.cpus", "list of CPUs"),
    (resources.cpu, OWN, {"linux.resources": {"cpu": {"mems": "1-0"}}}, "linux.resources.cpu.mems",
     "list of memory nodes"),
    (resources.block_io, OWN, {"linux.resources": {"blockIO": {"leafWeight": 1001}}},
     "linux.resources.blockIO.leafWeight", "1000"),
    (resources.block_io, OWN, {"linux.resources": {"blockIO": {"weightDevice": [{"major": 1, "minor": 1,
     "weight": 1001}]}}},
     "linux.resources.blockIO.weightDevice[0].weight", "10 to 1000"),
    (resources.device_rules, OWN, {"linux.resources": {"devices": [{"allow": True}, {"allow": True, "minor": -2}]}},
     "linux.resources.devices[1].minor", "-1 for all"),
    (resources.unified, OWN, {"linux.resources": {"unified": {"../x": "1"}}}, 'linux.resources.unified["../x"]',
     "no slashes"),
    (resources.unified, OWN, {"linux.resources": {"unified": {"..": "1"}}}, 'linux.resources.unified[".."]',
     "no slashes"),
    *((seccomp.errno_has_action, OWN, {"linux.seccomp": {"defaultAction": a, "defaultErrnoRet": 1}},
       "linux.seccomp.defaultErrnoRet", f"{a} takes no errno") for a in (
        "SCMP_ACT_ALLOW", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG",
         "SCMP_ACT_TRAP")),
    (seccomp.errno_has_action, OWN, {"linux.seccomp": {
        **PROFILE, "syscalls": [{"names": ["a"], "action": "SCMP_ACT_NOTIFY", "errnoRet": 0}]}},
     "linux.seccomp.syscalls[0].errnoRet", "takes no errno"),
    (seccomp.errno_has_action, OWN, {"linux.seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4096}},
     "linux.seccomp.defaultErrnoRet", "4095"),
    (seccomp.errno_has_action, OWN, {"linux.seccomp": {"defaultAction": "SCMP_ACT_TRACE", "defaultErrnoRet": 65536}},
     "linux.seccomp.defaultErrnoRet", "65535"),
    (seccomp.notify_can_work, OWN, {"linux.seccomp": {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/s"}},
     "linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY cannot be used as default action"),
    (seccomp.notify_can_work, OWN, {"linux.seccomp": {
        **PROFILE, "listenerPath": "/s", "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}]}},
     "linux.seccomp.syscalls[0].names", "SCMP_ACT_NOTIFY cannot be used for the write syscall"),
    (seccomp.notify_can_work, OWN, {"linux.seccomp": {**PROFILE, "syscalls": [{"names": ["a"],
     "action": "SCMP_ACT_NOTIFY"}]}},
     "linux.seccomp.listenerPath", "is missing"),
    (seccomp.notify_can_work, OWN, {"linux.seccomp": {**PROFILE, "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}},
     "linux.seccomp.flags", "needs a rule with SCMP_ACT_NOTIFY"),
    (seccomp.metadata_has_path, OWN, {"linux.seccomp": {**PROFILE, "listenerMetadata": "m"}},
     "linux.seccomp.listenerMetadata", "must not be set if listenerPath is not set"),
    *((sysctl.sysctl_names, OWN, {"linux.sysctl": {k: "1"}}, f'linux.sysctl["{k}"]',
     "invalid kernel parameter") for k in (
        "net.ipv4.ip_forward+x", "net..x", "net/../kernel/core_pattern", ".net.x", "net.x.", "a b.c", "/proc/sys/net.x",
        "net.ipv4.//.x", "net.é", "net.ipv4.x=1", "net.ipv4./../x")),
    (sysctl.sysctl_names, OWN, {"linux.sysctl": {"net": "1"}}, "linux.sysctl.net", "must be such as"),
    *((sysctl.sysctl_namespaces, without(ns), {"linux.sysctl": {k: "1"}}, f'linux.sysctl["{k}"]', t) for ns, k, t in (
        ("ipc", "kernel.shmmax", "not allowed in the hosts ipc namespace"), ("ipc", "fs.mqueue.msg_max", "ipc"),
        ("ipc", "kernel/sem", 'sysctl "kernel.sem"'), ("network", "net.core.somaxconn", "host network namespace"),
        ("user", "user.max_ipc_namespaces", "user namespace"), ("uts", "kernel.domainname",
         "separate kernel namespace"),
        ("uts", "kernel.hostname", "separate kernel namespace"), ("pid", "kernel.core_pattern", "separate"),
        ("pid", "vm.swappiness", "separate"), ("pid", "fs.file-max", "separate"), ("pid", "kernel.msgmaxx", "separate"),
        ("pid", "netx.y", "separate"), ("pid", "kernel.hostname", 'conflicts with the OCI "hostname" field'))),
    (sysctl.sysctl_namespaces, joined("network", "/proc/self/ns/net"), {"linux.sysctl": {"net.x.y": "1"}},
     'linux.sysctl["net.x.y"]', "host network namespace"),
    (sysctl.sysctl_namespaces, OWN, {"domainname": "a", "linux.sysctl": {"kernel.domainname": "b"}},
     'linux.sysctl["kernel.domainname"]', "conflicts with domainname"),
    *((rdt.clos_id, OWN, {"linux.intelRdt": {"closID": n}}, "linux.intelRdt.closID", "invalid intelRdt.ClosID")
      for n in (".", "..", "a/b", "/a", "a\nb", "info", "mon_groups")),
    (rdt.l3_cache_schema, OWN, {"linux.intelRdt": {"l3CacheSchema": "L3:0=f\nMB:0=1"}},
     "linux.intelRdt.l3CacheSchema", "one line"),
    (rdt.l3_cache_schema, OWN, {"linux.intelRdt": {"l3CacheSchema": "L2:0=f"}}, "linux.intelRdt.l3CacheSchema", "L3:"),
    (advice.capabilities, OWN, {"process.capabilities": {"bounding": ["CAP_KILL", "CAP_KIL"],
     "permitted": ["CAP_KIL"]}},
     "process.capabilities.bounding[1]", "ignoring unknown or unavailable capabilities"),
    (advice.capabilities, OWN, {"process.capabilities": {"effective": ["kill"]}}, "process.capabilities.effective[0]",
     "did you mean CAP_KILL?"),
    (advice.capabilities, OWN, {"process.capabilities": {"permitted": ["CAP_KILL"], "ambient": ["CAP_KILL"]}},
     "process.capabilities.ambient[0]", "must be permitted and inheritable"),
    (annotations.known_annotations, OWN, {"annotations": {"run.oci.handler": "wasm"}},
     'annotations["run.oci.handler"]', "is not supported and has no effect"),
    (annotations.known_annotations, OWN, {"annotations": {"run.oci.hooks.stdour": "/x"}},
     'annotations["run.oci.hooks.stdour"]', "did you mean run.oci.hooks.stdout?"),
    (annotations.known_annotations, OWN, {"annotations": {"run.oci.whatever": "1"}},
     'annotations["run.oci.whatever"]', "is unknown and has no effect"),
    (advice.deprecated_hooks, OWN, {"hooks": {"prestart": [{"path": "/x"}]}}, "hooks.prestart", "deprecated"),
    (advice.kernel_memory, OWN, {"linux.resources": {"memory": {"kernelTCP": 5}}}, "linux.resources.memory.kernelTCP",
     "not rec"),
]  # fmt: skip
