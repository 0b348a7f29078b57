"""What the specification wants of every configuration: REQUIRED keys, absolute paths, values that must not be."""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.harness.box import Box
from tests.harness.peers import peer_fails

BPS = {"major": 8, "minor": 0, "rate": 600}
#: What the peers of today take all the same, or refuse only after they have made things that they leave behind.
TAKEN_BY = {
    "hooks.poststop[].path": "runc",
    "hooks.startContainer[].path": "runc",
    "linux.devices[].major": "runc crun",
    "linux.devices[].minor": "runc crun",
    "linux.devices[].path": "runc",
    "linux.gidMappings[].containerID": "runc crun",
    "linux.gidMappings[].hostID": "runc crun",
    "linux.personality.domain": "runc",
    "linux.resources.blockIO.throttleReadBpsDevice[].major": "crun",
    "linux.resources.blockIO.throttleReadBpsDevice[].minor": "crun",
    "linux.resources.blockIO.throttleReadBpsDevice[].rate": "crun",
    "linux.resources.blockIO.throttleReadIOPSDevice[].major": "crun",
    "linux.resources.blockIO.throttleReadIOPSDevice[].minor": "crun",
    "linux.resources.blockIO.throttleReadIOPSDevice[].rate": "crun",
    "linux.resources.blockIO.throttleWriteBpsDevice[].major": "crun",
    "linux.resources.blockIO.throttleWriteBpsDevice[].minor": "crun",
    "linux.resources.blockIO.throttleWriteBpsDevice[].rate": "crun",
    "linux.resources.blockIO.throttleWriteIOPSDevice[].major": "crun",
    "linux.resources.blockIO.throttleWriteIOPSDevice[].minor": "crun",
    "linux.resources.blockIO.throttleWriteIOPSDevice[].rate": "crun",
    "linux.resources.blockIO.weightDevice[].major": "crun",
    "linux.resources.blockIO.weightDevice[].minor": "crun",
    "linux.resources.devices[].allow": "runc",
    "linux.resources.hugepageLimits[].limit": "runc crun",
    "linux.resources.network.priorities[].priority": "crun",
    "linux.seccomp.defaultAction": "runc",
    "linux.seccomp.syscalls[].names": "runc",
    "linux.uidMappings[].containerID": "runc crun",
    "linux.uidMappings[].hostID": "runc crun",
    "process.consoleSize.height": "runc crun",
    "process.consoleSize.width": "runc crun",
    "process.ioPriority.class": "runc crun",
    "process.rlimits[].hard": "runc crun",
    "process.rlimits[].soft": "runc crun",
    "process.scheduler.policy": "runc crun",
    "hooks.createContainer": "runc",
    "hooks.createRuntime": "crun",
    "hooks.poststart": "crun",
    "hooks.poststop": "runc crun",
    "hooks.prestart": "crun",
    "hooks.startContainer": "runc crun",
    "linux.maskedPaths": "runc crun",
    "linux.readonlyPaths": "runc crun",
    "process.cwd": "crun",
    "MB schema of two lines": "crun",
    "MB schema that is none": "crun",
    "a device without any weight": "runc crun",
    "an empty annotation key": "runc crun",
    "an rdma device without any limit": "crun",
    "annotations that are no map": "crun",
    "errno of a default action that takes none": "runc",
    "errno of an action that takes none": "runc",
    "gidMappings alone": "runc",
    "metadata without a listener": "runc crun",
    "no system call": "runc crun",
    "schemata of two lines": "runc crun",
    "uidMappings alone": "runc",
    "resctrl": "runc crun",
}


HOOK = {"path": "/bin/true"}
MAPPING = {"containerID": 0, "hostID": 100000, "size": 1000}
SYSCALL = {"names": ["acct"], "action": "SCMP_ACT_ERRNO"}
CONDITION = {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}


def put(config: dict[str, Any], path: str, value: Any) -> None:
    """Set `linux.resources.pids`, making what is missing on the way."""
    *above, last = path.split(".")
    for name in above:
        config = config.setdefault(name, {})
    config[last] = value


