"""Resolving paths below a root: the kernel's way and ours must agree, and neither may leave the root."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocirt.errors import Error
from ocirt.linux import paths
from tests.kernel.rootfs_lab import Lab

NAMES = ("a", "b", "link", "up", "abs", "loop", "gone", "file")
COMPONENTS = st.sampled_from([*NAMES, "..", ".", ""])
PATHS = st.lists(COMPONENTS, min_size=0, max_size=8).map("/".join)
TARGETS = st.lists(st.sampled_from([*NAMES, "..", "."]), min_size=1, max_size=5).map("/".join)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


def make_tree(top: Path, targets: list[str]) -> None:
    """Directories three deep, each with files and links; absolute links and links above the root among them."""
    numbers = iter(range(1000))
    for directory in (
        top,
        top / "a",
        top / "b",
        top / "a" / "b",
        top / "a" / "a",
        top / "b" / "a",
        top / "a" / "b" / "a",
    ):
        directory.mkdir(exist_ok=True)
        (directory / "file").write_text(str(directory))
        (directory / "loop").symlink_to("loop")
        (directory / "link").symlink_to(targets[next(numbers) % len(targets)])
        (directory / "up").symlink_to("../" * (next(numbers) % 5) + targets[next(numbers) % len(targets)])
        (directory / "abs").symlink_to("/" + targets[next(numbers) % len(targets)])


def outcome(root: int, path: str, flags: int, links: bool, walking: bool) -> tuple[int, int] | str:
    """(device, inode) of what the path leads to, or the errno's name."""
    try:
        if walking:
            fd = paths._open_by_walking(root, path.lstrip("/").encode() or b".", flags, 0, links)
        else:
            fd = paths.open_in_root(root, path, flags, links=links)
    except Error as error:
        return os.strerror(error.errno)
    try:
        found = os.fstat(fd)
        return found.st_dev, found.st_ino
    finally:
        os.close(fd)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    targets=st.lists(TARGETS, min_size=1, max_size=6),
    asked=st.lists(PATHS, min_size=5, max_size=20),
    flags=st.sampled_from([0, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_DIRECTORY | os.O_NOFOLLOW]),
    links=st.booleans(),
)
def test_walking_and_openat2_agree(targets: list[str], asked: list[str], flags: int, links: bool) -> None:
    top = Path(tempfile.mkdtemp(prefix="ocirt-test-"))
    try:
        make_tree(top, targets)
        inside = {(f.stat().st_dev, f.stat().st_ino) for f in (top, *top.rglob("*")) if not f.is_symlink()}
        inside |= {(f.lstat().st_dev, f.lstat().st_ino) for f in top.rglob("*")}
        root = os.open(top, os.O_PATH)
        try:
            for path in asked:
                kernel = outcome(root, path, os.O_PATH | flags, links, walking=False)
                ours = outcome(root, path, os.O_PATH | flags, links, walking=True)
                assert kernel == ours, path
                assert isinstance(ours, str) or ours in inside
        finally:
            os.close(root)
    finally:
        shutil.rmtree(top)


def test_magic_links_are_not_followed(root: int) -> None:
    proc = os.open("/proc", os.O_PATH)
    try:
        for path in ("self/root/etc", "self/cwd", "self/exe", "self/fd/0"):
            with pytest.raises(Error):
                os.close(paths.open_in_root(proc, path))
            try:
                fd = paths._open_by_walking(proc, path.encode(), os.O_PATH, 0, True)
            except Error:
                continue
            try:
                assert os.fstat(fd).st_dev == os.fstat(proc).st_dev, path
            finally:
                os.close(fd)
    finally:
        os.close(proc)


@pytest.mark.parametrize("umask", [0, 0o022])
def test_making_directories(root: int, tmp_path: Path, umask: int) -> None:
    (tmp_path / "link").symlink_to("/deep/../dangling/target")
    old = os.umask(umask)
    try:
        for path, where in (("x/y/z", "x/y/z"), ("link/more", "dangling/target/more"), ("/../up", "up"), ("", "")):
            fd = paths.mkdir_in_root(root, path, 0o755)
            assert os.path.samestat(os.fstat(fd), (tmp_path / where).stat())
            os.close(fd)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o755 & ~umask


def test_making_files(root: int, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("made/file")
    (tmp_path / "there").write_text("kept")
    for path, where in (("a/b", "a/b"), ("link", "made/file"), ("there", "there")):
        os.close(paths.create_in_root(root, path))
        assert (tmp_path / where).is_file()
    assert (tmp_path / "there").read_text() == "kept"


def test_what_is_in_the_way_is_an_error(root: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    for path in ("file/below", "file", "loop", "loop/below"):
        with pytest.raises(Error):
            paths.mkdir_in_root(root, path)
    for path in ("", "/", "a/..", "."):
        with pytest.raises(Error, match="has no name in a directory"):
            paths.parent_in_root(root, path)


def test_parent(root: int, tmp_path: Path) -> None:
    parent, name = paths.parent_in_root(root, "/new/dir/name/")
    assert name == b"name"
    assert os.path.samestat(os.fstat(parent), (tmp_path / "new" / "dir").stat())
    os.close(parent)
    with pytest.raises(Error, match="no such file"):
        paths.parent_in_root(root, "/not/there/name", make=None)


def test_every_descriptor_is_close_on_exec(lab: Lab) -> None:
    def probe(_: object) -> list[bool]:
        root = os.open("/", os.O_PATH)
        made = [
            paths.open_in_root(root, "bin"),
            paths.open_in_root(root, "bin/busybox", os.O_RDONLY),
            paths.mkdir_in_root(root, "tmp/new/dir"),
            paths.create_in_root(root, "tmp/new/file"),
            paths.parent_in_root(root, "tmp/x")[0],
            *paths.walk(root, b"tmp/new/file")[::2],
        ]
        return [os.get_inheritable(fd) for fd in made]

    assert not any(lab.run({}, probe))
