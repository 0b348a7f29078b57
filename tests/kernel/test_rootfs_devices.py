"""Devices, links and the console: config-linux.md, Devices; runtime-linux.md."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ocirt import rootfs
from ocirt.process.plan import Plan
from tests.kernel.rootfs_lab import DEFAULT_MOUNTS, Failed, Lab, mounts_by_point

PROC, DEV, DEVPTS = DEFAULT_MOUNTS[:3]

DEFAULT = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}


def node(path: str) -> list[Any]:
    """[type, major, minor, mode, uid, gid]"""
    found = os.lstat(path)
    kind = {stat.S_IFCHR: "c", stat.S_IFBLK: "b", stat.S_IFIFO: "p", stat.S_IFREG: "-"}[stat.S_IFMT(found.st_mode)]
    device = (os.major(found.st_rdev), os.minor(found.st_rdev))
    return [kind, *device, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid]


def device(path: str, kind: str = "c", major: int = 10, minor: int = 229, **more: Any) -> dict[str, Any]:
    return {"path": path, "type": kind, "major": major, "minor": minor, **more}


def test_default_devices(lab: Lab) -> None:
    found = lab.run({"mounts": [PROC, DEV]}, lambda _: {path: node(path) for path in DEFAULT})
    assert found == {path: ["c", *numbers, 0o666, 0, 0] for path, numbers in DEFAULT.items()}


def test_default_devices_without_a_mount_on_dev(lab: Lab) -> None:
    """They go to the image's /dev, and a second container of the same tree takes them as they are."""
    for _ in range(2):
        assert lab.run({}, lambda _: node("/dev/full")) == ["c", 1, 7, 0o666, 0, 0]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_devices_of_every_type_anywhere(lab: Lab, umask: int) -> None:
    devices = [
        device("/dev/fuse", fileMode=0o600, uid=11, gid=22),
        device("/dev/u", "u", 1, 5),
        device("/dev/block/disk", "b", 7, 200, fileMode=0o640),
        device("/somewhere/else/fifo", "p", 0, 0, fileMode=0o622, gid=5),
        {"path": "/plain/fifo", "type": "p"},
        device("/dev/null", "c", 1, 3, fileMode=0o640, gid=7),
    ]

    def probe(_: Plan) -> list[Any]:
        return [node(d["path"]) for d in devices]

    config = {"mounts": [PROC, DEV], "linux": {"devices": devices}}
    assert lab.run(config, probe, setup=lambda: os.umask(umask)) == [
        ["c", 10, 229, 0o600, 11, 22],
        ["c", 1, 5, 0o666, 0, 0],
        ["b", 7, 200, 0o640, 0, 0],
        ["p", 0, 0, 0o622, 0, 5],
        ["p", 0, 0, 0o666, 0, 0],
        ["c", 1, 3, 0o640, 0, 7],
    ]


def test_the_umask_of_the_caller_is_left_as_it_was(lab: Lab) -> None:
    assert lab.run({"mounts": DEFAULT_MOUNTS}, lambda _: os.umask(0), setup=lambda: os.umask(0o037)) == 0o037


def test_mode_of_a_directory_with_a_group_bit(lab: Lab) -> None:
    """A setgid directory would give its group to what is made in it."""
    (lab.rootfs / "sgid").mkdir()
    os.chown(lab.rootfs / "sgid", 0, 77)
    (lab.rootfs / "sgid").chmod(0o2775)
    config = {"linux": {"devices": [device("/sgid/fuse", gid=0)]}}
    assert lab.run(config, lambda _: node("/sgid/fuse"))[5] == 0


@pytest.mark.parametrize("wrong", ["file", "other device", "link", "directory"])
def test_something_else_at_the_path_of_a_device_is_an_error(lab: Lab, wrong: str) -> None:
    path = lab.rootfs / "dev" / "fuse"
    if wrong == "file":
        path.write_text("x")
    elif wrong == "other device":
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(10, 228))
    elif wrong == "link":
        path.symlink_to("null")
    else:
        path.mkdir()
    with pytest.raises(Failed, match=r"/dev/fuse exists and is not the device c 10:229"):
        lab.run({"linux": {"devices": [device("/dev/fuse")]}})


def test_an_existing_device_that_matches_is_left_alone(lab: Lab) -> None:
    os.mknod(lab.rootfs / "dev" / "fuse", stat.S_IFCHR | 0o600, os.makedev(10, 229))
    os.chown(lab.rootfs / "dev" / "fuse", 8, 9)
    config = {"linux": {"devices": [device("/dev/fuse")]}}
    assert lab.run(config, lambda _: node("/dev/fuse")) == ["c", 10, 229, 0o600, 8, 9]


