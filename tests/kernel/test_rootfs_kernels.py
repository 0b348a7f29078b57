"""The same root filesystem on kernels that lack one call or another; nothing imported on the way."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from ocirt import rootfs
from ocirt.errors import Error
from ocirt.linux import mount as linux_mount
from ocirt.linux import paths
from ocirt.process.plan import Plan
from tests.kernel import enosys
from tests.kernel.rootfs_lab import DEFAULT_MOUNTS, Failed, Lab, mountinfo

CGROUPS = (
    [("", "/sys/fs/cgroup/unified", "/")] if os.path.isdir("/sys/fs/cgroup/unified") else [("", "/sys/fs/cgroup", "/")]
)
CONFIG: dict[str, Any] = {
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [
        *DEFAULT_MOUNTS,
        {
            "destination": "/sys/fs/cgroup",
            "type": "cgroup",
            "source": "cgroup",
            "options": ["ro", "nosuid", "noexec", "nodev", "relatime"],
        },
        {"destination": "/etc/hosts", "source": "/etc/hosts", "options": ["rbind", "ro", "rprivate"]},
        {"destination": "/volume/new", "source": "volume", "options": ["rbind", "nosuid", "noatime", "rslave"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "size=1m", "noexec"]},
        {"destination": "/run/more", "type": "tmpfs", "source": "tmpfs", "options": ["unbindable", "size=1m"]},
        {"destination": "/copy", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "nodev"]},
    ],
    "linux": {
        "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "uid": 1, "gid": 2}],
        "maskedPaths": ["/proc/keys", "/proc/acpi", "/proc/timer_list", "/sys/firmware", "/missing"],
        "readonlyPaths": ["/proc/sys", "/proc/irq", "/volume/new"],
        "rootfsPropagation": "slave",
    },
}
NEW = ("mount", "pid", "network", "ipc", "cgroup")


def prepared(lab: Lab) -> Lab:
    (lab.bundle / "volume").mkdir()
    (lab.rootfs / "copy" / "sub").mkdir(parents=True)
    return lab


def picture(_: Plan) -> list[Any]:
    """Everything about the mounts but their ids, and what is in /dev and /copy."""
    mounts = []
    for m in mountinfo():
        optional = sorted(o.partition(":")[0] for o in m["optional"])
        mounts.append([m["point"], m["type"], sorted(m["options"]), optional, m["root"].rpartition("/")[2]])
    nodes = [[n, os.lstat(f"/dev/{n}").st_mode, os.lstat(f"/dev/{n}").st_uid] for n in sorted(os.listdir("/dev"))]
    return [sorted(mounts), nodes, os.listdir("/copy")]


def run(lab: Lab, **more: Any) -> Any:
    return lab.run(CONFIG, picture, plan={"cgroups": CGROUPS, **more}, new=NEW, prepare=rootfs.prepare_trees)


@pytest.mark.parametrize("no_pivot", [False, True], ids=["pivot", "no-pivot"])
def test_every_kernel_gives_the_same(modern: Lab, no_pivot: bool) -> None:
    prepared(modern)
    reference = run(modern, no_pivot=no_pivot)
    assert len(reference[0]) > 15
    assert reference[2] == ["sub"]
    single = ("openat2", *enosys.MOUNTING)
    for without in (*((name,) for name in single), enosys.MOUNTING, ("openat2", *enosys.MOUNTING)):
        modern.without = without
        assert run(modern, no_pivot=no_pivot) == reference, without


# --- sealed

WATCHED = ("import", "ctypes.dlopen")


def sealed(lab: Lab, config: dict[str, Any], steps: tuple[Any, ...]) -> list[str]:
    """Run the steps as init does, after the import system was taken away; what they tried to load."""
    events: list[str] = []

    def seal(plan: Plan) -> None:
        sys.meta_path.clear()
        sys.path.clear()
        sys.path_hooks.clear()
        sys.path_importer_cache.clear()

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in WATCHED or (event == "open" and str(arguments[0]).endswith((".py", ".pyc", ".so"))):
                events.append(f"{event} {arguments[0]}")

        sys.addaudithook(hook)

    found: list[str] = lab.run(
        config, lambda _: events, new=NEW, plan={"cgroups": CGROUPS}, prepare=rootfs.prepare_trees, steps=(seal, *steps)
    )
    return found


ALL = (*rootfs.MOUNTS, *rootfs.ENTER_ROOT, *rootfs.SEAL)


def test_the_steps_load_nothing(lab: Lab) -> None:
    """An import after the root is entered would run the image's files as root of the host."""
    assert sealed(prepared(lab), CONFIG, ALL) == []


@pytest.mark.parametrize(
    "mount",
    [
        {"type": "tmpfs", "source": "tmpfs", "options": ["bogus"]},
        {"type": "nonesuch", "source": "x"},
        {"source": "/nonexistent", "options": ["bind"]},
        {"source": "/etc/hostname", "options": ["bind"]},
        {"type": "tmpfs", "options": ["remount"]},
    ],
)
def test_errors_load_nothing_either(lab: Lab, mount: dict[str, Any]) -> None:
    failures: list[str] = []

    def mount_and_fail(plan: Plan) -> None:
        for step in rootfs.MOUNTS:
            try:
                step(plan)
            except Error as error:
                failures.append(str(error))
                return
        raise AssertionError("it didn't fail")

    assert sealed(lab, {"mounts": [{"destination": "/mnt", **mount}]}, (mount_and_fail,)) == []


def test_nothing_below_the_root_is_opened_by_a_path_of_the_host(modern: Lab) -> None:
    """What the audit hook sees opened are names relative to descriptors, never the root's path."""
    opened: list[str] = []

    def watch(plan: Plan) -> None:
        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if event in ("open", "os.mkdir", "os.symlink", "os.mknod", "os.unlink", "os.chmod", "os.chown"):
                name = arguments[0]
                opened.append(name.decode() if isinstance(name, bytes) else str(name))

        sys.addaudithook(hook)

    found = prepared(modern).run(
        CONFIG,
        lambda _: list(opened),
        new=NEW,
        plan={"cgroups": CGROUPS},
        prepare=rootfs.prepare_trees,
        steps=(watch, *rootfs.MOUNTS, *rootfs.ENTER_ROOT, *rootfs.SEAL),
    )
    assert found
    assert not [name for name in found if str(modern.rootfs) in name]


def test_the_enosys_filter_works(modern: Lab) -> None:
    """A filter that did nothing would make every test of a fallback worthless."""
    modern.without = ("openat2", "fsopen")
    with pytest.raises(Failed, match="function not implemented"):
        modern.run({}, lambda _: _try("openat2"))
    with pytest.raises(Failed, match="function not implemented"):
        modern.run({}, lambda _: _try("fsopen"))
    modern.without = ("open_tree",)
    modern.run({}, lambda _: _try("openat2"))


def _try(name: str) -> None:
    os.close(paths.openat2(-100, b"/", os.O_PATH) if name == "openat2" else linux_mount.fsopen(b"tmpfs"))
