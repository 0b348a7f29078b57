"""Namespaces: new, joined by path, or the runtime's own, in any combination (config-linux.md, Namespaces)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

from tests.harness.box import Box, end_process
from tests.harness.peers import peer_fails

FILES = {
    "pid": "pid", "network": "net", "mount": "mnt", "ipc": "ipc", "uts": "uts", "user": "user", "cgroup": "cgroup",
    "time": "time",
}  # fmt: skip
FLAGS = {"pid": "--pid", "network": "--net", "ipc": "--ipc", "uts": "--uts", "cgroup": "--cgroup"}

NO_TIME = peer_fails("runc", "1.1.5 has no time namespaces"), peer_fails("crun", "1.8.1 has no time namespaces")


def own(type: str, pid: int | str = "self") -> int:
    return os.stat(f"/proc/{pid}/ns/{FILES[type]}").st_ino


@pytest.fixture
def holder() -> Iterator[int]:
    """A process in namespaces of its own, network, ipc, uts, pid and cgroup."""
    process = subprocess.Popen(
        ["unshare", "--fork", "--kill-child", *FLAGS.values(), "sleep", "1000"], stdout=subprocess.DEVNULL
    )
    below: list[int] = []
    while not below:
        text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        below = [int(p) for p in text.split()]
    yield below[0]
    end_process(below[0])
    process.kill()
    process.wait()


def test_default_namespaces_are_new(box: Box) -> None:
    box.namespace("cgroup")
    box.create()
    pid = box.pid
    for type in ("pid", "network", "ipc", "uts", "mount", "cgroup"):
        assert own(type, pid) != own(type), type
    assert own("user", pid) == own("user")


@pytest.mark.parametrize("type", ["network", "ipc", "uts", "pid", "cgroup"])
def test_a_namespace_that_is_not_listed_is_the_runtimes(box: Box, type: str) -> None:
    box.namespace(type, remove=True)
    if type == "uts":
        del box.config["hostname"]
    if type == "network":  # sysfs can't be mounted twice for the same network namespace in some kernels' rules
        box.config["mounts"] = [m for m in box.mounts if m["type"] != "sysfs"]
    box.create()
    assert own(type, box.pid) == own(type)


@pytest.mark.parametrize("joined", [("network",), ("ipc",), ("uts",), ("pid",), ("cgroup",), ("network", "ipc", "uts"),
                                    ("pid", "network")])  # fmt: skip
def test_join_by_path(box: Box, holder: int, joined: tuple[str, ...]) -> None:
    for type in joined:
        box.namespace(type, f"/proc/{holder}/ns/{FILES[type]}")
    if "uts" in joined:
        del box.config["hostname"]
    box.create_and_start("sleep 1000")
    pid = box.pid
    for type in ("network", "ipc", "uts", "pid", "cgroup"):
        if type in joined:
            assert own(type, pid) == own(type, holder), type
        elif type != "cgroup":
            assert own(type, pid) not in (own(type), own(type, holder)), type
    assert box.status == "running"
    box.kill("KILL")
    box.wait_for("stopped")


def test_init_is_pid_1_of_a_new_pid_namespace(box: Box) -> None:
    result = box.run("echo $$; ls -d /proc/[0-9]*")
    assert result.out.split()[0] == "1"
    assert set(result.out.split()[1:]) <= {"/proc/1", "/proc/2"}


def test_a_path_of_the_wrong_type_is_an_error(box: Box) -> None:
    box.namespace("network", "/proc/self/ns/ipc")
    assert box.create(check=False).rc == 1


def test_a_path_that_is_no_namespace_is_an_error(box: Box) -> None:
    box.namespace("network", "/etc/passwd")
    assert box.create(check=False).rc == 1
    box.namespace("network", box.path / "missing")
    assert box.create(check=False).rc == 1


def test_loopback_is_up(box: Box) -> None:
    box.capabilities("CAP_NET_RAW")
    result = box.run("cat /sys/class/net/lo/flags; ping -c 1 -w 5 127.0.0.1 > /dev/null && echo reached")
    assert int(result.out.split()[0], 16) & 1
    assert result.out.split()[1:] == ["reached"]


@pytest.mark.parametrize(
    "wanted",
    [set(c) for n in (0, 1, 2, 5) for c in combinations(("pid", "network", "ipc", "uts", "cgroup"), n)],
    ids=lambda wanted: "+".join(sorted(wanted)) or "none",
)
def test_combinations(box: Box, wanted: set[str]) -> None:
    for type in ("pid", "network", "ipc", "uts", "cgroup"):
        box.namespace(type, remove=True)
        if type in wanted:
            box.namespace(type)
    del box.config["hostname"]
    box.config["mounts"] = [m for m in box.mounts if m["type"] not in ("sysfs", "mqueue")]
    box.create()
    pid = box.pid
    for type in ("pid", "network", "ipc", "uts", "cgroup"):
        assert (own(type, pid) != own(type)) == (type in wanted), type


@peer_fails("runc", "leaves a bind of the rootfs on itself mounted on the host")
def test_without_a_mount_namespace_the_host_keeps_its_root(box: Box) -> None:
    box.namespace("mount", remove=True)
    box.config["mounts"] = []
    del box.linux["maskedPaths"], box.linux["readonlyPaths"]
    before = os.stat("/")
    mounts = Path("/proc/self/mountinfo").read_text()
    result = box.run("cat /etc/passwd", check=False)
    assert (os.stat("/").st_dev, os.stat("/").st_ino) == (before.st_dev, before.st_ino)
    assert result.rc == 0
    assert "A user" in result.out
    assert Path("/proc/self/mountinfo").read_text() == mounts, "mounts, or their propagation, were changed"


def test_cgroup_namespace_hides_the_path(box: Box) -> None:
    box.namespace("cgroup")
    out = box.run("cat /proc/self/cgroup").out
    assert box.id not in out
    assert all(line.endswith(":/") for line in out.splitlines() if "unified" not in line)


@pytest.mark.parametrize("clock", ["monotonic", "boottime"])
@NO_TIME[0]
@NO_TIME[1]
def test_time_offsets(box: Box, clock: str) -> None:
    box.namespace("time")
    box.linux["timeOffsets"] = {clock: {"secs": 7777, "nanosecs": 5}}
    box.create_and_start("cat /proc/self/timens_offsets; cat /proc/uptime; sleep 1000")
    box.wait_for_output("boottime")
    assert own("time", box.pid) != own("time")
    lines = {line.split()[0]: line.split()[1:] for line in box.out.splitlines()}
    assert lines[clock] == ["7777", "5"]
    if clock == "boottime":
        uptime = float(box.out.splitlines()[-1].split()[0])
        assert uptime > float(Path("/proc/uptime").read_text().split()[0]) + 7000


@NO_TIME[0]
@NO_TIME[1]
def test_join_a_time_namespace(box: Box) -> None:
    process = subprocess.Popen(["unshare", "--fork", "--kill-child", "--time", "--boottime", "5000", "sleep", "1000"])
    try:
        below: list[str] = []
        while not below:
            below = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        box.namespace("time", f"/proc/{below[0]}/ns/time")
        box.create()
        assert own("time", box.pid) == own("time", below[0])
    finally:
        end_process(int(below[0]))
        process.kill()
        process.wait()


def test_user_namespace(box: Box) -> None:
    box.add_user_namespace(host=100000, size=65536)
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.create_and_start("cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g; sleep 1000")
    box.wait_for_output("1000\n1000")
    lines = [line.split() for line in box.out.splitlines()]
    assert lines == [["0", "100000", "65536"], ["0", "100000", "65536"], ["1000"], ["1000"]]
    status = Path(f"/proc/{box.pid}/status").read_text()
    assert "Uid:\t101000\t101000\t101000\t101000" in status


def test_user_namespace_root_has_default_devices(box: Box) -> None:
    box.add_user_namespace()
    out = box.run(
        "for d in null zero full random urandom tty; do test -c /dev/$d && echo $d; done; echo x > /dev/null"
    ).out
    assert out.split() == ["null", "zero", "full", "random", "urandom", "tty"]


@peer_fails("runc", "1.1.5 wants mappings for a user namespace that is joined")
def test_join_a_user_namespace(box: Box) -> None:
    process = subprocess.Popen(
        ["unshare", "--user", "--fork", "--kill-child", "sleep", "1000"], stdout=subprocess.DEVNULL
    )
    try:
        below: list[str] = []
        while not below:
            below = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for file in ("uid_map", "gid_map"):
            Path(f"/proc/{below[0]}/{file}").write_text("0 100000 65536\n")
        box.add_user_namespace()
        box.namespace("user", f"/proc/{below[0]}/ns/user")
        del box.linux["uidMappings"], box.linux["gidMappings"]
        box.create()
        assert own("user", box.pid) == own("user", below[0])
    finally:
        end_process(int(below[0]))
        process.kill()
        process.wait()


def test_no_process_between_the_runtime_and_init_is_left(box: Box) -> None:
    box.create()
    pid = box.pid
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"PPid:\t{os.getpid()}\n" in status
