"""Read-only roots, masked and read-only paths, propagation, and ways to enter the root."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ocirt import rootfs
from ocirt.linux import mount
from ocirt.process.plan import Plan
from tests.kernel.rootfs_lab import DEFAULT_MOUNTS, Failed, Lab, mountinfo, mounts_by_point, mounts_on_host, sh

PROC, DEV = DEFAULT_MOUNTS[:2]


def can_write(path: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    except OSError as error:
        if error.errno == 30:  # EROFS
            return False
        raise
    os.close(fd)
    return True


# --- read-only


def test_readonly_root(lab: Lab) -> None:
    config = {"root": {"path": "rootfs", "readonly": True}, "mounts": DEFAULT_MOUNTS}
    assert lab.run(config, lambda _: [can_write("/x"), can_write("/dev/shm/x")]) == [False, True]
    config = {"root": {"path": "rootfs"}, "mounts": DEFAULT_MOUNTS}
    assert lab.run(config, lambda _: can_write("/x"))
    (lab.rootfs / "y").write_text("the host's mount is as it was")


def test_readonly_root_keeps_other_attributes(lab: Lab) -> None:
    def setup() -> None:
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "--bind", str(lab.rootfs), str(lab.rootfs))
        mounts_on_host("mount", "-o", "remount,bind,nodev,nosuid,noatime", str(lab.rootfs))

    config = {"root": {"path": "rootfs", "readonly": True}, "mounts": [PROC, DEV]}
    found = lab.run(config, mounts_by_point, setup=setup)["/"]["options"]
    assert set(found) == {"ro", "nodev", "nosuid", "noatime"}


def test_readonly_dev_has_everything_in_it(lab: Lab) -> None:
    dev = {**DEV, "options": ["nosuid", "ro", "mode=755"]}
    config = {"mounts": [PROC, dev, *DEFAULT_MOUNTS[2:]], "linux": {"devices": []}}
    found = lab.run(config, lambda _: [mounts_by_point()["/dev"]["options"][0], sorted(os.listdir("/dev"))])
    assert found[0] == "ro"
    assert {"null", "pts", "shm", "fd", "ptmx"} <= set(found[1])


def test_readonly_paths(lab: Lab) -> None:
    (lab.rootfs / "etc" / "file").write_text("x")
    (lab.rootfs / "link").symlink_to("/tmp")
    paths = ["/proc/sys", "/etc/file", "/tmp", "/missing", "/etc/file/below", "/link"]
    config = {"mounts": [{**PROC, "options": ["nosuid", "noexec", "nodev"]}], "linux": {"readonlyPaths": paths}}

    def probe(_: Plan) -> list[Any]:
        return [mounts_by_point()["/proc/sys"]["options"], can_write("/etc/file"), can_write("/tmp/x"), can_write("/x")]

    found = lab.run(config, probe)
    assert set(found[0]) == {"ro", "nosuid", "noexec", "nodev", "relatime"}
    assert found[1:] == [False, False, True]


def test_the_root_as_a_readonly_and_as_a_masked_path(lab: Lab) -> None:
    config = {"mounts": [PROC, DEV], "linux": {"readonlyPaths": ["/etc/.."]}}
    assert lab.run(config, lambda _: [can_write("/x"), can_write("/dev/x")]) == [False, True]
    with pytest.raises(Failed, match="masked path //: the root itself can't be masked"):
        lab.run({"mounts": [PROC, DEV], "linux": {"maskedPaths": ["//"]}})


def test_readonly_path_keeps_mounts_below(lab: Lab) -> None:
    mounts = [PROC, {"destination": "/mnt/below", "type": "tmpfs", "source": "tmpfs"}]
    found = lab.run({"mounts": mounts, "linux": {"readonlyPaths": ["/mnt"]}}, mounts_by_point)
    assert found["/mnt"]["options"][0] == "ro"
    assert found["/mnt/below"]["type"] == "tmpfs"


# --- masked


def test_masked_paths(lab: Lab) -> None:
    (lab.rootfs / "etc" / "secret").write_text("secret")
    (lab.rootfs / "var" / "secrets").mkdir()
    (lab.rootfs / "var" / "secrets" / "one").write_text("secret")
    (lab.rootfs / "tmp" / "dir").mkdir()
    (lab.rootfs / "alias").symlink_to("etc/secret")
    masked = [
        "/etc/secret",
        "/var/secrets",
        "/tmp/dir",
        "/missing",
        "/etc/secret/below",
        "/proc/kcore",
        "/sys/firmware",
    ]

    def probe(_: Plan) -> list[Any]:
        null = os.stat("/etc/secret")
        return [
            Path("/etc/secret").read_text(),
            Path("/alias").read_text(),
            stat.S_ISCHR(null.st_mode) and null.st_rdev == os.makedev(1, 3),
            os.listdir("/var/secrets"),
            can_write("/var/secrets/x"),
            os.listdir("/tmp/dir"),
            sorted(set(mounts_by_point()["/tmp/dir"]["options"])),
        ]

    found = lab.run({"mounts": DEFAULT_MOUNTS, "linux": {"maskedPaths": masked}}, probe)
    assert found == ["", "", True, [], False, [], ["nodev", "noexec", "nosuid", "relatime", "ro"]]


@pytest.mark.parametrize("fake", ["link", "file", "other device", "missing"])
def test_masks_want_a_real_null(lab: Lab, fake: str) -> None:
    """CVE-2025-31133: whatever /dev/null was got bound over the masked path."""
    (lab.rootfs / "etc" / "secret").write_text("secret")
    null = "/dev/null"

    def replace(_: Plan) -> None:
        os.unlink(null)
        if fake == "link":
            os.symlink("/bin/busybox", null)
        elif fake == "file":
            Path(null).write_text("fake")
        elif fake == "other device":
            os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 5))

    steps = (*rootfs.MOUNTS, *rootfs.ENTER_ROOT, replace, *rootfs.SEAL)
    with pytest.raises(
        Failed, match=r"masked path /etc/secret: .*(dev/null.*not the character device 1:3|no such file)"
    ):
        lab.run({"mounts": [PROC, DEV], "linux": {"maskedPaths": ["/etc/secret"]}}, lambda _: None, steps=steps)


# --- propagation of the root


@pytest.mark.parametrize(
    "propagation", ["shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", None]
)
@pytest.mark.parametrize("on_shared", [True, False], ids=["shared-host", "private-host"])
def test_root_propagation(lab: Lab, propagation: str | None, on_shared: bool) -> None:
    def setup() -> None:
        # what the host is like, in a mount namespace of the test's own
        mounts_on_host("mount", "--make-rprivate", "/")
        if on_shared:
            mounts_on_host("mount", "--make-rshared", "/")
        lab.unshare("mount")

    def probe(_: Plan) -> list[Any]:
        root = mounts_by_point()["/"]
        try:
            mount.mount(b"/", b"/mnt", None, mount.MS_BIND, None)
            bound = True
        except Exception:
            bound = False
        return [[o.partition(":")[0] for o in root["optional"]], bound]

    linux = {"rootfsPropagation": propagation} if propagation else {}
    optional, bound = lab.run({"mounts": [PROC], "linux": linux}, probe, setup=setup)
    expected = {
        "shared": ["shared"],
        "rshared": ["shared"],
        "slave": ["master"] if on_shared else [],
        "rslave": ["master"] if on_shared else [],
        "unbindable": ["unbindable"],
    }.get(propagation or "", [])
    assert optional == expected
    assert bound == (propagation != "unbindable")


def test_mounts_inside_never_reach_the_host(lab: Lab) -> None:
    """Also with a shared root, and though the host's mounts are shared."""
    for propagation in ("shared", "rshared", "slave", "private"):
        assert not mounts_seen_outside(lab, propagation, "rprivate")


