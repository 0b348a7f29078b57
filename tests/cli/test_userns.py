"""User namespaces: with every other namespace, with terminals, devices, mapped mounts, capabilities, and exec.

config-linux.md, Namespaces and User namespace mappings; user_namespaces(7).
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_namespaces import FILES, NO_TIME, own
from tests.harness.box import Box, end_process
from tests.harness.helpers import Helpers
from tests.harness.peers import fails, peer_fails
from tests.harness.terminal import ConsoleSocket

HOST = 100000
SIZE = 65536
NS_GET_USERNS = 0xB701
OTHERS = ("pid", "network", "ipc", "uts", "cgroup", "time")
#: util-linux's names of the namespaces
UNSHARE = {"pid": "--pid", "network": "--net", "ipc": "--ipc", "uts": "--uts", "cgroup": "--cgroup", "time": "--time"}


@pytest.fixture
def box(box: Box) -> Box:
    box.add_user_namespace(HOST, SIZE)
    return box


def choose(box: Box, wanted: set[str]) -> None:
    """Make these namespaces new, the others the runtime's."""
    for type in OTHERS:
        box.namespace(type, remove=True)
        if type in wanted:
            box.namespace(type)
    if "uts" not in wanted:
        del box.config["hostname"]
    kinds = {"network": "sysfs", "ipc": "mqueue"}
    for type, kind in kinds.items():
        if type not in wanted:
            box.config["mounts"] = [m for m in box.mounts if m["type"] != kind]


def owner_of(pid: int, type: str) -> int:
    """The inode of the user namespace that a namespace of the process belongs to (ioctl_ns(2))."""
    with open(f"/proc/{pid}/ns/{FILES[type]}") as file:
        fd = fcntl.ioctl(file, NS_GET_USERNS)
        try:
            return os.fstat(fd).st_ino
        finally:
            os.close(fd)


def check_namespaces(box: Box, wanted: set[str]) -> None:
    """Init has the namespaces that are wanted, they belong to its user namespace, and exec joins them all."""
    pid = box.pid
    assert own("user", pid) != own("user")
    for type in OTHERS:
        assert (own(type, pid) != own(type)) == (type in wanted), type
        if type in wanted:
            assert owner_of(pid, type) == own("user", pid), type
    script = "; ".join(f"stat -L -c %i /proc/self/ns/{FILES[type]}" for type in ("user", "mount", *OTHERS))
    found = [int(inode) for inode in box.exec("sh", "-c", script).out.split()]
    assert found == [own(type, pid) for type in ("user", "mount", *OTHERS)]


#: where no pid namespace is new, a user namespace may not mount a procfs: the host's is bound
NO_PROC = fails("runc crun", "does not bind the host's /proc where it may not mount its own")

CHOICES: list[set[str]] = [
    set(),
    *({type} for type in OTHERS),
    *(set(OTHERS) - {type} for type in OTHERS),
    set(OTHERS),
    *({"time", *pair} for pair in combinations(("pid", "network", "cgroup"), 1)),
]


def marks_of(wanted: set[str]) -> list[pytest.MarkDecorator]:
    if "time" in wanted:
        return [*NO_TIME]
    return [] if "pid" in wanted else NO_PROC


@pytest.mark.parametrize(
    "wanted",
    [pytest.param(w, id="+".join(sorted(w)) or "none", marks=marks_of(w)) for w in CHOICES],
)
def test_with_other_namespaces(box: Box, wanted: set[str]) -> None:
    choose(box, wanted)
    if "time" in wanted:
        box.linux["timeOffsets"] = {"monotonic": {"secs": 1000}, "boottime": {"secs": 7777, "nanosecs": 5}}
    box.create_and_start("cat /proc/self/timens_offsets 2>/dev/null; echo up; sleep 1000")
    box.wait_for_output("up")
    check_namespaces(box, wanted)
    if "time" in wanted:
        assert [line.split() for line in box.out.splitlines()[:2]] == [
            ["monotonic", "1000", "0"],
            ["boottime", "7777", "5"],
        ]
    box.kill("KILL")
    box.wait_for("stopped")


