"""Root file systems as snapshotters describe them, and what options say about them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.engines.containerd import schema, ttrpc
from tests.engines.containerd.engine import Engine, Task, mount
from tests.harness.leftovers import mounts


def output(task: Task) -> str:
    """Start, wait, and what was written."""
    task.start()
    task.wait()
    assert task.out
    assert task.err
    text = (task.out.all() + task.err.all()).decode()
    task.delete()
    assert not task.rootfs_mounted(), "Delete unmounts the root file system"
    task.leave()
    return text


def overlay(engine: Engine, lower: str = "", **more: str) -> Any:
    """An overlay over the image."""
    upper, work = engine.place / "upper", engine.place / "work"
    for path in (upper, work):
        path.mkdir(exist_ok=True)
    options = [f"{key}={value}" for key, value in more.items()]
    return mount(
        "overlay", "overlay", f"lowerdir={lower or engine.image}", f"upperdir={upper}", f"workdir={work}", *options
    )


def test_overlay(engine: Engine) -> None:
    task = engine.task("echo written > /file; cat /file; df / | tail -n 1")
    task.create(rootfs=[overlay(engine)])
    assert task.rootfs_mounted()
    assert "written\noverlay" in output(task)
    assert (engine.place / "upper/file").read_text() == "written\n"
    assert not (engine.image / "file").exists()


def test_read_only_bind(engine: Engine) -> None:
    task = engine.task("touch /file; echo $?")
    task.create(rootfs=[mount("bind", engine.image, "rbind", "ro")])
    text = output(task)
    assert "Read-only file system" in text
    assert "1\n" in text


def test_directory_of_the_bundle(engine: Engine) -> None:
    """No mounts: what is in rootfs is used as it is."""
    task = engine.task("cat /mine")
    subprocess.run(["cp", "-a", f"{engine.image}/.", task.bundle.rootfs], check=True)
    (task.bundle.rootfs / "mine").write_text("in the bundle\n")
    task.create(rootfs=[])
    assert output(task) == "in the bundle\n"


def test_options_of_a_mount(engine: Engine) -> None:
    task = engine.task("head -n 1 /proc/self/mountinfo")
    task.create(rootfs=[mount("bind", engine.image, "rbind", "ro", "nosuid", "nodev", "noatime")])
    text = output(task)
    for option in ("ro", "nosuid", "nodev", "noatime"):
        assert option in text


def test_tmpfs_with_data(engine: Engine) -> None:
    """What is no flag is data of the file system."""
    task = engine.task("true")
    mounts_ = [mount("tmpfs", "tmpfs", "size=3m", "mode=755")]
    try:
        task.create(rootfs=mounts_)
    except ttrpc.RpcError as error:
        assert "no such file" in error.text or "executable" in error.text or "not found" in error.text
        task.leave()
        return
    raise AssertionError("a container in an empty root file system")


def test_loop(engine: Engine) -> None:
    """`loop`: a file is mounted by a loop device, which goes with the mount."""
    if not os.path.exists("/dev/loop-control"):
        pytest.skip("the kernel has no loop devices")
    image = engine.place / "disk.img"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    made = subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-d", str(engine.image), str(image)], check=False, capture_output=True
    )
    assert made.returncode == 0, made.stderr
    if not loops():
        pytest.skip("the kernel makes no loop devices here")
    task = engine.task("df / | tail -n 1; echo mine > /file; cat /file")
    try:
        task.create(rootfs=[mount("ext4", image, "loop")])
    except ttrpc.RpcError as error:
        assert "file system" in error.text or "device" in error.text, error
        raise
    text = output(task)
    assert "/dev/loop" in text
    assert "mine" in text
    left = subprocess.run(["losetup", "-j", str(image)], capture_output=True, text=True, check=False).stdout
    assert left == ""


def loops() -> bool:
    done = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and os.path.exists(done.stdout.strip()) and " ext4" in filesystems()


def filesystems() -> str:
    return Path("/proc/filesystems").read_text().replace("\t", " ")


def test_many_layers(engine: Engine) -> None:
    """Options that are longer than a page: lower directories relative to a common one."""
    top = engine.place / ("layers-" + "x" * 60)
    layers = []
    for number in range(60):
        layer = top / f"layer{number}" / "fs"
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text(f"{number}\n")
        layers.append(str(layer))
    base = top / "base"
    base.symlink_to(engine.image)
    last = top / "image" / "fs"
    last.parent.mkdir()
    subprocess.run(["cp", "-a", str(engine.image), str(last)], check=True)
    layers.append(str(last))
    lower = ":".join(layers)
    assert len(lower) > 4096
    task = engine.task("cat /file0 /file31 /file59")
    task.create(rootfs=[overlay(engine, lower)])
    assert output(task) == "0\n31\n59\n"


@pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="the kernel has no FUSE")
def test_fuse(engine: Engine) -> None:
    """fuse3.PROGRAM, as the fuse-overlayfs snapshotter describes its mounts: by mount.fuse3."""
    missing = [name for name in ("mount.fuse3", "fuse-overlayfs") if not shutil.which(name)]
    assert not missing, f"apt-get install fuse3 fuse-overlayfs: there is no {' '.join(missing)}"
    upper, work = engine.place / "upper", engine.place / "work"
    upper.mkdir()
    work.mkdir()
    task = engine.task("echo written > /file; cat /file")
    options = (f"lowerdir={engine.image}", f"upperdir={upper}", f"workdir={work}")
    task.create(rootfs=[mount("fuse3.fuse-overlayfs", "overlay", *options)])
    assert output(task) == "written\n"
    assert (upper / "file").read_text() == "written\n"
    assert not (engine.image / "file").exists()


def test_fuse_that_fails(engine: Engine) -> None:
    """The helper's own words are in the error."""
    task = engine.task()
    error = task.shim.fails("Create", **task.request(rootfs=[mount("fuse3.no-such-program", "overlay", "a=b")]))
    assert "no-such-program" in error.text
    assert not task.rootfs_mounted()
    task.leave()


