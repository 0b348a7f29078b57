"""Images and volumes whose files lead somewhere else: nothing outside is touched, nothing stays unmasked."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.helpers import Helpers
from tests.harness.peers import peer_fails
from tests.harness.terminal import ConsoleSocket


@pytest.fixture
def outside(box: Box) -> Path:
    """A directory of the host that no container may touch."""
    path = box.directory / "outside"
    path.mkdir()
    (path / "file").write_text("host")
    return path


def untouched(outside: Path) -> None:
    assert [p.name for p in outside.iterdir()] == ["file"]
    assert (outside / "file").read_text() == "host"


def up(path: Path) -> str:
    """A relative link from anywhere in the rootfs to a path of the host."""
    return "../" * 20 + str(path).lstrip("/")


@pytest.mark.parametrize("name", ["proc", "sys"])
@pytest.mark.parametrize("target", ["absolute", "relative", "inside"])
def test_proc_and_sys_must_be_real_directories(box: Box, outside: Path, name: str, target: str) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2025-54867: masks would cover something else."""
    (box.rootfs / name).rmdir()
    (box.rootfs / "tmp/decoy").mkdir()
    to = {"absolute": str(outside), "relative": up(outside), "inside": "tmp/decoy"}[target]
    (box.rootfs / name).symlink_to(to)
    result = box.run(f"cat /proc/self/mountinfo; ls /{name}/", check=False)
    assert result.rc != 0, "a symlink was accepted"
    untouched(outside)


@pytest.mark.parametrize("target", ["absolute", "relative"])
@peer_fails("runc", "CVE-2026-41579 is open in 1.1.5")
@peer_fails("crun", "CVE-2026-47766 is open in 1.8.1")
def test_dev_that_is_a_symlink(box: Box, outside: Path, target: str) -> None:
    """CVE-2026-41579, CVE-2026-47766: device nodes and links would be made on the host."""
    box.config["mounts"] = [m for m in box.mounts if not m["destination"].startswith("/dev")]
    (box.rootfs / "dev").rmdir()
    (box.rootfs / "dev").symlink_to(str(outside) if target == "absolute" else up(outside))
    box.run("true", check=False)
    untouched(outside)


@peer_fails("runc", "CVE-2026-41579 is open in 1.1.5")
def test_dev_with_a_mount_that_is_a_symlink(box: Box, outside: Path) -> None:
    (box.rootfs / "dev").rmdir()
    (box.rootfs / "dev").symlink_to(up(outside))
    box.run("true", check=False)
    untouched(outside)


@pytest.mark.parametrize("name", ["null", "zero", "ptmx", "fd", "console", "tty"])
def test_default_devices_that_are_symlinks_in_the_image(box: Box, outside: Path, name: str) -> None:
    box.config["mounts"] = [m for m in box.mounts if not m["destination"].startswith("/dev")]
    (box.rootfs / "dev" / name).symlink_to(up(outside / "file"))
    box.run("true", check=False)
    untouched(outside)
    assert stat.S_ISREG((outside / "file").lstat().st_mode)
    assert (outside / "file").stat().st_mode & 0o777 == 0o644


def test_linux_devices_through_a_symlink(box: Box, outside: Path) -> None:
    (box.rootfs / "link").symlink_to(up(outside))
    box.linux["devices"] = [{"path": "/link/made", "type": "c", "major": 1, "minor": 3}]
    box.run("true", check=False)
    untouched(outside)


def test_masked_paths_where_dev_null_leads_elsewhere(box: Box, outside: Path) -> None:
    """CVE-2025-31133: the image's /dev/null would be bound over /proc/kcore, writable."""
    box.config["mounts"] = [m for m in box.mounts if not m["destination"].startswith("/dev")]
    (box.rootfs / "dev/null").symlink_to(up(outside / "file"))
    (box.rootfs / "secret").write_text("secret")
    box.linux["maskedPaths"] = ["/proc/kcore", "/secret"]
    result = box.run("cat /secret; echo overwritten > /proc/kcore; cat /proc/kcore | head -c 10", check=False)
    assert "secret" not in result.out
    assert "host" not in result.out
    untouched(outside)


