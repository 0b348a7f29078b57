"""Mounts and devices in a user namespace, and mounts with mapped ids."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocirt import rootfs
from ocirt.errors import Error
from ocirt.linux import mount
from ocirt.process.plan import Plan
from ocirt.rootfs import idmaps, nodes
from tests.kernel.rootfs_lab import DEFAULT_MOUNTS, Failed, Lab, mounts_by_point, mounts_on_host

PROC, DEV, DEVPTS = DEFAULT_MOUNTS[:3]
BASE = 700_000
MAPPINGS = (BASE, 65536)


def mapping(inside: int, outside: int, size: int = 1) -> list[dict[str, int]]:
    return [{"containerID": inside, "hostID": outside, "size": size}]


prepare = rootfs.prepare_trees


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory that the root of a user namespace can get to; pytest's own ones it can't."""
    directory = Path(tempfile.mkdtemp(prefix="ocirt-test-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


def owned(lab: Lab) -> Lab:
    for path in (lab.rootfs, *lab.rootfs.rglob("*")):
        os.chown(path, BASE, BASE, follow_symlinks=False)
    return lab


# --- devices


def test_devices_are_bound_with_their_mode_and_owner(lab: Lab) -> None:
    owned(lab)
    devices = [
        {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 3, "gid": 4},
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o622, "uid": 5, "gid": 6},
    ]

    def probe(_: Plan) -> list[Any]:
        found = os.stat("/dev/fuse")
        null = os.stat("/dev/null")
        fd = os.open("/dev/null", os.O_RDWR)
        os.close(fd)
        fifo = os.stat("/dev/fifo")
        assert stat.S_ISFIFO(fifo.st_mode)
        assert (stat.S_IMODE(fifo.st_mode), fifo.st_uid, fifo.st_gid) == (0o622, 5, 6)
        kind = stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(10, 229)
        return [kind, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, null.st_rdev == os.makedev(1, 3)]

    config = {"mounts": DEFAULT_MOUNTS, "linux": {"devices": devices, "maskedPaths": ["/proc/kcore", "/etc"]}}
    found = lab.run(config, probe, mappings=MAPPINGS, prepare=prepare)
    assert found[0]
    assert found[4]
    if not old(lab):
        assert found[1:4] == [0o640, 3, 4]


def test_devices_are_cloned_before_linux_6_15(modern: Lab) -> None:
    """Where a detached mount can't be cloned, a child does it in a mount namespace of its own."""

    def probe(_: Plan) -> list[Any]:
        store = mount.new_filesystem("tmpfs", [("mode", "700")], 0)
        for number in range(3):
            os.mknod(str(number), stat.S_IFCHR | 0o640, os.makedev(1, 3 + number), dir_fd=store)
        trees = nodes._clone_elsewhere(store, 3)
        return [[os.fstat(t).st_rdev == os.makedev(1, 3 + n), os.get_inheritable(t)] for n, t in enumerate(trees)]

    assert modern.run({}, probe) == [[True, False]] * 3


def test_devices_without_privilege_are_the_hosts(lab: Lab) -> None:
    """Without the runtime's help init binds the nodes of the host."""
    owned(lab)

    def probe(_: Plan) -> list[Any]:
        found = os.stat("/dev/zero")
        return [stat.S_ISCHR(found.st_mode), found.st_rdev == os.makedev(1, 5)]

    for _ in range(2):  # the second time over the empty files that the first left
        assert lab.run({"mounts": [PROC]}, probe, mappings=MAPPINGS) == [True, True]
    devices = [{"path": "/dev/nonesuch", "type": "c", "major": 10, "minor": 229}]
    with pytest.raises(Failed, match=r"device /dev/nonesuch: .*the host has none to bind"):
        lab.run({"mounts": [PROC, DEV], "linux": {"devices": devices}}, mappings=MAPPINGS)


def test_a_file_of_the_image_at_the_path_of_a_bound_device_is_an_error(lab: Lab) -> None:
    (lab.rootfs / "dev" / "null").write_text("not a device")
    owned(lab)
    with pytest.raises(Failed, match=r"/dev/null exists and is not the device c 1:3"):
        lab.run({"mounts": [PROC]}, mappings=MAPPINGS, prepare=prepare)


# --- what a user namespace can't mount


def test_sysfs_of_the_host_without_a_network_namespace(lab: Lab) -> None:
    """CVE-2023-25809: read-only means all of it."""
    owned(lab)
    sysfs = {**DEFAULT_MOUNTS[5]}
    new = ("mount", "pid", "ipc")
    points = lab.run({"mounts": [PROC, sysfs]}, mounts_by_point, mappings=MAPPINGS, new=new) if not old(lab) else None
    if points is None:
        with pytest.raises(Failed, match="recursive mount options"):
            lab.run({"mounts": [PROC, sysfs]}, mounts_by_point, mappings=MAPPINGS, new=new)
        return
    below = [m for p, m in points.items() if p == "/sys" or p.startswith("/sys/")]
    assert len(below) > 1, "this host has mounts below /sys"
    assert all("ro" in m["options"] for m in below)


def old(lab: Lab) -> bool:
    return "mount_setattr" in lab.without


def test_proc_and_mqueue_of_the_host_without_their_namespaces(lab: Lab) -> None:
    owned(lab)
    new = ("mount", "network")
    mounts = [PROC, DEV, {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"}]
    if not os.path.isdir("/dev/mqueue"):
        with pytest.raises(Failed, match=r'"/dev/mqueue".*no such file'):
            lab.run({"mounts": mounts}, mappings=MAPPINGS, new=new)
        mounts = mounts[:2]
    points = lab.run({"mounts": mounts}, mounts_by_point, mappings=MAPPINGS, new=new)
    assert points["/proc"]["type"] == "proc"


def test_devpts_with_a_group_that_has_no_id(lab: Lab) -> None:
    owned(lab)
    devpts = {**DEVPTS, "options": [*DEVPTS["options"], "gid=5"]}
    assert lab.run({"mounts": [DEV, devpts]}, lambda _: os.path.exists("/dev/pts/ptmx"), mappings=(BASE, 2))


def test_a_root_that_only_the_caller_can_reach(lab: Lab) -> None:
    lab.bundle.chmod(0o700)
    with pytest.raises(Failed, match=r"permission denied \(root of the user namespace must be able to reach it\)"):
        lab.run({}, mappings=MAPPINGS)


def test_errors_name_what_a_user_namespace_lacks(lab: Lab) -> None:
    owned(lab)
    with pytest.raises(Failed, match=r"operation not permitted .*can't be mounted in a user namespace"):
        lab.run({"mounts": [{"destination": "/mnt", "type": "ext4", "source": "/dev/vda"}]}, mappings=MAPPINGS)


def test_a_locked_attribute_is_named(modern: Lab) -> None:
    owned(modern)
    source = modern.bundle / "source"
    source.mkdir()

    def host(plan: Plan) -> None:
        modern.unshare("mount")
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "-t", "tmpfs", "-o", "nosuid,nodev", "tmpfs", str(source))

    config = {"mounts": [{"destination": "/mnt", "source": str(source), "options": ["bind", "suid", "ro"]}]}
    with pytest.raises(Failed, match=r"operation not permitted \(nosuid of the source is locked"):
        modern.run(config, mappings=MAPPINGS, prepare=host)


def test_a_source_that_only_the_caller_can_reach(modern: Lab) -> None:
    owned(modern)
    hidden = modern.bundle / "hidden"
    (hidden / "volume").mkdir(parents=True)
    (hidden / "volume" / "file").write_text("reached")
    hidden.chmod(0o700)
    config = {"mounts": [{"destination": "/mnt", "source": str(hidden / "volume"), "options": ["rbind", "ro"]}]}

    def probe(_: Plan) -> list[Any]:
        return [Path("/mnt/file").read_text(), mounts_by_point()["/mnt"]["options"][0]]

    config["mounts"].append(PROC)
    assert modern.run(config, probe, mappings=MAPPINGS, prepare=prepare) == ["reached", "ro"]


def test_what_is_mounted_in_a_prepared_volume_does_not_reach_the_host(modern: Lab) -> None:
    owned(modern)
    volume = modern.bundle / "volume"
    (volume / "inner").mkdir(parents=True)
    end = os.pipe()

    def host(plan: Plan) -> None:
        modern.unshare("mount")
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "--bind", str(volume), str(volume))
        mounts_on_host("mount", "--make-rshared", "/")
        prepare(plan)
        if os.fork() == 0:  # somebody has to stay in the host's namespace
            os.read(end[0], 1)
            os._exit(0)

    def probe(_: Plan) -> list[str]:
        found: list[str] = mounts_by_point()["/mnt"]["optional"]
        os.write(end[1], b"x")
        return found

    config = {"mounts": [PROC, {"destination": "/mnt", "source": str(volume), "options": ["rbind"]}]}
    found = modern.run(config, probe, mappings=MAPPINGS, prepare=host)
    os.close(end[0])
    os.close(end[1])
    assert [o.partition(":")[0] for o in found] == ["master"]


# --- mapped ids


def files(lab: Lab, *owners: int) -> Path:
    need_mapped_ids(lab.bundle)
    source = lab.bundle / "source"
    source.mkdir()
    for owner in owners:
        (source / str(owner)).touch()
        os.chown(source / str(owner), owner, owner)
    return source


def need_mapped_ids(directory: Path | None) -> None:
    """Skip where the kernel can't map the ids of the test's file system (None: of a tmpfs)."""
    userns = idmaps.make_userns(([(0, 1, 1)], [(0, 1, 1)]))
    try:
        if directory:
            tree = mount.open_tree(mount.AT_FDCWD, os.fsencode(directory), mount.OPEN_TREE_CLONE)
        else:
            tree = mount.new_filesystem("tmpfs", [], 0)
        try:
            mount.mount_setattr(tree, 0, mount.MOUNT_ATTR_IDMAP, userns=userns)
        except Error as error:
            if error.errno != 22:
                raise
            kind = f"the file system of {directory}" if directory else "tmpfs"
            pytest.skip(f"this kernel can't map the ids of {kind}")
        finally:
            os.close(tree)
    finally:
        os.close(userns)


def owners(_: Plan) -> dict[str, list[int]]:
    return {n: [os.stat(f"/mnt/{n}").st_uid, os.stat(f"/mnt/{n}").st_gid] for n in os.listdir("/mnt")}


def mapped(source: Path, *options: str, **more: Any) -> dict[str, Any]:
    return {"mounts": [PROC, {"destination": "/mnt", "source": str(source), "options": ["bind", *options], **more}]}


def test_idmap_with_the_containers_mapping(modern: Lab) -> None:
    owned(modern)
    source = files(modern, 0, 1000)
    found = modern.run(mapped(source, "idmap", "ro"), owners, mappings=MAPPINGS, prepare=prepare)
    assert found == {"0": [0, 0], "1000": [1000, 1000]}


def test_idmap_with_the_mapping_of_the_mount(modern: Lab) -> None:
    source = files(modern, 0, 1000)
    config = mapped(source, "idmap", uidMappings=mapping(1000, 77), gidMappings=mapping(1000, 88))
    assert modern.run(config, owners, prepare=prepare)["1000"] == [77, 88]


def test_idmap_with_the_mapping_of_a_joined_namespace(modern: Lab) -> None:
    source = files(modern, 1000)

    def join(plan: Plan) -> None:
        plan.joined = {"user": idmaps.make_userns(([(1000, 55, 1)], [(1000, 66, 1)]))}
        prepare(plan)

    def probe(plan: Plan) -> Any:
        os.close(plan.joined["user"])
        return owners(plan)["1000"]

    assert modern.run(mapped(source, "idmap"), probe, prepare=join) == [55, 66]


def test_mappings_without_the_option(modern: Lab) -> None:
    source = files(modern, 1000)
    config = mapped(source, uidMappings=mapping(1000, 77), gidMappings=mapping(1000, 88))
    assert modern.run(config, owners, prepare=prepare)["1000"] == [77, 88]


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("idmap=uids=0-10-1#1000-20-5;gids=1000-30-1", [20, 30]),
        ("ridmap=uids=1000-20-5;gids=1000-30-1", [20, 30]),
        ("idmap=uids=1000-20-1", [20, 1000]),
    ],
)
def test_mapping_in_the_option(modern: Lab, option: str, expected: list[int]) -> None:
    source = files(modern, 1000)
    assert modern.run(mapped(source, option), owners, prepare=prepare)["1000"] == expected