@pytest.mark.shim_fails("runc", "1.6 doesn't know `target`")
def test_target(engine: Engine) -> None:
    """A mount may be for a directory below."""
    source = engine.place / "source"
    source.mkdir()
    (source / "file").write_text("below\n")
    task = engine.task("cat /mnt/file")
    task.create(rootfs=[mount("bind", engine.image, "rbind"), mount("bind", source, "rbind", target="/mnt")])
    assert output(task) == "below\n"


def test_target_that_leads_out(engine: Engine) -> None:
    """A symbolic link of the image doesn't lead a mount to the host."""
    image = engine.place / "image"
    subprocess.run(["cp", "-a", str(engine.image), str(image)], check=True)
    outside = engine.place / "outside"
    outside.mkdir()
    (image / "way").symlink_to(outside)
    (image / str(outside).lstrip("/")).mkdir(parents=True)
    task = engine.task("true")
    try:
        task.create(rootfs=[mount("bind", image, "rbind"), mount("tmpfs", "tmpfs", target="/way")])
        assert str(outside) not in mounts().values()
        task.delete()
    except ttrpc.RpcError:
        pass
    task.leave()
    assert str(outside) not in mounts().values()


@pytest.mark.shim_fails("runc", "1.6 doesn't know them")
def test_mounts_for_a_later_containerd(engine: Engine) -> None:
    """What containerd should have done itself is refused, by name."""
    task = engine.task()
    wrong = mount("bind", engine.image, "rbind", "X-containerd.mkdir.path=/x")
    error = task.shim.fails("Create", **task.request(rootfs=[wrong]))
    if engine.kind.name == "ocirt":
        assert "X-containerd" in error.text
    task.leave()