def seccomp(**rule: Any) -> dict[str, Any]:
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{**SYSCALL, **rule}]}


def takes(name: str) -> list[pytest.MarkDecorator]:
    """The marks of a line of the tables below."""
    return [peer_fails(peer, f"takes {name!r}", always=False) for peer in TAKEN_BY.get(name, "").split()]


def case(path: str, value: Any, key: str) -> Any:
    """A line of the table: an object (or array of one) at `path` without one REQUIRED key."""
    entry = dict(value)
    del entry[key]
    listed = path.endswith("[]")
    where = path.removesuffix("[]")
    return pytest.param(where, [entry] if listed else entry, key, id=f"{path}.{key}", marks=takes(f"{path}.{key}"))


REQUIRED: list[Any] = [
    case("root", {"path": "rootfs"}, "path"),
    case("mounts[]", {"destination": "/x", "type": "tmpfs"}, "destination"),
    case("process.consoleSize", {"height": 25, "width": 80}, "height"),
    case("process.consoleSize", {"height": 25, "width": 80}, "width"),
    case("process.rlimits[]", {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, "type"),
    case("process.rlimits[]", {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, "soft"),
    case("process.rlimits[]", {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}, "hard"),
    case("process.scheduler", {"policy": "SCHED_OTHER", "nice": 1}, "policy"),
    case("process.ioPriority", {"class": "IOPRIO_CLASS_IDLE", "priority": 0}, "class"),
    case("hooks.prestart[]", HOOK, "path"),
    case("hooks.createRuntime[]", HOOK, "path"),
    case("hooks.createContainer[]", HOOK, "path"),
    case("hooks.startContainer[]", HOOK, "path"),
    case("hooks.poststart[]", HOOK, "path"),
    case("hooks.poststop[]", HOOK, "path"),
    case("linux.namespaces[]", {"type": "mount"}, "type"),
    case("linux.uidMappings[]", MAPPING, "containerID"),
    case("linux.uidMappings[]", MAPPING, "hostID"),
    case("linux.uidMappings[]", MAPPING, "size"),
    case("linux.gidMappings[]", MAPPING, "containerID"),
    case("linux.gidMappings[]", MAPPING, "hostID"),
    case("linux.gidMappings[]", MAPPING, "size"),
    case("linux.devices[]", {"type": "c", "path": "/dev/x", "major": 1, "minor": 3}, "type"),
    case("linux.devices[]", {"type": "c", "path": "/dev/x", "major": 1, "minor": 3}, "path"),
    case("linux.devices[]", {"type": "c", "path": "/dev/x", "major": 1, "minor": 3}, "major"),
    case("linux.devices[]", {"type": "c", "path": "/dev/x", "major": 1, "minor": 3}, "minor"),
    case("linux.resources.devices[]", {"allow": True, "type": "c", "access": "r"}, "allow"),
    case("linux.resources.blockIO.weightDevice[]", {"major": 8, "minor": 0, "weight": 500}, "major"),
    case("linux.resources.blockIO.weightDevice[]", {"major": 8, "minor": 0, "weight": 500}, "minor"),
    *(
        case(f"linux.resources.blockIO.{kind}[]", BPS, key)
        for kind in (
            "throttleReadBpsDevice",
            "throttleWriteBpsDevice",
            "throttleReadIOPSDevice",
            "throttleWriteIOPSDevice",
        )
        for key in ("major", "minor", "rate")
    ),
    case("linux.resources.hugepageLimits[]", {"pageSize": "2MB", "limit": 0}, "pageSize"),
    case("linux.resources.hugepageLimits[]", {"pageSize": "2MB", "limit": 0}, "limit"),
    case("linux.resources.network.priorities[]", {"name": "lo", "priority": 1}, "name"),
    case("linux.resources.network.priorities[]", {"name": "lo", "priority": 1}, "priority"),
    case("linux.seccomp", {"defaultAction": "SCMP_ACT_ALLOW"}, "defaultAction"),
    case("linux.seccomp.syscalls[]", SYSCALL, "names"),
    case("linux.seccomp.syscalls[]", SYSCALL, "action"),
    case("linux.personality", {"domain": "LINUX"}, "domain"),
]


def refused(box: Box, word: str) -> None:
    """create is an error that names the place, and nothing has been made."""
    result = box.create(check=False)
    assert result.rc == 1, result
    assert box.runtime("state", box.id, check=False).rc == 1
    if box.runtime.name == "ocirt":
        assert word in result.err, result
        assert "Traceback" not in result.err


@pytest.mark.parametrize(("path", "value", "key"), REQUIRED)
def test_a_required_key(box: Box, path: str, value: Any, key: str) -> None:
    if path.startswith("linux.seccomp."):
        put(box.config, "linux.seccomp.defaultAction", "SCMP_ACT_ALLOW")
    if "Mappings" in path:
        box.add_user_namespace()
    put(box.config, path, value)
    refused(box, key)


TAKEN: list[Any] = [
    case("process.user", {"uid": 0, "gid": 0}, "uid"),
    case("process.user", {"uid": 0, "gid": 0}, "gid"),
    case("process.ioPriority", {"class": "IOPRIO_CLASS_IDLE", "priority": 0}, "priority"),
    case("linux.memoryPolicy", {"mode": "MPOL_DEFAULT"}, "mode"),
]


@pytest.mark.parametrize(("path", "value", "key"), TAKEN)
def test_a_required_key_that_engines_leave_out(box: Box, path: str, value: Any, key: str) -> None:
    """Clients written in Go leave out a zero, and every runtime takes it for one: so do we, with a warning."""
    put(box.config, path, value)
    result = box.run("echo ok")
    assert result.out == "ok\n"
    if box.runtime.name == "ocirt":
        assert "warning" in result.err
        assert key in result.err


@peer_fails("runc", "takes a config without ociVersion", always=False)
@pytest.mark.parametrize("key", ["ociVersion", "root"])
def test_a_required_key_at_the_top(box: Box, key: str) -> None:
    del box.config[key]
    refused(box, key)


@peer_fails("runc", "takes a condition without index or value", always=False)
@peer_fails("crun", "takes a condition without index or value", always=False)
@pytest.mark.parametrize("key", ["index", "value", "op"])
def test_a_required_key_of_a_condition(box: Box, key: str) -> None:
    condition = {name: value for name, value in CONDITION.items() if name != key}
    box.linux["seccomp"] = seccomp(args=[condition])
    refused(box, key)


def test_a_pipe_needs_no_numbers(box: Box) -> None:
    """config-linux.md, Devices: major and minor are REQUIRED unless the type is p."""
    box.linux["devices"] = [{"type": "p", "path": "/dev/pipe"}]
    assert box.run("ls -l /dev/pipe").out.startswith("p")


def path_case(path: str, value: Any, word: str) -> Any:
    return pytest.param(path, value, word, id=path, marks=takes(path))


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        path_case("process.cwd", "tmp", "cwd"),
        *(path_case(f"hooks.{kind}", [{"path": "bin/true"}], kind) for kind in (
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        )),
        path_case("linux.namespaces", [{"type": "network", "path": "proc/self/ns/net"}], "namespaces"),
        path_case("linux.maskedPaths", ["proc/kcore"], "maskedPaths"),
        path_case("linux.readonlyPaths", ["proc/sys"], "readonlyPaths"),
    ],
)  # fmt: skip
def test_a_path_must_be_absolute(box: Box, path: str, value: Any, word: str) -> None:
    put(box.config, path, value)
    refused(box, word)