def test_mapping_relative_to_the_containers(modern: Lab) -> None:
    owned(modern)
    source = files(modern, 1000)
    config = mapped(source, "idmap=uids=@1000-5-1;gids=@1000-6-1")
    assert modern.run(config, owners, mappings=MAPPINGS, prepare=prepare)["1000"] == [5, 6]
    config = mapped(source, "idmap=uids=@1000-70000-1")
    with pytest.raises(Failed, match=r"mounts\[1\]: id 70000 of an idmap option has no mapping"):
        modern.run(config, mappings=MAPPINGS, prepare=prepare)


def test_ridmap_reaches_mounts_below_and_idmap_does_not(modern: Lab) -> None:
    source = files(modern, 1000)
    (source / "below").mkdir()

    def host(plan: Plan) -> None:
        modern.unshare("mount")
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "-t", "tmpfs", "tmpfs", str(source / "below"))
        (source / "below" / "file").touch()
        os.chown(source / "below" / "file", 1000, 1000)
        prepare(plan)

    def probe(_: Plan) -> int:
        return os.stat("/mnt/below/file").st_uid

    for option, expected in (("ridmap", 77), ("idmap", 1000)):
        config = mapped(source, "rbind", option, uidMappings=mapping(1000, 77), gidMappings=mapping(1000, 88))
        assert modern.run(config, probe, prepare=host) == expected


