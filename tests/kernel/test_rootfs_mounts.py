"""The mounts of config.json, seen from inside: config.md, Mounts."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ocirt import rootfs
from ocirt.rootfs import options
from tests.kernel.rootfs_lab import DEFAULT_MOUNTS, Failed, Lab, mountinfo, mounts_by_point, mounts_on_host

PROC = DEFAULT_MOUNTS[0]

#: The names of config.md's table.
MUST = """
async atime bind defaults dev diratime dirsync exec iversion lazytime loud noatime nodev nodiratime noexec noiversion
nolazytime norelatime nostrictatime nosuid private rbind relatime remount ro rprivate rshared rslave runbindable rw
shared silent slave strictatime suid sync unbindable mand nomand nosymfollow symfollow ratime rdev rdiratime rexec
rnoatime rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow rro rrw rrelatime rstrictatime rsuid
rsymfollow tmpcopyup idmap ridmap
"""

Mount = dict[str, Any]


def tmpfs(*options: str, at: str = "/mnt") -> Mount:
    return {"destination": at, "type": "tmpfs", "source": "tmpfs", "options": list(options)}


def bind(source: str | Path, *options: str, at: str = "/mnt", how: str = "rbind") -> Mount:
    return {"destination": at, "source": str(source), "options": [how, *options]}


def seen(lab: Lab, *mounts: Mount, at: str = "/mnt", **arguments: Any) -> dict[str, Any]:
    """The mount at `at` as the container sees it."""
    found: dict[str, Any] = lab.run({"mounts": [PROC, *mounts]}, mounts_by_point, **arguments)[at]
    return found


# --- options of the table


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("ro", "ro"),
        ("nosuid", "nosuid"),
        ("nodev", "nodev"),
        ("noexec", "noexec"),
        ("noatime", "noatime"),
        ("nodiratime", "nodiratime"),
        ("relatime", "relatime"),
        ("nosymfollow", "nosymfollow"),
        ("rro", "ro"),
        ("rnosuid", "nosuid"),
        ("rnodev", "nodev"),
        ("rnoexec", "noexec"),
        ("rnoatime", "noatime"),
        ("rnodiratime", "nodiratime"),
        ("rnosymfollow", "nosymfollow"),
    ],
)
@pytest.mark.parametrize("new", [True, False], ids=["tmpfs", "bind"])
def test_an_option_sets_an_attribute(modern: Lab, option: str, expected: str, new: bool) -> None:
    found = seen(modern, tmpfs(option) if new else bind("/etc", option))
    assert expected in found["options"]
    assert "rw" in found["options"] or expected == "ro"


@pytest.mark.parametrize("option", ["strictatime", "rstrictatime"])
def test_strictatime(modern: Lab, option: str) -> None:
    found = seen(modern, tmpfs(option))
    assert "relatime" not in found["options"]
    assert "noatime" not in found["options"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["ro", "rw"], "rw"),
        (["rw", "ro"], "ro"),
        (["noatime", "atime"], "relatime"),
        (["strictatime", "nostrictatime"], "relatime"),
        (["relatime", "norelatime"], "relatime"),
        (["noatime", "relatime"], "relatime"),
        (["defaults"], "rw"),
    ],
)
def test_the_last_of_contradicting_options_wins(lab: Lab, options: list[str], expected: str) -> None:
    assert expected in seen(lab, tmpfs(*options))["options"]
    assert expected in seen(lab, bind("/etc", *options))["options"]


@pytest.mark.parametrize(
    ("set_on_source", "option"),
    [
        ("ro", "rw"),
        ("nosuid", "suid"),
        ("nodev", "dev"),
        ("noexec", "exec"),
        ("noatime", "atime"),
        ("noatime", "relatime"),
        ("noatime", "strictatime"),
        ("nodiratime", "diratime"),
        ("nosymfollow", "symfollow"),
    ],
)
@pytest.mark.parametrize("recursive", ["", "r"])
def test_an_option_clears_what_the_source_has(modern: Lab, set_on_source: str, option: str, recursive: str) -> None:
    source = modern.bundle / "source"
    source.mkdir()

    def setup() -> None:
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "-t", "tmpfs", "-o", f"{set_on_source},size=1m", "tmpfs", str(source))

    assert set_on_source in seen(modern, bind(source), setup=setup)["options"]
    found = seen(modern, bind(source, recursive + option), setup=setup)
    assert set_on_source not in found["options"]


def test_attributes_of_the_source_that_no_option_mentions_stay(lab: Lab) -> None:
    source = lab.bundle / "source"
    source.mkdir()

    def setup() -> None:
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "-t", "tmpfs", "-o", "nosuid,nodev,noatime,size=1m", "tmpfs", str(source))

    found = seen(lab, bind(source, "ro", "noexec"), setup=setup)["options"]
    assert set(found) == {"ro", "nosuid", "nodev", "noexec", "noatime"}


@pytest.mark.parametrize("option", ["sync", "dirsync", "mand", "lazytime"])
def test_flags_of_the_file_system(lab: Lab, option: str) -> None:
    found = seen(lab, tmpfs(option, "size=1m"))
    if option != "mand":  # mandatory locking left the kernel in 5.15; the option is accepted
        assert option in found["super"]
    clear = {"sync": "async", "dirsync": None, "mand": "nomand", "lazytime": "nolazytime"}[option]
    if clear:
        assert option not in seen(lab, tmpfs(option, clear))["super"]
    # the same where the file system is made as a detached mount
    if option != "mand":
        assert option in seen(lab, tmpfs(option, "rslave"))["super"]


def test_every_option_of_the_table_is_accepted(modern: Lab) -> None:
    must = MUST.split()
    assert set(must) <= set(options.NAMES)
    plain = [o for o in must if o not in ("bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap")]
    mounts = [tmpfs(o, at=f"/tmp/{o}") for o in plain if o != "iversion"]
    points = modern.run({"mounts": [PROC, *mounts, tmpfs("tmpcopyup", at="/tmp/x")]}, mounts_by_point)
    assert all(f"/tmp/{o}" in points for o in plain if o != "iversion")


def test_iversion_is_a_flag_for_the_kernel(lab: Lab) -> None:
    # tmpfs ignores it; as data ("iversion") it would be refused
    assert seen(lab, tmpfs("iversion", "size=1m"))["type"] == "tmpfs"
    assert seen(lab, tmpfs("iversion", "noiversion", "rslave"))["type"] == "tmpfs"


# --- recursive options, propagation


def nested_source(lab: Lab) -> tuple[Path, Callable[[], None]]:
    source = lab.bundle / "source"
    (source / "below").mkdir(parents=True)

    def setup() -> None:
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "--bind", str(source), str(source))
        mounts_on_host("mount", "-t", "tmpfs", "tmpfs", str(source / "below"))

    return source, setup


def test_recursive_options_reach_mounts_below(modern: Lab) -> None:
    source, setup = nested_source(modern)
    (source / "below").mkdir(exist_ok=True)
    points = modern.run({"mounts": [PROC, bind(source, "rro", "rnosuid")]}, mounts_by_point, setup=setup)
    for point in ("/mnt", "/mnt/below"):
        assert {"ro", "nosuid"} <= set(points[point]["options"])
    points = modern.run({"mounts": [PROC, bind(source, "ro")]}, mounts_by_point, setup=setup)
    assert "ro" in points["/mnt"]["options"]
    assert "rw" in points["/mnt/below"]["options"]


def test_bind_is_not_recursive(lab: Lab) -> None:
    source, setup = nested_source(lab)
    points = lab.run({"mounts": [PROC, bind(source, how="bind")]}, mounts_by_point, setup=setup)
    assert "/mnt/below" not in points


def test_recursive_options_without_mount_setattr_are_an_error(lab: Lab) -> None:
    lab.without = (*lab.without, "mount_setattr")
    with pytest.raises(Failed, match=r"mount_setattr.*recursive mount options need Linux 5\.12"):
        seen(lab, bind("/etc", "rro"))


@pytest.mark.parametrize("new", [True, False], ids=["tmpfs", "bind"])
@pytest.mark.parametrize(
    ("option", "expected"),
    [("shared", "shared"), ("rshared", "shared"), ("private", ""), ("unbindable", "unbindable"), ("slave", "")],
)
def test_propagation_of_one_mount(lab: Lab, option: str, expected: str, new: bool) -> None:
    found = seen(lab, tmpfs(option) if new else bind("/etc", option))
    kinds = {o.partition(":")[0] for o in found["optional"]} - (
        {"master"} if option in ("slave", "shared", "rshared") else set()
    )
    assert kinds == ({expected} if expected else set())


def test_a_slave_sees_what_the_host_mounts_later(lab: Lab) -> None:
    """Volumes receive mounts from the host by default, and not with `private`."""
    volume = lab.bundle / "volume"
    (volume / "late").mkdir(parents=True)
    ready, go = os.pipe(), os.pipe()

    def host() -> None:
        mounts_on_host("mount", "--make-rprivate", "/")
        mounts_on_host("mount", "-t", "tmpfs", "tmpfs", str(volume))
        mounts_on_host("mount", "--make-shared", str(volume))
        (volume / "late").mkdir()
        if os.fork() == 0:  # the host goes on in its own mount namespace
            try:
                os.read(ready[0], 1)
                mounts_on_host("mount", "-t", "tmpfs", "tmpfs", str(volume / "late"))
                os.write(go[1], b"x")
            finally:
                os._exit(0)
        lab.unshare("mount")

    def probe(_: object) -> list[bool]:
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        points = mounts_by_point()
        os.wait()
        return ["/mnt/late" in points, "/tmp/late" in points]

    mounts = [PROC, bind(volume, "rslave"), bind(volume, "rprivate", at="/tmp")]
    assert lab.run({"mounts": mounts}, probe, setup=host) == [True, False]


# --- where and what


def test_order_nesting_and_made_directories(lab: Lab) -> None:
    mounts = [tmpfs(at="/a"), tmpfs(at="/a/b/c"), bind("/etc/hostname", at="/a/b/c/d/file"), tmpfs(at="relative/x")]
    points = lab.run({"mounts": [PROC, *mounts]}, mounts_by_point)
    assert {"/a", "/a/b/c", "/a/b/c/d/file", "/relative/x"} <= set(points)
    assert points["/a/b/c"]["parent"] == points["/a"]["id"]
    made = lab.rootfs / "relative" / "x"
    assert stat.S_IMODE(made.stat().st_mode) == 0o755


def test_the_same_place_twice_stacks(lab: Lab) -> None:
    mounts = [tmpfs("size=1m"), tmpfs("size=2m")]
    info = lab.run({"mounts": [PROC, *mounts]}, lambda _: mountinfo())
    assert [m["super"][1] for m in info if m["point"] == "/mnt"] == ["size=1024k", "size=2048k"]


def test_relative_source_is_in_the_bundle(lab: Lab) -> None:
    (lab.bundle / "volume").mkdir()
    (lab.bundle / "volume" / "file").write_text("here")
    os.chdir("/")
    assert lab.run({"mounts": [bind("volume")]}, lambda _: Path("/mnt/file").read_text()) == "here"


def test_type_of_a_bind_mount_does_not_matter(lab: Lab) -> None:
    mount = {**bind("/etc"), "type": "nonsense"}
    assert seen(lab, mount)["type"] != "nonsense"


def test_bind_on_existing_file_and_directory_through_links_of_the_image(lab: Lab) -> None:
    (lab.rootfs / "run").mkdir()
    (lab.rootfs / "var" / "run").symlink_to("/run")
    (lab.rootfs / "etc" / "resolv.conf").symlink_to("../run/systemd/resolve/stub.conf")
    mounts = [tmpfs(at="/var/run/secrets"), bind("/etc/hostname", at="/etc/resolv.conf")]
    points = lab.run({"mounts": [PROC, *mounts]}, mounts_by_point)
    assert "/run/secrets" in points
    assert "/run/systemd/resolve/stub.conf" in points


def test_dot_dot_stays_inside(lab: Lab) -> None:
    points = lab.run({"mounts": [PROC, tmpfs(at="/../../../mnt/../tmp/./x/")]}, mounts_by_point)
    assert "/tmp/x" in points


def test_names_that_are_not_ascii(lab: Lab) -> None:
    (lab.bundle / "quelle ä").mkdir()
    points = lab.run({"mounts": [PROC, bind("quelle ä", at="/mnt/ziel ü\n")]}, mounts_by_point)
    assert "/mnt/ziel\\040ü\\012" in points


def test_root_can_be_mounted_over(lab: Lab) -> None:
    def probe(_: object) -> list[str]:
        return sorted(os.listdir("/"))

    other = lab.bundle / "other"
    (other / "unmistakable").mkdir(parents=True)
    (other / "dev").mkdir()
    assert "unmistakable" in lab.run({"mounts": [bind(other, at="/")]}, probe)


def test_remount(modern: Lab) -> None:
    mounts = [
        tmpfs("nosuid", "size=1m"),
        {"destination": "/mnt", "type": "tmpfs", "options": ["remount", "size=2m", "ro"]},
    ]
    found = seen(modern, *mounts)
    assert {"ro", "nosuid"} <= set(found["options"])
    assert "size=2048k" in found["super"]
    found = seen(
        modern, tmpfs("size=1m", "noexec"), {"destination": "/mnt", "options": ["bind", "remount", "ro", "exec"]}
    )
    assert "ro" in found["options"]
    assert "noexec" not in found["options"]
    assert "rw" in found["super"]


def test_remount_needs_a_mount(lab: Lab) -> None:
    with pytest.raises(Failed, match="is it a mount point"):
        seen(lab, {"destination": "/mnt", "type": "tmpfs", "options": ["remount", "ro"]})


def test_more_data_than_fsconfig_takes(lab: Lab) -> None:
    """overlayfs with long layer paths, among them one with a propagation that asks for a detached mount."""
    names = ["l" + str(i) * 60 for i in range(6)]
    for name in (*names, "up", "work"):
        (lab.bundle / name).mkdir()
    lower = ":".join(f"{lab.bundle}/{n}" for n in names)
    data = [f"lowerdir={lower}", f"upperdir={lab.bundle}/up", f"workdir={lab.bundle}/work"]
    mount = {"destination": "/mnt", "type": "overlay", "source": "overlay", "options": [*data, "rslave", "nosuid"]}
    found = seen(lab, mount)
    assert found["type"] == "overlay"
    assert "nosuid" in found["options"]


def test_data_that_mount_would_cut_off_is_an_error(lab: Lab) -> None:
    with pytest.raises(Failed, match="longer than 4095 bytes"):
        seen(lab, tmpfs("size=1m", "nosuid", "huge=" + "x" * 4096))


def test_data_may_hold_several_options(lab: Lab) -> None:
    found = seen(lab, tmpfs("mode=700,size=1m", "rslave"))
    assert {"mode=700", "size=1024k"} <= set(found["super"])
    assert options.split_data(['context="a:b:c1,c2",size=1', "flag", "lowerdir=a\\,b"]) == [
        ("context", "a:b:c1,c2"),
        ("size", "1"),
        ("flag", None),
        ("lowerdir", "a\\,b"),
    ]


def test_options_that_only_mount8_knows_are_not_given_to_the_file_system(lab: Lab) -> None:
    found = seen(lab, tmpfs("x-systemd.automount", "X-mount.mkdir", "comment=what", "_netdev", "noauto", "size=1m"))
    assert "size=1024k" in found["super"]


# --- tmpfs


def mode_of(path: str) -> Callable[[object], int]:
    return lambda _: stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("late", [False, True])
def test_tmpfs_inherits_the_mode_of_its_directory(lab: Lab, late: bool) -> None:
    more = ("ro",) if late else ()
    (lab.rootfs / "mnt").chmod(0o2770)
    assert lab.run({"mounts": [tmpfs("size=1m", *more)]}, mode_of("/mnt")) == 0o2770
    assert lab.run({"mounts": [tmpfs("mode=0751", *more)]}, mode_of("/mnt")) == 0o751
    assert lab.run({"mounts": [tmpfs("size=1m,mode=0750", *more)]}, mode_of("/mnt")) == 0o750
    assert lab.run({"mounts": [tmpfs(*more, at="/fresh")]}, mode_of("/fresh")) == 0o1777


def test_readonly_tmpfs_still_gets_what_is_mounted_in_it(lab: Lab) -> None:
    mounts = [PROC, tmpfs("ro", at="/run"), bind("/etc/hostname", "ro", at="/run/secrets/name")]
    points = lab.run({"mounts": mounts}, mounts_by_point)
    assert "ro" in points["/run"]["options"]
    assert "/run/secrets/name" in points


def test_tmpcopyup(lab: Lab) -> None:
    source = lab.rootfs / "data"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "file").write_bytes(b"x" * 100_000)
    os.chown(source / "sub" / "file", 12, 34)
    (source / "sub" / "file").chmod(0o4751)
    os.utime(source / "sub" / "file", ns=(10**18, 10**18 + 5))
    os.setxattr(source / "sub" / "file", "trusted.test", b"value")
    (source / "sub").chmod(0o750)
    os.chown(source, 5, 6)
    (source / "link").symlink_to("/nowhere")
    os.mkfifo(source / "fifo", 0o640)
    os.mknod(source / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))

    def probe(_: object) -> dict[str, Any]:
        (root, sub, file, fifo, null) = (os.lstat(f"/data/{n}") for n in ("", "sub", "sub/file", "fifo", "null"))
        Path("/data/new").write_text("new")
        return {
            "root": (root.st_uid, root.st_gid),
            "sub": stat.S_IMODE(sub.st_mode),
            "file": (stat.S_IMODE(file.st_mode), file.st_uid, file.st_gid, file.st_size, file.st_mtime_ns),
            "xattr": os.getxattr("/data/sub/file", "trusted.test").decode(),
            "link": os.readlink("/data/link"),
            "kinds": (stat.S_ISFIFO(fifo.st_mode), stat.S_ISCHR(null.st_mode), null.st_rdev == os.makedev(1, 3)),
            "type": mounts_by_point()["/data"]["type"],
        }

    found = lab.run({"mounts": [PROC, tmpfs("tmpcopyup", at="/data")]}, probe, prepare=rootfs.prepare_trees)
    assert found == {
        "root": [5, 6],
        "sub": 0o750,
        "file": [0o4751, 12, 34, 100_000, 10**18 + 5],
        "xattr": "value",
        "link": "/nowhere",
        "kinds": [True, True, True],
        "type": "tmpfs",
    }
    assert not (source / "new").exists()
    found = lab.run(
        {"mounts": [PROC, tmpfs("tmpcopyup", "ro", at="/data")]},
        lambda _: [mounts_by_point()["/data"]["options"][0], os.readlink("/data/link")],
        prepare=rootfs.prepare_trees,
    )
    assert found == ["ro", "/nowhere"]


def test_tmpcopyup_that_does_not_fit(lab: Lab) -> None:
    (lab.rootfs / "data").mkdir()
    (lab.rootfs / "data" / "big").write_bytes(b"x" * 300_000)
    with pytest.raises(Failed, match=r"copy up: big: .*no space left on device"):
        lab.run({"mounts": [tmpfs("tmpcopyup", "size=64k", at="/data")]}, prepare=rootfs.prepare_trees)


def test_tmpcopyup_of_very_deep_directories(lab: Lab) -> None:
    deep = "/".join(["d"] * 400)
    (lab.rootfs / "data" / deep).mkdir(parents=True)
    with pytest.raises(Failed, match="nested more than"):
        lab.run({"mounts": [tmpfs("tmpcopyup", at="/data")]}, prepare=rootfs.prepare_trees)


# --- crun's extra options


def test_copy_symlink(lab: Lab) -> None:
    (lab.bundle / "link").symlink_to("some/where")
    mount = bind("link", "copy-symlink", at="/etc/made/link")
    assert lab.run({"mounts": [mount, mount]}, lambda _: os.readlink("/etc/made/link")) == "some/where"
    (lab.bundle / "link2").symlink_to("else/where")
    with pytest.raises(Failed, match='exists and is not a link to "else/where"'):
        lab.run({"mounts": [mount, bind("link2", "copy-symlink", at="/etc/made/link")]})
    (lab.bundle / "plain").mkdir()
    assert "/mnt" in lab.run({"mounts": [PROC, bind("plain", "copy-symlink")]}, mounts_by_point)


def test_src_nofollow_and_dest_nofollow(modern: Lab) -> None:
    (modern.bundle / "link").symlink_to("the/source")
    (modern.rootfs / "mnt" / "target").symlink_to("the/image")
    mount = bind("link", "src-nofollow", "dest-nofollow", at="/mnt/target")
    assert modern.run({"mounts": [mount]}, lambda _: os.readlink("/mnt/target")) == "the/source"
    assert os.readlink(modern.rootfs / "mnt" / "target") == "the/image"


# --- errors


@pytest.mark.parametrize(
    ("mount", "text"),
    [
        (tmpfs("bogus"), r'mount\("tmpfs", "/mnt", "tmpfs", "", "mode=0755,bogus"\): inv.*option "bogus".*bogus'),
        (tmpfs("size=lots"), 'option "size=lots"'),
        (tmpfs("bogus", "rslave"), 'option "bogus"'),
        ({"destination": "/mnt", "type": "nonesuchfs"}, 'no such device .the kernel has no filesystem "nonesuchfs"'),
        ({"destination": "/mnt", "type": "bind", "source": "/etc"}, 'has the option "bind" or "rbind"'),
        ({"destination": "/mnt", "source": "/etc"}, 'no type is given, and no option "bind" or "rbind"'),
        (bind("/nonexistent"), r'"/nonexistent".: no such file or directory'),
        (bind("/etc", at="/bin/busybox"), "not a directory|a directory can be mounted only on a directory"),
        (bind("/etc/hostname", at="/mnt"), "a file only on a file"),
        ({"destination": "/mnt", "type": "ext4", "source": "/dev/null"}, "block device required"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(lab: Lab, mount: Mount, text: str) -> None:
    if "fsopen" in lab.without and "option" in text and "no type" not in text and "has the" not in text:
        text = "invalid argument"  # only fsopen(2) knows which
    with pytest.raises(Failed, match=text):
        lab.run({"mounts": [mount]})


def test_mount_label_is_given_to_file_systems_that_take_it(lab: Lab) -> None:
    """Without SELinux the kernel refuses the option: that it does shows that it was given."""
    label = "system_u:object_r:svirt_sandbox_file_t:s0:c715,c811"
    with pytest.raises(Failed, match=rf'context="{label}"'):
        lab.run({"mounts": [tmpfs("size=1m")], "linux": {"mountLabel": label}})
    annotations = {"run.oci.mount_context_type": "rootcontext"}
    with pytest.raises(Failed, match=rf'rootcontext="{label}"'):
        lab.run({"mounts": [tmpfs("size=1m")], "linux": {"mountLabel": label}, "annotations": annotations})
    with pytest.raises(Failed, match=r'setxattr\("security.selinux", "system_u'):
        lab.run({"mounts": [DEFAULT_MOUNTS[4]], "linux": {"mountLabel": label}})
    for mount in (PROC, DEFAULT_MOUNTS[5], bind("/etc")):
        lab.run({"mounts": [mount], "linux": {"mountLabel": label}})


# --- /proc


def test_nothing_goes_below_proc_but_what_lxcfs_emulates(lab: Lab) -> None:
    for path in ("/proc/self/attr", "/proc/sysrq-trigger", "proc/1", "/mnt/../proc/version", "/proc/sys"):
        with pytest.raises(Failed, match="cannot be mounted because it is inside /proc"):
            lab.run({"mounts": [PROC, bind("/etc/hostname", at=path)]})
    (lab.bundle / "fake").write_text("fake")
    mounts = [PROC, bind("fake", at="/proc/uptime")]
    if os.path.exists("/proc/sys/kernel/ns_last_pid"):
        mounts.append(bind("fake", at="/proc/sys/kernel/ns_last_pid"))
    assert lab.run({"mounts": mounts}, lambda _: Path("/proc/uptime").read_text()) == "fake"


def test_a_link_of_the_image_does_not_lead_into_proc(lab: Lab) -> None:
    (lab.rootfs / "innocent").symlink_to("/proc/self/attr")
    with pytest.raises(Failed, match="inside /proc"):
        lab.run({"mounts": [PROC, bind("/etc", at="/innocent")]})
    (lab.rootfs / "innocent2").symlink_to("proc")
    with pytest.raises(Failed, match="inside /proc"):
        lab.run({"mounts": [PROC, tmpfs(at="/innocent2/sys")]})


def test_proc_must_be_a_procfs(lab: Lab) -> None:
    with pytest.raises(Failed, match="not of type proc"):
        lab.run({"mounts": [tmpfs(at="/proc")]})
    with pytest.raises(Failed, match="not of type proc"):
        lab.run({"mounts": [bind("/etc", at="/proc/")]})
    with pytest.raises(Failed, match="not of type proc"):
        lab.run({"mounts": [bind("/proc/sys", at="/proc")]})
    assert lab.run({"mounts": [bind("/proc", at="/proc")]}, mounts_by_point)["/proc"]["type"] == "proc"
