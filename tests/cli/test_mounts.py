"""Mounts: order, targets, every option of config-linux.md and config.md, seen in the container's mountinfo."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.harness.box import Box
from tests.harness.peers import fails, peer_fails

PROPAGATION = "optional fields"


def parse(text: str) -> dict[str, dict[str, Any]]:
    """mountinfo by mount point; of stacked mounts the last."""
    found = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        fstype, source, super_options = after.split(" ", 2)
        found[fields[4]] = {
            "root": fields[3],
            "options": set(fields[5].split(",")),
            PROPAGATION: {field.split(":")[0] for field in fields[6:]},
            "type": fstype,
            "source": source,
            "super": set(super_options.split(",")),
        }
    return found


def mountinfo(box: Box) -> dict[str, dict[str, Any]]:
    return parse(box.run("cat /proc/self/mountinfo").out)


def options_of(box: Box, destination: str = "/mnt") -> set[str]:
    options: set[str] = mountinfo(box)[destination]["options"]
    return options


def flags(options: str, present: str, absent: str = "", failing: str = "", why: str = "the last one wins") -> Any:
    """A line of the table of mount flags: options, what the mount then has and has not, peers that fail."""
    words = options.split()
    return pytest.param(words, set(present.split()), set(absent.split()), id=options, marks=fails(failing, why))


FLAGS = [
    flags("ro", "ro", "rw"),
    flags("rw", "rw", "ro"),
    flags("", "rw", "ro nosuid nodev noexec"),
    flags("nosuid", "nosuid"),
    flags("suid nosuid", "nosuid"),
    flags("nodev", "nodev"),
    flags("noexec", "noexec"),
    flags("noatime", "noatime", "relatime"),
    flags("nodiratime", "nodiratime"),
    flags("relatime", "relatime", "noatime"),
    flags("strictatime", "", "relatime noatime"),
    flags("nosuid suid", "", "nosuid", "crun"),
    flags("nodev dev", "", "nodev", "crun"),
    flags("noexec exec", "", "noexec", "crun"),
    flags("ro rw", "rw", "ro", "crun"),
    flags("noatime atime", "", "noatime", "crun"),
    flags("nodiratime diratime", "", "nodiratime", "crun"),
]
NOSYMFOLLOW = [
    flags("nosymfollow", "nosymfollow", "", "crun", "config.md lists it; 1.8.1 does not know it"),
    flags("nosymfollow symfollow", "", "nosymfollow"),
]


@pytest.mark.parametrize(("options", "present", "absent"), FLAGS + NOSYMFOLLOW)
def test_flags_of_a_bind(box: Box, options: list[str], present: set[str], absent: set[str]) -> None:
    (box.path / "source").mkdir()
    box.bind("source", "/mnt", *options)
    seen = options_of(box)
    assert present <= seen
    assert not absent & seen


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        *FLAGS,
        flags("defaults", "rw", "ro nosuid", "runc", "1.1.5 hands it to the filesystem"),
        NOSYMFOLLOW[0],
        flags("nosymfollow symfollow", "", "nosymfollow", "crun", "config.md lists it; 1.8.1 does not know it"),
    ],
)
def test_flags_of_a_tmpfs(box: Box, options: list[str], present: set[str], absent: set[str]) -> None:
    box.mount("/mnt", "tmpfs", "tmpfs", options)
    seen = options_of(box)
    assert present <= seen
    assert not absent & seen


MUST = "config.md, Linux mount options: it is a MUST; 1.8.1 hands it to the filesystem"


@pytest.mark.parametrize(
    ("options", "present", "absent"),
    [
        flags("sync", "sync"),
        flags("sync async", "", "sync", "crun"),
        flags("dirsync", "dirsync"),
        flags("lazytime", "lazytime"),
        flags("lazytime nolazytime", "", "lazytime"),
        flags("silent", "", "", "crun", MUST),
        flags("silent loud", "", "", "crun", MUST),
        flags("iversion noiversion", "", "", "crun", MUST),
        flags("mand nomand", ""),
        flags("size=4k", "size=4k"),
        flags("mode=750 uid=5 gid=6", "mode=750 uid=5 gid=6"),
        flags("nr_inodes=7", "nr_inodes=7"),
    ],
)
def test_options_of_the_filesystem(box: Box, options: list[str], present: set[str], absent: set[str]) -> None:
    box.mount("/mnt", "tmpfs", "tmpfs", options)
    seen = mountinfo(box)["/mnt"]["super"]
    assert present <= seen
    assert not absent & seen


def test_an_unknown_option_is_data_and_an_error_of_the_filesystem(box: Box) -> None:
    box.mount("/mnt", "tmpfs", "tmpfs", ["bogus=1"])
    result = box.create(check=False)
    assert result.rc == 1
    assert "mnt" in result.err
    assert "invalid argument" in result.err.lower()


@pytest.mark.parametrize(
    ("option", "fields"),
    [
        ("private", set()),
        ("rprivate", set()),
        ("slave", set()),
        ("rslave", set()),
        *(
            pytest.param(r + name, {name}, marks=peer_fails("crun", "1.8.1 drops it"))
            for name in ("shared", "unbindable")
            for r in ("", "r")
        ),
    ],
)
def test_propagation(box: Box, option: str, fields: set[str]) -> None:
    (box.path / "source").mkdir()
    box.bind("source", "/mnt", option)
    seen = mountinfo(box)["/mnt"][PROPAGATION]
    assert fields <= seen
    if option.endswith(("private", "unbindable")):
        assert not seen & {"shared", "master"}


def test_propagation_from_the_host(box: Box, place: Path) -> None:
    """rslave: what the host mounts later is seen inside; private: it isn't."""
    source = place / "source"
    (source / "later").mkdir(parents=True)
    box.bind(source, "/slave", "rslave")
    box.bind(source, "/private", "rprivate")
    box.linux["rootfsPropagation"] = "rslave"
    subprocess.run(["mount", "--bind", source, source], check=True)
    subprocess.run(["mount", "--make-shared", source], check=True)
    try:
        box.sh("echo up; read line; ls /slave/later /private/later")
        box.write()
        process = box.runtime.popen("run", "--bundle", box.path, box.id, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        subprocess.run(["mount", "-t", "tmpfs", "none", source / "later"], check=True)
        (source / "later/seen").touch()
        out, _ = process.communicate(b"\n", timeout=20)
        assert out.decode().split() == ["/private/later:", "/slave/later:", "seen"]
    finally:
        subprocess.run(["umount", "-R", source], check=True)


def test_mounts_of_the_container_do_not_reach_the_host(box: Box) -> None:
    box.capabilities("CAP_SYS_ADMIN")
    before = Path("/proc/self/mountinfo").read_text()
    box.create_and_start("mount -t tmpfs none /mnt && echo mounted; sleep 1000")
    box.wait_for_output("mounted")
    assert Path("/proc/self/mountinfo").read_text() == before


def submount(place: Path) -> Path:
    """A directory with a tmpfs below it, on the host."""
    source = place / "source"
    (source / "below").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", source / "below"], check=True)
    (source / "below/file").touch()
    return source


@pytest.mark.parametrize(
    ("option", "below_is"),
    [
        ("rro", "ro"),
        ("ro", "rw"),
        ("rnoexec", "noexec"),
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        pytest.param("rnoatime", "noatime", marks=peer_fails("crun", "EINVAL")),
    ],
)
def test_recursive_options(box: Box, place: Path, option: str, below_is: str) -> None:
    source = submount(place)
    try:
        box.bind(source, "/mnt", "rbind", option)
        seen = mountinfo(box)
        assert option.removeprefix("r") in seen["/mnt"]["options"] or option == "ro"
        assert below_is in seen["/mnt/below"]["options"]
        assert below_is not in parse(Path("/proc/self/mountinfo").read_text())[str(source / "below")]["options"] or (
            below_is == "rw"
        )
    finally:
        subprocess.run(["umount", source / "below"], check=True)


def test_bind_leaves_submounts_and_rbind_takes_them(box: Box, place: Path) -> None:
    source = submount(place)
    try:
        box.bind(source, "/one", "bind")
        box.bind(source, "/all", "rbind")
        assert box.run("ls /one/below /all/below").out.split() == ["/all/below:", "file", "/one/below:"]
    finally:
        subprocess.run(["umount", source / "below"], check=True)


def test_bind_by_option_whatever_the_type(box: Box) -> None:
    (box.path / "file").write_text("content")
    for number, type in enumerate(("bind", "none", "ext4", "")):
        mount = box.mount(f"/mnt/{number}", type, "file", ["bind"])
        if not type:
            del mount["type"]
    assert box.run("cat /mnt/0 /mnt/1 /mnt/2 /mnt/3").out == "content" * 4


def test_relative_source_is_in_the_bundle(box: Box, place: Path) -> None:
    (box.path / "data").mkdir()
    (box.path / "data/f").write_text("bundle")
    (place / "data").mkdir()
    box.bind("data", "/mnt")
    box.sh("cat /mnt/f")
    box.write()
    assert box.runtime("run", "--bundle", box.path, box.id, cwd=place).out == "bundle"


def test_relative_destination_is_below_the_root(box: Box) -> None:
    box.mount("mnt/sub", "tmpfs")
    assert "/mnt/sub" in mountinfo(box)


@peer_fails("runc", "remounts with exactly the flags given, which takes away others that protect")
@peer_fails("crun", "remounts with exactly the flags given, which takes away others that protect")
def test_bind_keeps_flags_that_are_not_asked_away(box: Box, place: Path) -> None:
    """Of a source mounted nosuid,nodev,noexec a read-only bind keeps all three."""
    source = place / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "none", source], check=True)
    try:
        box.bind(source, "/mnt", "ro")
        assert {"ro", "nosuid", "nodev", "noexec"} <= options_of(box)
    finally:
        subprocess.run(["umount", source], check=True)