def test_what_is_written_through_a_mapped_mount(modern: Lab) -> None:
    owned(modern)
    source = files(modern)
    source.chmod(0o777)

    def probe(_: Plan) -> None:
        Path("/mnt/new").touch()

    modern.run(mapped(source, "idmap"), probe, mappings=MAPPINGS, prepare=prepare)
    assert (source / "new").stat().st_uid == 0


def test_tmpfs_with_mapped_ids(modern: Lab) -> None:
    need_mapped_ids(None)
    entry = {
        "destination": "/mnt",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "mode=711", "uid=1000"],
        "uidMappings": mapping(1000, 77),
        "gidMappings": mapping(0, 88),
    }

    def probe(_: Plan) -> list[Any]:
        found = os.stat("/mnt")
        return [found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode), mounts_by_point()["/mnt"]["type"]]

    assert modern.run({"mounts": [PROC, entry]}, probe, prepare=prepare) == [77, 88, 0o711, "tmpfs"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            {"options": ["bind", "idmap"]},
            'mounts.0..*"idmap" without uidMappings and gidMappings needs a container with',
        ),
        ({"options": ["bind", "idmap"], "uidMappings": mapping(0, 1)}, "must be given together"),
        (
            {"options": ["bind", "idmap=uids=1-2"]},
            r'mounts\[0\]\.options: "1-2" in "uids=1-2" is not like "ID-ID-SIZE"',
        ),
        ({"options": ["bind", "idmap=uids=1-2-٣"]}, "is not like"),
        ({"options": ["bind", "idmap=uids=0-1-2#1-5-1"]}, r"write .0 1 2\\n1 5 1\\n. to /proc/.*do no ranges overlap"),
        ({"options": ["bind", "idmap=users=1-2-3"]}, "is not like"),
        (
            {"options": ["idmap"], "type": "proc", "uidMappings": mapping(0, 1), "gidMappings": mapping(0, 1)},
            "proc mount",
        ),
        ({"options": ["bind", "idmap=uids=0-1-1"], "source": "/proc"}, "may not support idmapped mounts"),
    ],
)
def test_errors_of_mapped_mounts(modern: Lab, entry: dict[str, Any], text: str) -> None:
    with pytest.raises(Failed, match=text):
        modern.run({"mounts": [{"destination": "/mnt", "source": "/etc", **entry}]}, prepare=prepare)