@pytest.mark.shim_fails("runc", "1.7 brought idmapped root file systems", always=False)
def test_idmapped(engine: Engine) -> None:
    """uidmap= and gidmap=: the image's root is the container's root in its user namespace."""
    bundle = engine.bundle(
        "stat -c '%u %g' /bin/busybox; cat /proc/self/uid_map; touch /tmp/mine; stat -c %u /tmp/mine"
    )
    bundle.namespace("user")
    bundle.linux["uidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    bundle.linux["gidMappings"] = [{"containerID": 0, "hostID": 200000, "size": 65536}]
    for path in (engine.place, *bundle.path.parents):
        if str(path).startswith(str(engine.place)):
            path.chmod(0o755)
    os.chown(bundle.path, 0, 200000)
    bundle.path.chmod(0o710)
    os.chown(bundle.rootfs, 200000, 200000)
    image = engine.place / "image"
    subprocess.run(["cp", "-a", str(engine.image), str(image)], check=True)
    task = engine.task(bundle=bundle)
    mapping = ("uidmap=0:200000:65536", "gidmap=0:200000:65536")
    task.create(
        rootfs=[mount("bind", image, "rbind", *mapping)],
        options=engine.options(io_uid=200000, io_gid=200000),
    )
    words = output(task).split()
    assert words[:5] == ["0", "0", "0", "200000", "65536"]
    assert words[5] == "0"


# options


def test_no_pivot_root(engine: Engine) -> None:
    task = engine.task("echo fine")
    task.create(options=engine.options(no_pivot_root=True))
    assert output(task) == "fine\n"


def test_no_new_keyring(engine: Engine) -> None:
    """The session keyring is the shim's, or one of the container's own."""
    task = engine.task("echo fine")
    task.create(options=engine.options(no_new_keyring=True))
    assert output(task) == "fine\n"


def test_root_of_states(engine: Engine) -> None:
    """Option root: where the state of containers is, in a directory of the namespace."""
    root = engine.place / "states"
    task = engine.task()
    task.create(options=engine.options(root=str(root)))
    assert (root / engine.namespace / task.id).is_dir()
    task.start()
    task.end()
    assert not (root / engine.namespace / task.id).exists()


def runtime_options(**fields: Any) -> Any:
    """What the CRI plugin and dockerd send to a shim that isn't runc's."""
    return schema.any_of("runtimeoptions.v1.Options", type_url="io.containerd.runtimeoptions.v1.Options", **fields)


@pytest.mark.shim_fails("runc", "takes its own options only")
def test_options_by_toml(engine: Engine) -> None:
    """config_body: the table of options of containerd's configuration."""
    root = engine.place / "states"
    task = engine.task()
    body = f'Root = "{root}"\nNoPivotRoot = false\nSystemdCgroup = false\n'.encode()
    task.create(options=runtime_options(config_body=body))
    assert (root / engine.namespace / task.id).is_dir()
    task.start()
    task.end()


@pytest.mark.shim_fails("runc", "takes its own options only")
def test_options_by_a_file(engine: Engine) -> None:
    """config_path, as `ctr run --runtime-config-path` sends it."""
    root = engine.place / "states"
    file = engine.place / "options.toml"
    file.write_text(f'Root = "{root}"\n')
    task = engine.task()
    task.create(options=runtime_options(config_path=str(file)))
    assert (root / engine.namespace / task.id).is_dir()
    task.start()
    task.end()


@pytest.mark.shim_fails("runc", "takes its own options only")
def test_empty_options(engine: Engine) -> None:
    """What 1.6's CRI plugin sends: neither."""
    task = engine.task("echo fine")
    task.create(options=runtime_options())
    assert output(task) == "fine\n"


@pytest.mark.parametrize("body", [b"no toml [", b"\xff", b'SystemdCgroup = "perhaps"\n'])
def test_options_that_cannot_be_read(engine: Engine, body: bytes) -> None:
    task = engine.task()
    error = task.shim.fails("Create", **task.request(options=runtime_options(config_body=body)))
    if engine.kind.name == "ocirt":
        assert "Traceback" not in error.text
        assert "option" in error.text.lower() or "toml" in error.text.lower() or "SystemdCgroup" in error.text
    task.leave()


@pytest.mark.shim_fails("runc", "takes its own options only")
def test_options_given_to_start(engine: Engine) -> None:
    """The options that `start` reads have no effect on Create's."""
    task = engine.task(options=runtime_options(config_body=b"NoPivotRoot = true\n"))
    task.create()
    task.delete()
    task.leave()