def test_a_shared_volume_of_a_shared_root_reaches_the_host(modern: Lab) -> None:
    """Even where the volume is on the same mount as the root filesystem."""
    lab = modern
    assert mounts_seen_outside(lab, "rshared", "rshared") == [str(lab.bundle / "volume" / "inner")]


def mounts_seen_outside(lab: Lab, propagation: str, volume: str) -> list[str]:
    (lab.bundle / "volume" / "inner").mkdir(parents=True, exist_ok=True)
    read, write = os.pipe()
    ready = os.pipe()

    def setup() -> None:
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "--bind", str(lab.bundle), str(lab.bundle))
        mounts_on_host("mount", "--make-rshared", "/")
        before = {m["id"] for m in mountinfo()}
        if os.fork() == 0:
            os.read(ready[0], 1)
            new = [m["point"] for m in mountinfo() if m["id"] not in before]
            os.write(write, "\n".join(new).encode() + b"\n")
            os._exit(0)
        lab.unshare("mount")

    def probe(_: Plan) -> str:
        mount.mount(b"tmpfs", b"/volume/inner", b"tmpfs", 0, None)
        mount.mount(b"tmpfs", b"/mnt", b"tmpfs", 0, None)
        os.write(ready[1], b"x")
        os.wait()
        return os.read(read, 65536).decode()

    mounts = [PROC, DEV, {"destination": "/volume", "source": "volume", "options": ["rbind", volume]}]
    try:
        config = {"mounts": mounts, "linux": {"rootfsPropagation": propagation}}
        found: str = lab.run(config, probe, setup=setup)
        return found.split()
    finally:
        for fd in (read, write, *ready):
            os.close(fd)


# --- entering


