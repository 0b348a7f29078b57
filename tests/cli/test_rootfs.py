"""The root filesystem: devices, masked and read-only paths, propagation, how it is entered."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_mounts import PROPAGATION, parse
from tests.harness.box import Box
from tests.harness.peers import fails, peer_fails

DEFAULT_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
DEFAULT_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


def test_default_devices(box: Box) -> None:
    box.create()
    dev = Path(f"/proc/{box.pid}/root/dev")
    for name, numbers in DEFAULT_DEVICES.items():
        status = (dev / name).lstat()
        assert stat.S_ISCHR(status.st_mode), name
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == numbers, name
        assert stat.S_IMODE(status.st_mode) == 0o666, name
        assert (status.st_uid, status.st_gid) == (0, 0), name
    for name, target in DEFAULT_LINKS.items():
        assert os.readlink(dev / name).removeprefix("/dev/") == target, name


def test_default_devices_work(box: Box) -> None:
    script = "echo x > /dev/null; head -c 4 /dev/zero | wc -c; echo x > /dev/full; head -c 2 /dev/urandom | wc -c"
    result = box.run(script)
    assert result.out.split() == ["4", "2"]
    assert "No space left" in result.err


def test_devices_without_a_mount_on_dev(box: Box) -> None:
    """/dev of the image itself gets them too."""
    box.config["mounts"] = [m for m in box.mounts if not m["destination"].startswith("/dev")]
    assert box.run("test -c /dev/null && test -L /dev/fd && echo yes").out == "yes\n"


def device(path: str, type: str = "c", major: int = 1, minor: int = 3, **more: int) -> dict[str, Any]:
    return {"path": path, "type": type, "major": major, "minor": minor, **more}


def test_linux_devices(box: Box) -> None:
    box.linux["devices"] = [
        device("/dev/mine", "c", 1, 5, fileMode=0o640, uid=12, gid=34),
        device("/dev/deep/down/mine", "c", 1, 3),
        device("/srv/anywhere", "b", 7, 0, fileMode=0o600),
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o622},
        device("/dev/unbuffered", "u", 1, 9),
    ]
    box.linux["resources"]["devices"].append({"allow": True, "type": "c", "major": 1, "access": "rwm"})
    box.create()
    root = Path(f"/proc/{box.pid}/root")
    mine = (root / "dev/mine").lstat()
    assert (stat.S_ISCHR(mine.st_mode), mine.st_rdev) == (True, os.makedev(1, 5))
    assert (stat.S_IMODE(mine.st_mode), mine.st_uid, mine.st_gid) == (0o640, 12, 34)
    deep = (root / "dev/deep/down/mine").lstat()
    assert (stat.S_IMODE(deep.st_mode), deep.st_uid, deep.st_gid) == (0o666, 0, 0)
    assert stat.S_ISBLK((root / "srv/anywhere").lstat().st_mode)
    assert stat.S_ISFIFO((root / "dev/fifo").lstat().st_mode)
    assert stat.S_IMODE((root / "dev/fifo").lstat().st_mode) == 0o622
    assert (root / "dev/unbuffered").lstat().st_rdev == os.makedev(1, 9)


def test_a_device_that_exists_and_fits_is_kept(box: Box) -> None:
    """config-linux.md: the file may exist already if it is the same device."""
    (box.rootfs / "srv").mkdir()
    os.mknod(box.rootfs / "srv/zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    box.linux["devices"] = [device("/srv/zero", "c", 1, 5)]
    assert box.run("head -c 3 /srv/zero | wc -c", check=False).out == "3\n"


@pytest.mark.parametrize(
    "existing",
    [
        pytest.param("file", marks=fails("runc crun", "config-linux.md, Devices: MUST generate an error")),
        pytest.param("other device", marks=fails("runc crun", "config-linux.md, Devices: MUST generate an error")),
        pytest.param("directory", marks=fails("runc crun", "config-linux.md, Devices: MUST generate an error")),
    ],
)
def test_a_device_whose_path_is_taken_by_something_else_is_an_error(box: Box, existing: str) -> None:
    path = box.rootfs / "srv/zero"
    path.parent.mkdir()
    if existing == "file":
        path.write_text("x")
    elif existing == "directory":
        path.mkdir()
    else:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    box.linux["devices"] = [device("/srv/zero", "c", 1, 5)]
    result = box.create(check=False)
    assert result.rc == 1
    assert "/srv/zero" in result.err


def test_masked_files_and_directories_read_empty(box: Box) -> None:
    (box.rootfs / "secret").write_text("secret")
    (box.rootfs / "secrets").mkdir()
    (box.rootfs / "secrets/file").write_text("secret")
    box.linux["maskedPaths"] = ["/secret", "/secrets", "/not/there", "/proc/kcore"]
    result = box.run("cat /secret; ls -A /secrets; touch /secrets/x; echo new > /secret; cat /secret")
    assert result.out == ""
    assert "Read-only" in result.err
    assert (box.rootfs / "secret").read_text() == "secret"
    assert not (box.rootfs / "not").exists()


def test_readonly_paths(box: Box) -> None:
    (box.rootfs / "fixed").mkdir()
    (box.rootfs / "fixed/file").write_text("x")
    (box.rootfs / "fixed-file").write_text("y")
    box.linux["readonlyPaths"] = ["/fixed", "/fixed-file", "/not/there", "/proc/sys"]
    script = "for f in /fixed/file /fixed/new /fixed-file /proc/sys/kernel/domainname; do echo z > $f && echo $f; done"
    assert box.run(script, check=False).out == ""
    assert (box.rootfs / "fixed/file").read_text() == "x"
    assert not (box.rootfs / "fixed/new").exists()


@peer_fails("crun", "1.8.1 remounts without them")
def test_readonly_path_keeps_the_flags_of_its_mount(box: Box) -> None:
    box.mount("/mnt", "tmpfs", options=["nosuid", "nodev", "noexec"])
    box.linux["readonlyPaths"] = ["/mnt"]
    infos = [line for line in box.run("cat /proc/self/mountinfo").out.splitlines() if line.split()[4] == "/mnt"]
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(infos[-1].split()[5].split(","))


def test_masked_path_that_is_a_symlink_masks_what_it_leads_to_inside(box: Box) -> None:
    (box.rootfs / "etc/target").write_text("secret")
    (box.rootfs / "link").symlink_to("/etc/target")
    box.linux["maskedPaths"] = ["/link"]
    result = box.run("cat /link", check=False)
    assert "secret" not in result.out


def test_readonly_root(box: Box) -> None:
    box.config["root"]["readonly"] = True
    script = "echo x > /file; echo $?; echo x > /dev/shm/file; echo $?; grep ' / / ' /proc/self/mountinfo | wc -l"
    out = box.run(script).out.split()
    assert out[0] == "1"
    assert out[1] == "0"
    assert not (box.rootfs / "file").exists()


def test_readonly_root_still_gets_its_mount_points(box: Box) -> None:
    box.config["root"]["readonly"] = True
    box.mount("/made/for/it", "tmpfs")
    assert box.run("echo x > /made/for/it/file && echo ok").out == "ok\n"


@pytest.mark.parametrize(
    ("wanted", "fields"),
    [
        ("private", set()),
        ("rprivate", set()),
        pytest.param("slave", {"master"}, marks=peer_fails("crun", "the root becomes private")),
        pytest.param("rslave", {"master"}, marks=peer_fails("crun", "the root becomes private")),
        pytest.param("shared", {"shared"}, marks=peer_fails("runc", "1.1.5: the root stays private")),
        pytest.param("rshared", {"shared"}, marks=peer_fails("runc", "1.1.5: the root stays private")),
        pytest.param("unbindable", {"unbindable"}, marks=peer_fails("runc", "can't bind the root any more then")),
        pytest.param(
            "runbindable", {"unbindable"}, marks=fails("runc crun", "can't bind the root or /dev/null any more then")
        ),
    ],
)
def test_rootfs_propagation(box: Box, wanted: str, fields: set[str]) -> None:
    box.linux["rootfsPropagation"] = wanted
    seen = parse(box.run("cat /proc/self/mountinfo").out)["/"][PROPAGATION]
    assert fields <= seen
    if not fields:
        assert not seen


@pytest.mark.parametrize("wanted", ["rslave", "rprivate"])
def test_propagation_never_reaches_the_host(box: Box, wanted: str) -> None:
    box.capabilities("CAP_SYS_ADMIN")
    box.linux["rootfsPropagation"] = wanted
    before = Path("/proc/self/mountinfo").read_text()
    box.create_and_start("mount -t tmpfs none /mnt && echo up; sleep 1000")
    box.wait_for_output("up")
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.mark.parametrize("flags", [(), ("--no-pivot",)], ids=["pivot", "no-pivot"])
def test_the_hosts_tree_is_out_of_reach(box: Box, flags: tuple[str, ...]) -> None:
    marker = box.directory / "marker"
    marker.write_text("host")
    script = f"cd ../../..; pwd; cat .{marker} {marker}; ls -d /etc/*; cat /proc/self/mountinfo"
    result = box.run(script, *flags)
    assert result.out.startswith("/\n/etc/group\n/etc/passwd\n")
    infos = parse("\n".join(line for line in result.out.splitlines() if " - " in line))
    assert {point.split("/")[1] for point in infos} == {"", "proc", "dev", "sys"}


def test_no_pivot_can_not_be_left_by_chroot(box: Box) -> None:
    """Where the host's root would stay below, a second chroot with an open directory would reach it."""
    box.capabilities("CAP_SYS_CHROOT")
    marker = box.directory / "marker"
    marker.write_text("host")
    result = box.run(f"mkdir /jail; chroot /jail /bin/true; cat {marker}; ls /proc/1/root/", "--no-pivot", check=False)
    assert "host" not in result.out


