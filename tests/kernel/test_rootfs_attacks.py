"""A hostile image, and hostile processes that change it while a container is being made."""

from __future__ import annotations

import ctypes
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ocirt import rootfs
from ocirt.errors import Error
from ocirt.linux import mount, paths
from ocirt.process.plan import Plan
from ocirt.rootfs import masks, mounts
from ocirt.rootfs.pivot import bind_rootfs, isolate_mounts, open_procfs
from tests.kernel.rootfs_lab import DEFAULT_MOUNTS, Failed, Lab, mountinfo

PROC, DEV, DEVPTS = DEFAULT_MOUNTS[:3]
SYSFS = DEFAULT_MOUNTS[5]

#: How long a race is run, in seconds, and how many rounds it must have had to count.
RACE = 1.5
ROUNDS = 20

RENAME_EXCHANGE = 2
AT_FDCWD = -100


@contextmanager
def exchanging(first: Path, second: Path) -> Iterator[None]:
    """A process that swaps two names as fast as it can."""
    libc = ctypes.CDLL(None)
    a, b = os.fsencode(first), os.fsencode(second)
    pid = os.fork()
    if pid == 0:
        parent = os.getppid()
        try:
            while os.getppid() == parent:
                for _ in range(1000):
                    libc.renameat2(AT_FDCWD, a, AT_FDCWD, b, RENAME_EXCHANGE)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def outside(lab: Lab) -> Path:
    made = lab.bundle.parent / "outside"
    made.mkdir(exist_ok=True)
    return made


def everything(directory: Path) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


# --- links in the image


@pytest.mark.parametrize("kind", ["proc", "sysfs"])
@pytest.mark.parametrize("link", ["tmp", "/tmp", "../../outside", "dangling"])
def test_proc_and_sysfs_are_not_mounted_through_a_link(lab: Lab, kind: str, link: str) -> None:
    """CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-54867."""
    outside(lab)
    name = {"proc": "proc", "sysfs": "sys"}[kind]
    (lab.rootfs / name).rmdir()
    (lab.rootfs / name).symlink_to(link)
    with pytest.raises(Failed, match=f'filesystem "{kind}" must be mounted on ordinary directory, "/{name}" is a link'):
        lab.run({"mounts": [{"destination": f"/{name}", "type": kind, "source": kind}]})
    (lab.rootfs / "dir").symlink_to("tmp")
    with pytest.raises(Failed, match="must be mounted on ordinary directory"):
        lab.run({"mounts": [{"destination": "/dir/below", "type": kind, "source": kind}]})
    (lab.rootfs / "file").write_text("")
    with pytest.raises(Failed, match="must be mounted on ordinary directory"):
        lab.run({"mounts": [{"destination": "/file", "type": kind, "source": kind}]})


@pytest.mark.parametrize("link", ["../../../../../../../../../../../..", "/", "/proc/self/root", "/../.."])
def test_links_above_a_mount_point_stay_inside(lab: Lab, link: str) -> None:
    """CVE-2019-18837."""
    where = outside(lab)
    (lab.rootfs / "up").symlink_to(link)
    source = lab.bundle / "volume"
    source.mkdir()
    target = f"/up{where}/made/dir"
    volume = {"destination": target, "source": str(source), "options": ["bind"]}
    found: list[str] = []
    try:
        found = lab.run({"mounts": [PROC, volume]}, lambda _: [m["point"] for m in mountinfo()])
    except Failed:
        if "proc" not in link:  # a magic link may be refused
            raise
    assert everything(where) == []
    if "proc" not in link:
        assert f"{where}/made/dir" in found
        volume["destination"] = f"/up{where}"
        assert str(where) in lab.run({"mounts": [PROC, volume]}, lambda _: [m["point"] for m in mountinfo()])


def test_a_chain_of_links_ends(lab: Lab) -> None:
    for i in range(60):
        (lab.rootfs / f"l{i}").symlink_to(f"l{i + 1}")
    (lab.rootfs / "loop").symlink_to("loop")
    for name in ("l0", "loop"):
        with pytest.raises(Failed, match="too many levels of symbolic links"):
            lab.run({"mounts": [{"destination": f"/{name}", "type": "tmpfs", "source": "tmpfs"}]})


def test_masked_and_readonly_paths_through_links(lab: Lab) -> None:
    where = outside(lab)
    (where / "secret").write_text("host")
    (lab.rootfs / "link").symlink_to(f"../../../../../../../../..{where}/secret")
    inside = Path(f"{lab.rootfs}{where}")
    inside.mkdir(parents=True)
    (inside / "secret").write_text("image")
    config = {"mounts": [PROC, DEV], "linux": {"maskedPaths": ["/link"], "readonlyPaths": ["/link"]}}
    assert lab.run(config, lambda _: Path("/link").read_text()) == ""
    assert (where / "secret").read_text() == "host"


# --- races


STEPS = (isolate_mounts, open_procfs, bind_rootfs)


def race(lab: Lab, once: Callable[[Plan, int], Any], check: Callable[[Plan], Any]) -> tuple[int, int]:
    """Do `once` until the time is over: (how often it went well, how often it was an Error)."""
    counts = [0, 0]

    def step(plan: Plan) -> None:
        end = time.monotonic() + RACE
        while time.monotonic() < end or sum(counts) < ROUNDS:
            try:
                once(plan, sum(counts))
            except Error:
                counts[1] += 1
            else:
                counts[0] += 1
            check(plan)

    lab.run({}, lambda _: None, steps=(*STEPS, step), setup=lambda: None)
    return counts[0], counts[1]