@peer_fails("runc", "1.1.5 does not; since 1.2")
@pytest.mark.parametrize("option", ["exec", "dev", "suid", "rw"])
def test_bind_clears_flags_that_are_asked_away(box: Box, place: Path, option: str) -> None:
    source = place / "source"
    source.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,nosuid,nodev,noexec", "none", source], check=True)
    subprocess.run(["mount", "--bind", source, source], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro,nosuid,nodev,noexec", source], check=True)
    try:
        box.bind(source, "/mnt", option)
        assert {"exec": "noexec", "dev": "nodev", "suid": "nosuid", "rw": "ro"}[option] not in options_of(box)
    finally:
        subprocess.run(["umount", source], check=True)
        subprocess.run(["umount", source], check=True)


def test_order(box: Box) -> None:
    """config.md: mounts MUST be made in the listed order."""
    box.mount("/mnt", "tmpfs")
    box.mount("/mnt/a", "tmpfs")
    box.bind("first", "/mnt/file")
    box.bind("second", "/mnt/file")
    for name in ("first", "second"):
        (box.path / name).write_text(name)
    assert box.run("cat /mnt/file; test -d /mnt/a && echo and a").out == "secondand a\n"


def test_a_later_mount_hides_an_earlier_one(box: Box) -> None:
    box.mount("/mnt/a", "tmpfs")
    box.mount("/mnt", "tmpfs")
    assert box.run("ls /mnt").out == ""


def test_missing_targets_are_made(box: Box) -> None:
    (box.path / "file").write_text("x")
    (box.path / "dir").mkdir()
    box.bind("file", "/new/deep/file")
    box.bind("dir", "/new/deep/dir")
    box.run("test -f /new/deep/file && test -d /new/deep/dir")
    assert (box.rootfs / "new/deep").stat().st_mode & 0o777 == 0o755


def test_missing_source_is_an_error_that_names_it(box: Box) -> None:
    box.bind("/nonexistent/source", "/mnt")
    result = box.create(check=False)
    assert result.rc == 1
    assert "/nonexistent/source" in result.err
    assert "no such file or directory" in result.err.lower()


@peer_fails("crun", "1.8.1 refuses a link whose target is missing, such as many an image's /etc/resolv.conf")
def test_targets_through_symlinks_stay_inside(box: Box, place: Path) -> None:
    """A link of the image leads to its own tree, never to the host's."""
    outside = place / "outside"
    outside.mkdir()
    (box.rootfs / "abs").symlink_to(outside)
    (box.rootfs / "up").symlink_to("../../../../../../../.." + str(outside))
    (box.rootfs / "loop-free").symlink_to("mnt")
    for target in ("/abs/x", "/up/y", "/loop-free/z"):
        box.mount(target, "tmpfs")
    box.run("true")
    assert list(outside.iterdir()) == []
    assert (box.rootfs / str(outside).lstrip("/") / "x").is_dir()
    assert (box.rootfs / "mnt/z").is_dir()


def test_tmpcopyup(box: Box) -> None:
    (box.rootfs / "data").mkdir()
    (box.rootfs / "data/file").write_text("copied")
    (box.rootfs / "data/link").symlink_to("file")
    (box.rootfs / "data/sub").mkdir(mode=0o700)
    os.chown(box.rootfs / "data/file", 5, 6)
    box.mount("/data", "tmpfs", options=["tmpcopyup"])
    out = box.run("cat /data/link; stat -c '%u %g' /data/file; stat -c %a /data/sub; echo new > /data/file").out
    assert out == "copied5 6\n700\n"
    assert (box.rootfs / "data/file").read_text() == "copied"


def test_tmpfs_has_the_mode_of_the_directory_below(box: Box) -> None:
    box.mount("/tmp", "tmpfs", options=["nosuid"])
    assert box.run("stat -c %a /tmp").out == "1777\n"


IDMAP = peer_fails("runc", "1.1.5 has no idmapped mounts")


@IDMAP
@pytest.mark.parametrize("kind", ["idmap", "mappings"])
def test_idmapped_bind(box: Box, kind: str) -> None:
    source = box.path / "source"
    source.mkdir()
    (source / "f").touch()
    os.chown(source / "f", 0, 0)
    box.add_user_namespace(host=100000)
    mount = box.bind(source, "/mnt", *(["idmap"] if kind == "idmap" else []))
    if kind == "mappings":
        mount["uidMappings"] = mount["gidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert box.run("stat -c '%u %g' /mnt/f; touch /mnt/new").out == "0 0\n"
    assert ((source / "new").stat().st_uid, (source / "new").stat().st_gid) == (0, 0)


@IDMAP
def test_idmapped_bind_without_a_user_namespace(box: Box) -> None:
    source = box.path / "source"
    source.mkdir()
    (source / "f").touch()
    os.chown(source / "f", 7, 8)
    mount = box.bind(source, "/mnt", "idmap")
    mount["uidMappings"] = [{"containerID": 7, "hostID": 1007, "size": 1}]
    mount["gidMappings"] = [{"containerID": 8, "hostID": 1008, "size": 1}]
    assert box.run("stat -c '%u %g' /mnt/f").out == "1007 1008\n"


def test_mqueue_shm_and_devpts_are_the_containers_own(box: Box) -> None:
    box.create()
    root = Path(f"/proc/{box.pid}/root")
    assert (root / "dev/shm").stat().st_dev != os.stat("/dev/shm").st_dev
    assert (root / "dev/mqueue").stat().st_dev not in (0, os.stat("/dev").st_dev)
    assert (root / "dev/pts").stat().st_dev != os.stat("/dev/pts").st_dev
    assert sorted(p.name for p in (root / "dev/pts").iterdir()) == ["ptmx"]


def test_proc_and_sysfs_belong_to_the_containers_namespaces(box: Box) -> None:
    out = box.run("cat /proc/1/comm; ls /sys/class/net; touch /sys/x 2>&1 | grep -c -i read-only").out
    assert out.split() == ["sh", "lo", "1"] or out.split()[0] in ("busybox", "sh")
    assert "lo" in out
    assert "eth0" not in out


def test_cgroup_mount_shows_the_containers_own_cgroups(box: Box) -> None:
    box.mount("/sys/fs/cgroup", "cgroup", options=["nosuid", "noexec", "nodev", "relatime", "ro"])
    out = box.run("cat /proc/self/cgroup; echo --; ls /sys/fs/cgroup; echo --; cat /proc/self/mountinfo").out
    membership, names, infos = out.split("--\n")
    found = {p: m for p, m in parse(infos).items() if m["type"] in ("cgroup", "cgroup2")}
    assert found
    for point, mount in found.items():
        assert point.startswith("/sys/fs/cgroup")
        assert mount["root"] == f"/{box.id}" or mount["root"] == "/../.."[:0] + "/"
        assert "ro" in mount["options"]
    if "cgroup2" not in {m["type"] for m in found.values()} or len(found) > 1:
        controllers = {c for line in membership.splitlines() for c in line.split(":")[1].split(",") if "=" not in c}
        assert {"memory", "pids", "cpu"} & controllers <= set(names.split())


@pytest.mark.parametrize("readonly", [True, False])
def test_cgroup_mount_with_a_cgroup_namespace(box: Box, readonly: bool) -> None:
    box.namespace("cgroup")
    box.mount("/sys/fs/cgroup", "cgroup", options=["nosuid", "noexec", "nodev", *(["ro"] if readonly else [])])
    infos = parse(box.run("cat /proc/self/mountinfo").out)
    found = [m for m in infos.values() if m["type"] in ("cgroup", "cgroup2")]
    assert found
    for mount in found:
        assert ("ro" in mount["options"]) == readonly
        assert mount["root"] == "/"


def test_bind_of_a_socket_and_of_a_device(box: Box) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(box.path / "sock"))
        box.bind("sock", "/mnt/sock")
        box.bind("/dev/zero", "/mnt/zero")
        out = box.run("test -S /mnt/sock && echo socket; head -c 3 /mnt/zero | wc -c").out
    assert out.split() == ["socket", "3"]


def test_a_hundred_mounts(box: Box) -> None:
    for number in range(100):
        box.mount(f"/mnt/{number}", "tmpfs", options=["size=4k"])
    assert box.run("grep -c ' /mnt/' /proc/self/mountinfo").out == "100\n"