def test_root_path_absolute_and_through_a_symlink(box: Box) -> None:
    box.config["root"]["path"] = str(box.rootfs)
    assert box.run("echo absolute").out == "absolute\n"


def test_the_rootfs_may_be_a_mount_point(box: Box, place: Path) -> None:
    import subprocess

    subprocess.run(["mount", "--bind", box.rootfs, box.rootfs], check=True)
    try:
        assert box.run("echo ok").out == "ok\n"
    finally:
        subprocess.run(["umount", box.rootfs], check=True)


def test_two_containers_of_one_rootfs(box: Box, make_box: Any) -> None:
    other = make_box()
    other.config["root"]["path"] = str(box.rootfs)
    box.create_and_start("sleep 1000")
    assert other.run("echo shared").out == "shared\n"
    assert box.status == "running"


def test_devices_are_made_while_the_device_rules_are_written(box: Box) -> None:
    """On v1 the list denies everything for a moment; it must be complete before init is in it."""
    rules = [{"allow": True, "type": "c", "major": 300 + n, "minor": n, "access": "rw"} for n in range(150)]
    box.linux["resources"]["devices"] += rules
    box.linux["devices"] = [device(f"/many/{n}", "c", 1, 3) for n in range(60)]
    box.args("/bin/true")
    for _ in range(12):
        box.run()
        for made in (box.rootfs / "many").iterdir():
            made.unlink()