def forbidden(name: str, path: str, value: Any, word: str) -> Any:
    return pytest.param(path, value, word, id=name, marks=takes(name))


MOUNT = {"destination": "/m", "source": "/etc", "type": "none", "options": ["bind", "idmap"]}
KILL = "SCMP_ACT_KILL_PROCESS"
NOT_ALLOWED: list[Any] = [
    forbidden("uidMappings alone", "mounts", [{**MOUNT, "uidMappings": [MAPPING]}], "gidMappings"),
    forbidden("gidMappings alone", "mounts", [{**MOUNT, "gidMappings": [MAPPING]}], "uidMappings"),
    forbidden("an empty annotation key", "annotations", {"": "x"}, "annotations"),
    forbidden("a number as annotation", "annotations", {"org.x": 1}, "annotations"),
    forbidden("annotations that are no map", "annotations", ["org.x"], "annotations"),
    forbidden(
        "a device without any weight", "linux.resources.blockIO.weightDevice", [{"major": 8, "minor": 0}], "weight"
    ),
    forbidden("an rdma device without any limit", "linux.resources.rdma", {"mlx5_1": {}}, "mlx5_1"),
    forbidden("no system call", "linux.seccomp", seccomp(names=[]), "names"),
    forbidden("errno of a default action that takes none", "linux.seccomp",
              {"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}, "defaultErrnoRet"),
    forbidden("errno of an action that takes none", "linux.seccomp", seccomp(action=KILL, errnoRet=1), "errnoRet"),
    forbidden("metadata without a listener", "linux.seccomp",
              {"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}, "listenerMetadata"),
    forbidden("MB schema that is none", "linux.intelRdt", {"memBwSchema": "L3:0=f"}, "memBwSchema"),
    forbidden("MB schema of two lines", "linux.intelRdt", {"memBwSchema": "MB:0=20\nMB:1=10"}, "memBwSchema"),
    forbidden("schemata of two lines", "linux.intelRdt", {"schemata": ["L3:0=f\nL3:1=f"]}, "schemata"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "word"), NOT_ALLOWED)
def test_a_value_that_the_specification_forbids(box: Box, path: str, value: Any, word: str) -> None:
    if path == "mounts":
        value = box.mounts + value
    put(box.config, path, value)
    refused(box, word)


@peer_fails("runc", "wants /proc for it")
@peer_fails("crun", "wants linux")
def test_without_linux(box: Box) -> None:
    """config.md, Platform-specific configuration: linux may be left out; the namespaces are the runtime's then."""
    del box.config["linux"]
    del box.config["hostname"]
    del box.config["mounts"]
    (box.rootfs / "lives").write_text("yes")
    assert box.run("cat /lives").out == "yes"


def lacking(name: str, path: str, value: Any, here: bool) -> Any:
    """Something that a machine may lack; where it doesn't, there is nothing to see."""
    marks = [
        *takes(name),
        pytest.mark.skipif(here, reason=f"there is {name} here"),
    ]
    return pytest.param(path, value, id=name, marks=marks)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        lacking(
            "SELinux",
            "process.selinuxLabel",
            "system_u:system_r:container_t:s0",
            os.path.exists("/sys/fs/selinux/enforce"),
        ),
        lacking("AppArmor", "process.apparmorProfile", "some-profile", os.path.exists("/sys/module/apparmor")),
        lacking(
            "resctrl",
            "linux.intelRdt",
            {"closID": "x", "schemata": ["L3:0=f"]},
            os.path.exists("/sys/fs/resctrl/schemata"),
        ),
    ],
)
def test_what_this_machine_lacks_is_an_error(box: Box, path: str, value: Any) -> None:
    put(box.config, path, value)
    refused(box, path.rpartition(".")[2])


@peer_fails("runc", "an error where CAP_SYS_RESOURCE can't be had", always=False)
@peer_fails("crun", "an error where CAP_SYS_RESOURCE can't be had", always=False)
def test_a_capability_that_cannot_be_granted_is_a_warning(box: Box) -> None:
    """config.md, Linux Process: a known capability beyond the runtime's bounding set doesn't stop the container."""
    box.capabilities("CAP_SYS_RESOURCE", "CAP_CHOWN")
    result = box.run("grep CapBnd /proc/self/status")
    bounding = int(result.out.split()[1], 16)
    assert bounding & 1, "CAP_CHOWN was granted"
    if not bounding >> 24 & 1:
        assert "CAP_SYS_RESOURCE" in result.err