@pytest.fixture
def pod() -> Iterator[int]:
    """A process in a user namespace of its own and namespaces that belong to it, as the infra container of a pod."""
    process = subprocess.Popen(
        ["unshare", "--user", "--fork", "--kill-child", *UNSHARE.values(), "sleep", "1000"], stdout=subprocess.DEVNULL
    )
    below: list[str] = []
    while not below:
        below = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for file in ("uid_map", "gid_map"):
        Path(f"/proc/{below[0]}/{file}").write_text(f"0 {HOST} {SIZE}\n")
    yield int(below[0])
    end_process(int(below[0]))
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "joined",
    [("user",), ("user", "network", "ipc", "uts"), ("user", "pid"),
     ("user", "pid", "network", "ipc", "uts", "cgroup", "time")],
    ids="+".join,
)  # fmt: skip
@peer_fails("runc", "1.1.5 wants mappings for a user namespace that is joined")
def test_joined_by_path(box: Box, pod: int, joined: tuple[str, ...]) -> None:
    del box.linux["uidMappings"], box.linux["gidMappings"]
    for type in joined:
        box.namespace(type, f"/proc/{pod}/ns/{FILES[type]}")
    if "uts" in joined:
        del box.config["hostname"]
    box.create_and_start("cat /proc/self/uid_map; sleep 1000")
    box.wait_for_output("\n")
    assert box.out.split() == ["0", str(HOST), str(SIZE)]
    pid = box.pid
    for type in ("user", "pid", "network", "ipc", "uts"):
        assert (own(type, pid) == own(type, pod)) == (type in joined), type
        assert own(type, pid) != own(type), type
    assert box.exec("stat", "-L", "-c", "%i", "/proc/self/ns/user").out == f"{own('user', pod)}\n"
    box.kill("KILL")
    box.wait_for("stopped")


def test_network_and_kernel_parameters(box: Box) -> None:
    box.capabilities("CAP_NET_RAW")
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4242", "net.ipv4.ping_group_range": "0 9"}
    out = box.run(
        "cat /sys/class/net/lo/flags /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax;"
        "cat /proc/sys/net/ipv4/ping_group_range; ping -c 1 -w 5 127.0.0.1 > /dev/null && echo reached"
    ).out.split()
    assert int(out[0], 16) & 1
    assert out[1:] == ["1", "4242", "0", "9", "reached"]


def test_capabilities_count_in_the_namespace_alone(box: Box) -> None:
    """All of them can be had, also those that the runtime lacks; none is good for anything outside."""
    for kind in ("bounding", "effective", "permitted"):
        box.process["capabilities"][kind] = ["CAP_SYS_ADMIN", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_MKNOD"]
    box.process["noNewPrivileges"] = False
    out = box.run(
        "grep -E 'Cap(Eff|Prm|Bnd)' /proc/self/status; mount -t tmpfs x /mnt && echo mounted;"
        "mknod /tmp/sda b 8 0 2> /dev/null || echo node"
    ).out.split()
    mask = f"{1 << 21 | 1 << 24 | 1 << 25 | 1 << 27:016x}"
    assert out[1:6:2] == [mask] * 3
    assert out[6:] == ["mounted", "node"]


@peer_fails("runc", "1.1.5 gives pipes away only where it has made them itself")
def test_the_process_owns_its_streams(box: Box) -> None:
    """A pipe of the runtime's user becomes the container's user's, who may open /dev/stdout then."""
    box.process["user"] = {"uid": 1000, "gid": 1000}
    read, write = os.pipe()
    try:
        box.sh("echo through > /dev/stdout")
        box.write()
        popen = box.runtime.popen("run", "--bundle", box.path, box.id, stdout=write, stderr=subprocess.DEVNULL)
        os.close(write)
        write = -1
        with open(read, "rb", closefd=False) as pipe:
            assert pipe.read() == b"through\n"
        assert popen.wait(20) == 0
        assert os.fstat(read).st_uid == HOST + 1000
    finally:
        os.close(read)
        if write >= 0:
            os.close(write)


@pytest.mark.parametrize("uid", [0, 1000])
def test_the_terminal_belongs_to_the_user(box: Box, place: Path, uid: int) -> None:
    box.process["terminal"] = True
    box.process["user"] = {"uid": uid, "gid": uid}
    box.sh("stat -c %u $(tty) /dev/console; tty; echo > /dev/tty; echo end; read x")
    with ConsoleSocket(place / "console") as console:
        box.create("--console-socket", console.path)
        console.receive()
        box.start()
        assert console.read_until(b"end").split() == [str(uid).encode()] * 2 + [b"/dev/pts/0", b"end"]
        pid_file = place / "exec.pid"
        with ConsoleSocket(place / "second") as second:
            flags = ("--tty", "--detach", "--user", f"{uid}:{uid}", "--pid-file", str(pid_file))
            script = "tty; stat -c %u $(tty); echo end; read x"
            box.exec("sh", "-c", script, flags=(*flags, "--console-socket", str(second.path)))
            second.receive()
            assert second.read_until(b"end").split() == [b"/dev/pts/1", str(uid).encode(), b"end"]
            second.write(b"\n")
            assert box.exit_status(int(pid_file.read_text())) == 0
        box.delete("--force")


def test_an_id_that_is_not_mapped_is_named(box: Box) -> None:
    box.process["user"] = {"uid": 70000, "gid": 0}
    result = box.create(check=False)
    assert result.rc == 1
    box.process["user"] = {"uid": 0, "gid": 0, "additionalGids": [70000]}
    assert box.create(check=False).rc == 1
    if box.runtime.name == "ocirt":
        assert "process.user.uid: 70000: is not mapped in the user namespace" in result.err


def test_groups_and_devices(box: Box) -> None:
    box.process["user"] = {"uid": 1000, "gid": 1000, "additionalGids": [5, 2000]}
    box.linux["devices"] = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o660, "uid": 0, "gid": 2000}
    ]
    out = box.run("id -G; stat -c '%t:%T %a %g' /dev/fuse; cat /proc/self/setgroups").out.splitlines()
    assert out[0] == "1000 5 2000"
    assert out[2] == "allow"
    if box.runtime.name == "ocirt":  # the others bind the host's node as it is
        assert out[1] == "a:e5 660 2000"