def test_masked_and_readonly_paths_through_symlinks(box: Box, outside: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    (box.rootfs / "link").symlink_to(up(outside / "file"))
    box.linux["maskedPaths"] = ["/link"]
    box.linux["readonlyPaths"] = ["/link"]
    box.run("true", check=False)
    assert Path("/proc/self/mountinfo").read_text() == before
    (outside / "file").write_text("host")
    untouched(outside)


@pytest.mark.parametrize("name", ["console", "pts"])
def test_console_that_leads_elsewhere(box: Box, outside: Path, place: Path, name: str) -> None:
    """CVE-2025-52565: the bind of the pty on /dev/console."""
    box.config["mounts"] = [m for m in box.mounts if m["destination"] in ("/proc", "/dev/pts")]
    box.process["terminal"] = True
    if name == "console":
        (box.rootfs / "dev/pts").mkdir()
        (box.rootfs / "dev/console").symlink_to(up(outside / "file"))
    else:
        (box.rootfs / "dev/pts").symlink_to(up(outside))
    with ConsoleSocket(place / "console") as console:
        result = box.create("--console-socket", console.path, check=False)
        if result.rc == 0:
            console.receive()
            box.delete("--force")
    untouched(outside)


@pytest.mark.parametrize("number", range(3, 24))
def test_cwd_through_a_leaked_descriptor(box: Box, number: int) -> None:
    """CVE-2024-21626: /proc/self/fd/N leads out of the container if the runtime holds a directory of the host."""
    box.process["cwd"] = f"/proc/self/fd/{number}"
    script = "cat etc/passwd ../etc/passwd; ls; ls ..; ls ../../..; cat ../../../../../etc/debian_version"
    result = box.run(script, check=False)
    if result.rc == 0 or result.out:
        assert "root:x:0:0:root:/root:/bin/bash" not in result.out, "the host's /etc/passwd"
        assert str(box.path.name) not in result.out.split()
        pwd = box.run("pwd", check=False)
        assert pwd.rc != 0 or pwd.out.startswith("/")


@pytest.mark.parametrize("target", ["/proc/self/fd/7", "/proc/self/fd/3/../../..", "/proc/1/cwd", "/proc/self/cwd"])
def test_cwd_through_a_link_of_the_image(box: Box, target: str) -> None:
    (box.rootfs / "work").symlink_to(target)
    box.process["cwd"] = "/work"
    result = box.run("pwd; cat etc/debian_version ../etc/debian_version", check=False)
    assert not result.out.strip().endswith(Path("/etc/debian_version").read_text().strip() or "\0")


@pytest.mark.parametrize("number", range(3, 16))
def test_exec_cwd_through_a_leaked_descriptor(box: Box, number: int) -> None:
    box.create_and_start("sleep 1000")
    result = box.exec("/bin/sh", "-c", "ls ../../..; pwd", flags=("--cwd", f"/proc/self/fd/{number}"), check=False)
    assert "boot" not in result.out.split()


def test_cwd_is_made_inside_only(box: Box, outside: Path) -> None:
    """CVE-2024-45310: directories on the way are made in the container's tree."""
    (box.rootfs / "link").symlink_to(up(outside))
    box.process["cwd"] = "/link/made/here"
    box.run("true", check=False)
    untouched(outside)


@pytest.fixture
def volume(box: Box, outside: Path, helpers: Helpers) -> Iterator[Path]:
    """A shared volume in which somebody swaps a directory and a link to the outside as fast as possible."""
    path = box.directory / "volume"
    (path / "real").mkdir(parents=True)
    (path / "link").symlink_to(up(outside))
    box.bind(path, "/volume", "rbind")
    racer = subprocess.Popen([helpers("exchange"), path / "real", path / "link"], stderr=subprocess.DEVNULL)
    yield path
    racer.kill()
    racer.wait()


DEVICE_RACE = peer_fails("runc", "1.1.5 makes devices by path", always=False)


@pytest.mark.parametrize("what", ["mount", "bind", "cwd", pytest.param("device", marks=DEVICE_RACE), "mask"])
def test_race_in_a_shared_volume(box: Box, outside: Path, volume: Path, what: str) -> None:
    """CVE-2021-30465 and its like: a path is resolved once, in the root, and used by its descriptor."""
    (box.path / "data").write_text("data")
    if what == "mount":
        box.mount("/volume/real/made", "tmpfs")
    elif what == "bind":
        box.bind("data", "/volume/real/file", "bind")
    elif what == "cwd":
        box.process["cwd"] = "/volume/real/cwd"
    elif what == "device":
        box.linux["devices"] = [{"path": "/volume/real/device", "type": "c", "major": 1, "minor": 3}]
    else:
        box.linux["maskedPaths"].append("/volume/real")
    before = Path("/proc/self/mountinfo").read_text()
    for _ in range(15):
        box.run("true", check=False)
        untouched(outside)
    assert Path("/proc/self/mountinfo").read_text() == before


def test_mounts_over_proc_do_not_catch_what_the_runtime_writes(box: Box) -> None:
    """CVE-2019-16884, CVE-2025-52881: sysctls and labels go to a procfs of the runtime's own, or creation fails."""
    fake = box.path / "fake"
    (fake / "net/ipv4").mkdir(parents=True)
    (fake / "net/ipv4/ip_forward").write_text("fake")
    box.bind("fake", "/proc/sys", "bind")
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    box.linux["readonlyPaths"] = []
    box.run("true", check=False)
    assert (fake / "net/ipv4/ip_forward").read_text() == "fake"


@pytest.mark.parametrize("kind", ["tmpfs", "bind"])
def test_no_mount_over_all_of_proc_hides_that_it_is_fake(box: Box, kind: str) -> None:
    """With /proc replaced and a label or sysctl asked for, either it is really set or create fails."""
    if kind == "tmpfs":
        box.mount("/proc", "tmpfs")
    else:
        (box.path / "fake/sys/kernel").mkdir(parents=True)
        (box.path / "fake/sys/kernel/shmmni").write_text("fake")
        box.bind("fake", "/proc", "bind")
    box.linux["sysctl"] = {"kernel.shmmni": "1234"}
    box.linux["maskedPaths"] = box.linux["readonlyPaths"] = []
    box.sh("sleep 1000")
    result = box.create(check=False)
    if result.rc == 0:
        out = subprocess.run(
            ["nsenter", "-t", str(box.pid), "-i", "cat", "/proc/sys/kernel/shmmni"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert out == "1234\n"


def test_the_hosts_tree_can_not_be_reached_from_inside(box: Box) -> None:
    """All of CAP_SYS_CHROOT's and CAP_SYS_ADMIN's classical ways."""
    box.capabilities("CAP_SYS_CHROOT", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
    marker = box.directory / "marker"
    marker.write_text("host")
    script = f"""
    cat {marker}
    mkdir -p /jail; chroot /jail /bin/true
    cd /; umount -l /; umount /; ls -a ..; cat {marker}
    for p in /proc/[0-9]*; do cat $p/root{marker} $p/cwd{marker}; done
    nsenter -t 1 -m cat {marker}
    """
    result = box.run(script, check=False)
    assert "host" not in result.out


def test_sysctl_of_the_host_stay_closed(box: Box) -> None:
    values = {p: Path(p).read_text() for p in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe")
              if os.path.exists(p)}  # fmt: skip
    box.run("".join(f"echo '|/evil' > {p};" for p in values) + "echo c > /proc/sysrq-trigger", check=False)
    assert {p: Path(p).read_text() for p in values} == values