def test_nothing_of_the_host_is_left(lab: Lab) -> None:
    info = lab.run({"mounts": DEFAULT_MOUNTS}, lambda _: mountinfo())
    assert sorted(m["point"] for m in info) == sorted(["/", *(m["destination"] for m in DEFAULT_MOUNTS)])


def test_no_pivot(lab: Lab) -> None:
    def probe(plan: Plan) -> list[Any]:
        return [sorted(os.listdir("/")), sh("cat /proc/1/comm >/dev/null; echo $?")[1], mountinfo()]

    names, out, info = lab.run({"mounts": DEFAULT_MOUNTS}, probe, plan={"no_pivot": True})
    assert "rootfs" not in names
    assert "bin" in names
    assert out == "0\n"
    # no bare procfs or sysfs of the host is left below the moved root
    assert [m["point"] for m in info if m["type"] in ("proc", "sysfs")] == ["/proc", "/sys"]


def test_without_a_mount_namespace(lab: Lab) -> None:
    """Everything is below one bind of the root on itself, and goes with it."""
    ids: list[int] = []

    def prepare(plan: Plan) -> None:
        mounts_on_host("mount", "--make-rshared", "/")
        ids.extend(rootfs.host_mounts(plan))

    def probe(plan: Plan) -> list[Any]:
        return [can_write("/x"), sorted(os.listdir("/dev"))[:3], len(mountinfo())]

    def host() -> None:
        # the "host" is a mount namespace of the test's own
        mounts_on_host("mount", "--make-rprivate", "/")

    def outer(plan: Plan) -> Any:
        before = [m["point"] for m in mountinfo("/proc/self/mountinfo")]
        prepare(plan)
        pid = os.fork()
        if pid == 0:
            for step in (*rootfs.MOUNTS, *rootfs.ENTER_ROOT, *rootfs.SEAL):
                step(plan)
            os._exit(0 if not can_write("/x") and os.path.exists("/proc/self") else 1)
        status = os.waitpid(pid, 0)[1]
        during = {m["point"] for m in mountinfo()}
        rootfs.unmount_host(plan.rootfs, ids)
        rootfs.unmount_host(plan.rootfs, ids)
        after = [m["point"] for m in mountinfo()]
        return [status, f"{plan.rootfs}/proc" in during, sorted(before) == sorted(after)]

    config = {"root": {"path": "rootfs", "readonly": True}, "mounts": DEFAULT_MOUNTS}

    def as_step(plan: Plan) -> None:
        plan.new = frozenset()
        results.append(outer(plan))

    results: list[Any] = []
    found = lab.run(config, lambda _: results[0], setup=host, steps=(as_step,))
    assert found == [0, True, True]


def test_unmounting_takes_only_what_was_mounted(lab: Lab) -> None:
    def probe(plan: Plan) -> bool:
        plan.new = frozenset()
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "--bind", plan.rootfs, plan.rootfs)  # the engine's, not ours
        ids = rootfs.host_mounts(plan)
        rootfs.unmount_host(plan.rootfs, ids)
        return plan.rootfs in {m["point"] for m in mountinfo()}

    assert lab.run({}, probe, steps=())


def test_a_private_procfs(lab: Lab) -> None:
    """CVE-2025-52881: it shows the container's pid namespace, and nothing can be mounted over it."""

    def probe(plan: Plan) -> list[Any]:
        return [os.readlink("self", dir_fd=plan.proc), os.stat("uptime", dir_fd=plan.proc).st_ino > 0]

    link, there = lab.run({"mounts": [PROC]}, probe)
    assert there
    if "fsopen" not in lab.without:
        assert link == "1"


def test_host_proc_that_is_not_procfs_is_refused(modern: Lab) -> None:
    modern.without = ("fsopen",)

    def setup() -> None:
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "-t", "tmpfs", "tmpfs", "/proc")

    with pytest.raises(Failed, match="/proc is not the root of a procfs"):
        modern.run({}, setup=setup)


def test_the_hosts_root_as_root(lab: Lab) -> None:
    """root.path may be "/": the container sees the host's files, below its own mounts."""

    def probe(_: Plan) -> list[Any]:
        return [os.path.exists(lab.bundle), mounts_by_point()["/mnt"]["type"], can_write("/ocirt-test-x")]

    config = {
        "mounts": [PROC, {"destination": "/mnt", "type": "tmpfs", "source": "tmpfs"}],
        "root": {"path": "/", "readonly": True},
    }
    fields = {"rootfs": "/"}
    steps = (*rootfs.MOUNTS[:4], *rootfs.ENTER_ROOT, *rootfs.SEAL)  # nothing is made in the host's /dev
    assert lab.run(config, probe, plan=fields, steps=steps) == [True, "tmpfs", False]


def test_missing_rootfs(lab: Lab) -> None:
    with pytest.raises(Failed, match=r"root\.path /nonexistent: .*no such file or directory"):
        lab.run({}, plan={"rootfs": "/nonexistent"})