MAPPED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("idmap", {}, ["0", "1000"]),
    ("idmap", {"uidMappings": [{"containerID": 0, "hostID": HOST + 7, "size": 1001}]}, ["7", "1007"]),
    ("idmap=uids=0-100007-1001;gids=0-100007-1001", {}, ["7", "1007"]),
    ("idmap=uids=@0-7-1001;gids=@0-7-1001", {}, ["7", "1007"]),
    ("ridmap=uids=@0-7-1001;gids=@0-7-1001", {}, ["7", "1007"]),
]


@pytest.mark.parametrize(
    ("option", "more", "expected"),
    [
        pytest.param(
            o, m, e, id=f"{o} {'own' * bool(m)}", marks=fails("crun" * o.startswith("ridmap"), "1.8.1 has no ridmap")
        )
        for o, m, e in MAPPED
    ],
)
@peer_fails("runc", "1.1.5 has no mapped mounts")
def test_mounts_with_mapped_ids(box: Box, place: Path, option: str, more: dict[str, Any], expected: list[str]) -> None:
    volume = place / "volume"
    volume.mkdir()
    for uid in (0, 1000):
        (volume / f"of{uid}").touch()
        os.chown(volume / f"of{uid}", uid, uid)
    entry = box.bind(volume, "/mnt", "rbind", option)
    entry.update(more)
    if more:
        entry["gidMappings"] = more["uidMappings"]
    assert box.run("stat -c %u /mnt/of0 /mnt/of1000").out.split() == expected


@NO_PROC[0]
@NO_PROC[1]
def test_no_process_of_the_container_may_look_into_init(box: Box, helpers: Helpers) -> None:
    """Until its program runs, init holds the host's interpreter: it is nobody's in the container (CVE-2016-9962)."""
    del helpers
    choose(box, {"network", "ipc", "uts"})
    box.create()
    pid = box.pid
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0
    inside = ["nsenter", f"--user=/proc/{pid}/ns/user", "--setuid=0", "--setgid=0"]
    for file in ("exe", "root", "cwd", "fd/0"):
        looked = subprocess.run(
            [*inside, "readlink", f"/proc/{pid}/{file}"], capture_output=True, text=True, check=False
        )
        assert looked.returncode == 1, file
        assert looked.stdout == ""