def test_mapped_mounts_on_an_old_kernel(modern: Lab) -> None:
    modern.without = ("open_tree", "mount_setattr", "open_tree_attr")
    config = mapped(modern.bundle, "idmap", uidMappings=mapping(1000, 77), gidMappings=mapping(1000, 88))
    with pytest.raises(Failed, match=r"idmapped mounts need Linux 5\.12"):
        modern.run(config, prepare=prepare)


# --- an ordinary user


def test_an_ordinary_user(lab: Lab) -> None:
    """Nothing of the runtime's side is possible without privilege; init does all of it."""
    user = 65534
    for path in (lab.bundle, lab.rootfs, *lab.rootfs.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    (lab.bundle / "volume").mkdir()
    (lab.bundle / "volume" / "file").write_text("x")
    os.chown(lab.bundle / "volume", user, user)
    mounts = [*DEFAULT_MOUNTS[:5], {"destination": "/mnt", "source": "volume", "options": ["rbind", "ro", "nosuid"]}]
    linux = {"maskedPaths": ["/proc/kcore", "/proc/acpi", "/etc"], "readonlyPaths": ["/proc/sys"]}
    config = {"mounts": mounts, "root": {"path": "rootfs", "readonly": True}, "linux": linux}

    def probe(_: Plan) -> list[Any]:
        points = mounts_by_point()
        null = os.stat("/dev/null")
        return [
            os.getuid(),
            null.st_rdev == os.makedev(1, 3),
            {p: points[p]["options"][0] for p in ("/", "/mnt", "/proc/sys", "/dev")},
            os.listdir("/etc"),
            Path("/mnt/file").read_text(),
        ]

    expected = [0, True, {"/": "ro", "/mnt": "ro", "/proc/sys": "ro", "/dev": "rw"}, [], "x"]
    assert lab.run(config, probe, mappings=(user, 1), user=user, prepare=prepare) == expected