def test_nothing_is_made_in_the_hosts_dev(lab: Lab) -> None:
    hosts = lab.bundle / "hostdev"
    hosts.mkdir()
    mount = {"destination": "/dev/", "source": str(hosts), "options": ["bind"]}
    config = {"mounts": [PROC, mount], "linux": {"devices": [device("/dev/fuse"), device("/opt/fuse")]}}
    assert lab.run(config, lambda _: node("/opt/fuse"))[:3] == ["c", 10, 229]
    assert os.listdir(hosts) == []


LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/ptmx": "pts/ptmx",
}


def test_links(lab: Lab) -> None:
    def probe(_: Plan) -> dict[str, str]:
        return {path: os.readlink(path) for path in LINKS} | {"core": str(os.path.lexists("/dev/core"))}

    core = str(os.path.exists("/proc/kcore"))
    assert lab.run({"mounts": [PROC, DEV]}, probe) == LINKS | {"core": core}


def test_links_only_if_there_is_a_proc(lab: Lab) -> None:
    """runtime-linux.md: the links are made if the source exists after the mounts."""
    found = lab.run({"mounts": [DEV]}, lambda _: sorted(os.listdir("/dev")))
    assert not {"fd", "stdin", "stdout", "stderr", "core"} & set(found)
    assert "ptmx" in found


def test_links_of_the_image_stay_but_ptmx_is_the_containers(lab: Lab) -> None:
    dev = lab.rootfs / "dev"
    (dev / "stdin").symlink_to("/else")
    os.mknod(dev / "ptmx", stat.S_IFCHR | 0o666, os.makedev(5, 2))
    found = lab.run({"mounts": [PROC, DEVPTS]}, lambda _: [os.readlink("/dev/stdin"), os.readlink("/dev/ptmx")])
    assert found == ["/else", "pts/ptmx"]


# --- the console


def console(plan: Plan) -> list[Any]:
    master = os.open("/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    import fcntl

    fcntl.ioctl(master, 0x40045431, b"\0\0\0\0")
    slave = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY)
    rootfs.mount_console(plan, slave)
    same = os.fstat(slave).st_rdev == os.stat("/dev/console").st_rdev
    os.close(slave)
    os.close(master)
    return [same, mounts_by_point()["/dev/console"]["type"]]


STEPS_BEFORE_SEAL = (*rootfs.MOUNTS, *rootfs.ENTER_ROOT)


def test_console(lab: Lab) -> None:
    config = {"mounts": [PROC, DEV, DEVPTS]}
    assert lab.run(config, console, steps=STEPS_BEFORE_SEAL) == [True, "devpts"]


def test_console_on_an_existing_file(lab: Lab) -> None:
    (lab.rootfs / "dev" / "console").write_text("")
    assert lab.run({"mounts": [PROC, DEVPTS]}, console, steps=STEPS_BEFORE_SEAL) == [True, "devpts"]


@pytest.mark.parametrize("wrong", ["link", "dangling link", "directory"])
def test_console_is_not_bound_through_a_link(lab: Lab, wrong: str) -> None:
    """CVE-2025-52565."""
    target = lab.rootfs / "etc" / "target"
    path = lab.rootfs / "dev" / "console"
    if wrong == "link":
        target.write_text("kept")
        path.symlink_to("/etc/target")
    elif wrong == "dangling link":
        path.symlink_to("/etc/target")
    else:
        path.mkdir()
    with pytest.raises(Failed, match="neither a file nor a character device"):
        lab.run({"mounts": [PROC, DEVPTS]}, console, steps=STEPS_BEFORE_SEAL)
    assert (target.read_text() == "kept") if wrong == "link" else not target.exists()


# --- the image's /dev


@pytest.mark.parametrize("link", ["../../outside", "/../../outside", "ABSOLUTE"])
def test_dev_that_is_a_link_leads_nowhere_outside(lab: Lab, link: str) -> None:
    """CVE-2026-41579: devices and links went to wherever the image's /dev pointed."""
    outside = lab.bundle.parent / "outside"
    outside.mkdir()
    (lab.bundle / "outside").mkdir()
    (lab.rootfs / "dev").rmdir()
    (lab.rootfs / "dev").symlink_to(str(outside) if link == "ABSOLUTE" else link)
    config = {"mounts": [PROC], "linux": {"devices": [device("/dev/fuse")]}}
    try:
        lab.run(config, lambda _: None)
    finally:
        assert os.listdir(outside) == []
        assert os.listdir(lab.bundle / "outside") == []
    inside = Path(str(lab.rootfs) + (str(outside) if link == "ABSOLUTE" else "/outside"))
    assert {"null", "fuse", "ptmx", "fd"} <= set(os.listdir(inside))