@pytest.mark.parametrize("kind", ["tmpfs", "bind", "tmpfs-detached", "file"])
def test_exchanging_a_directory_for_a_link_while_mounting(lab: Lab, kind: str) -> None:
    """CVE-2021-30465 and CVE-2024-45310: no mount, no directory and no file outside of the root."""
    where = outside(lab)
    (where / "victim").mkdir()
    volume = lab.rootfs / "volume"
    (volume / "a").mkdir(parents=True)
    up = "/".join([".."] * 12)
    (volume / "b").symlink_to(f"{up}{where}")
    source = lab.bundle / "file"
    source.write_text("x")
    new = {
        "tmpfs": {"type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
        "tmpfs-detached": {"type": "tmpfs", "source": "tmpfs", "options": ["rprivate", "size=1m"]},
        "bind": {"source": str(lab.bundle), "options": ["bind", "ro"]},
        "file": {"source": str(source), "options": ["bind", "ro"]},
    }[kind]
    before: set[int] = set()

    def once(plan: Plan, round: int) -> None:
        if not before:
            before.update(m["id"] for m in mountinfo())
        for name in ("victim", f"new{round % 50}/deep"):
            plan.config = {"mounts": [{"destination": f"/volume/a/{name}", **new}]}  # type: ignore[typeddict-item]
            mounts.mount_filesystems(plan)

    def check(plan: Plan) -> None:
        mounted = [m["point"] for m in mountinfo() if m["id"] not in before]
        assert all(point.startswith(plan.rootfs) for point in mounted), mounted
        for point in reversed(mounted):
            with suppress(Error):  # the name may be the link's just now; then the next round does it
                mount.umount2(point.encode(), mount.MNT_DETACH)

    with exchanging(volume / "a", volume / "b"):
        race(lab, once, check)
    assert everything(where) == ["victim"]


def test_exchanging_the_null_device_while_masking(lab: Lab) -> None:
    """CVE-2025-31133: a masked file shows nothing, whatever happens to /dev/null."""
    (lab.rootfs / "etc" / "secret").write_text("secret")
    os.mknod(lab.rootfs / "dev" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (lab.rootfs / "dev" / "evil").symlink_to("/bin/busybox")

    def once(plan: Plan, round: int) -> None:
        plan.linux = {"maskedPaths": ["/etc/secret"]}
        masks.mask_paths(plan)
        fd = paths.open_in_root(plan.root, "/etc/secret")
        found = os.fstat(fd)
        os.close(fd)
        assert stat.S_ISCHR(found.st_mode), "masked by something else"
        assert found.st_rdev == os.makedev(1, 3)

    with exchanging(lab.rootfs / "dev" / "null", lab.rootfs / "dev" / "evil"):
        race(lab, once, lambda _: None)


def test_exchanging_the_console_while_it_is_bound(lab: Lab) -> None:
    """CVE-2025-52565."""
    where = outside(lab)
    (where / "file").write_text("")
    up = "/".join([".."] * 12)
    (lab.rootfs / "dev" / "console").write_text("")
    (lab.rootfs / "dev" / "evil").symlink_to(f"{up}{where}/file")

    def once(plan: Plan, round: int) -> None:
        fd = os.open("/dev/zero", os.O_RDWR)
        try:
            rootfs.mount_console(plan, fd)
        finally:
            os.close(fd)

    def check(plan: Plan) -> None:
        assert not stat.S_ISCHR(os.stat(where / "file").st_mode), "the console was bound outside"

    with exchanging(lab.rootfs / "dev" / "console", lab.rootfs / "dev" / "evil"):
        race(lab, once, check)


def test_exchanging_the_directory_of_devices(lab: Lab) -> None:
    """CVE-2026-41579 as a race."""
    where = outside(lab)
    up = "/".join([".."] * 12)
    (lab.rootfs / "evil").symlink_to(f"{up}{where}")

    def once(plan: Plan, round: int) -> None:
        rootfs.MOUNTS[4](plan)
        rootfs.MOUNTS[5](plan)
        for name in os.listdir(lab.rootfs / "dev"):
            with suppress(FileNotFoundError):
                os.unlink(lab.rootfs / "dev" / name)

    with exchanging(lab.rootfs / "dev", lab.rootfs / "evil"):
        race(lab, once, lambda _: None)
    assert everything(where) == []


def test_a_directory_moved_away_while_its_parent_is_looked_up(lab: Lab) -> None:
    """`..` of a directory that is moved to another place must not lead above the root."""
    where = outside(lab)
    (where / "passwd").write_text("host")
    (lab.rootfs / "x" / "deep" / "er").mkdir(parents=True)
    (lab.rootfs / "y").mkdir()
    (lab.rootfs / "passwd").write_text("image")

    def once(plan: Plan, round: int) -> None:
        fd = paths.open_in_root(plan.root, "/x/deep/er/../../../../../../../../passwd", os.O_RDONLY)
        try:
            assert os.read(fd, 10) == b"image"
        finally:
            os.close(fd)

    with exchanging(lab.rootfs / "x" / "deep", lab.rootfs / "y"):
        went_well, _ = race(lab, once, lambda _: None)
    assert went_well >= 0
