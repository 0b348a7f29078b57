"""checkpoint and restore by CRIU itself, which is there in `hack/vm --stock`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.box import Box, wait_dead
from tests.harness.helpers import Helpers
from tests.harness.peers import lacks, peer_fails
from tests.harness.runtime import Result
from tests.harness.terminal import ConsoleSocket


def criu_works() -> bool:
    """Does CRIU itself say so?"""
    program = shutil.which("criu")
    if not program or os.geteuid():
        return False
    command = [program, "check"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.skipif(not criu_works(), reason="CRIU does not work with this kernel (criu check): hack/vm --stock"),
    pytest.mark.timeout(300),
    peer_fails("crun", "Debian's is built without CRIU"),
]

LATER_THAN_RUNC = lacks("runc", what="a flag of later versions")

NULL = Path("/dev/null")
COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; sleep 0.2; done"


def start(box: Box, script: str = COUNT) -> None:
    """Run a container that holds no files of the host."""
    box.sh(script)
    box.create(out=NULL, err=NULL, timeout=60)
    box.start(timeout=60)


def checkpoint(box: Box, place: Path, *flags: str, **options: Any) -> Result:
    paths = ("--image-path", str(place / "images"), "--work-path", str(place / "work"))
    return box.runtime("checkpoint", *paths, *flags, box.id, timeout=90, **options)


def restore(box: Box, place: Path, *flags: str, **options: Any) -> Result:
    paths = ("--image-path", str(place / "images"), "--work-path", str(place / "work"), "--bundle", str(box.path))
    options = {"out": NULL, "err": place / "restore.err", **options}
    return box.runtime("restore", *paths, *flags, box.id, timeout=90, **options)


def count(box: Box) -> int:
    """How far it has counted; a file that is being written is read again."""
    while not (text := (box.rootfs / "count").read_text().strip()):
        time.sleep(0.01)
    return int(text)


def goes_on(box: Box, beyond: int) -> None:
    """Wait until it counts on from where it was, not from the start."""
    end = time.monotonic() + 30
    while (seen := count(box)) <= beyond:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert seen < beyond + 300


def until_it_counts(box: Box) -> None:
    end = time.monotonic() + 30
    while not (box.rootfs / "count").exists() or count(box) < 3:
        assert time.monotonic() < end
        time.sleep(0.1)


def test_there_and_back(box: Box, place: Path) -> None:
    """All that a container has: namespaces, cgroup, limits, masked and bound paths, tmpfs, a second process."""
    (place / "outside").mkdir()
    box.bind(place / "outside", "/data")
    box.mount("/scratch")
    box.linux["resources"]["pids"] = {"limit": 99}
    start(box, f"echo kept > /scratch/file; sleep 1000 & {COUNT}")
    until_it_counts(box)
    before = box.state()
    checkpoint(box, place)
    wait_dead(before["pid"])
    assert box.runtime("state", box.id, check=False).rc, "what has been saved is deleted"
    was = count(box)
    time.sleep(1)
    assert count(box) == was

    restore(box, place, "--detach", "--pid-file", str(place / "pid"))
    goes_on(box, was)
    state = box.state()
    assert state["status"] == "running"
    assert state["pid"] == int((place / "pid").read_text())
    script = "cat /scratch/file; hostname; cat /proc/self/cgroup;"
    words = box.exec("/bin/sh", "-c", script, timeout=60).out.split()
    assert words[:2] == ["kept", "box"]
    assert box.id in words[2] or words[2] == "0::/"
    limit = next(Path("/sys/fs/cgroup").rglob(f"{box.id}/pids.max")).read_text()
    assert limit == "99\n"
    for command in ("pause", "resume"):
        box.runtime(command, box.id, timeout=60)
    box.kill("KILL", timeout=60)
    wait_dead(state["pid"])
    box.delete(timeout=60)


def test_another_cgroup(box: Box, place: Path) -> None:
    """The processes are where the restored container's limits are, not where they were."""
    former = box.linux["cgroupsPath"]
    start(box, f"sleep 1000 & {COUNT}")
    until_it_counts(box)
    checkpoint(box, place)
    was = count(box)
    box.linux["cgroupsPath"] = f"/{box.id}-moved"
    box.linux["resources"]["pids"] = {"limit": 77}
    box.write()
    restore(box, place, "--detach")
    goes_on(box, was)
    moved = [path.read_text().split() for path in Path("/sys/fs/cgroup").rglob(f"{box.id}-moved/cgroup.procs")]
    assert moved
    assert all(str(box.pid) in pids and len(pids) > 1 for pids in moved), moved
    assert [path.read_text() for path in Path("/sys/fs/cgroup").rglob(f"{box.id}-moved/pids.max")] == ["77\n"]
    assert not list(Path("/sys/fs/cgroup").rglob(former.strip("/")))


def test_leave_running(box: Box, place: Path) -> None:
    start(box)
    until_it_counts(box)
    pid = box.pid
    checkpoint(box, place, "--leave-running")
    assert box.pid == pid
    goes_on(box, count(box))


def test_pre_dump(box: Box, place: Path) -> None:
    """Two rounds: memory first, then what has changed since."""
    start(box)
    until_it_counts(box)
    first = ("--image-path", str(place / "first"), "--work-path", str(place / "work"))
    box.runtime("checkpoint", *first, "--pre-dump", box.id, timeout=90)
    assert box.status == "running"
    checkpoint(box, place, "--parent-path", "../first")
    was = count(box)
    restore(box, place, "--detach")
    goes_on(box, was)


def test_terminal(box: Box, place: Path) -> None:
    box.process["terminal"] = True
    box.sh("while read line; do echo got $line; done")
    with ConsoleSocket(place / "first") as console:
        box.create("--console-socket", console.path, timeout=60)
        box.start(timeout=60)
        console.receive()
        console.write(b"one\n")
        console.read_until(b"got one")
        checkpoint(box, place, "--shell-job")
    with ConsoleSocket(place / "second") as console:
        restore(box, place, "--detach", "--shell-job", "--console-socket", str(console.path))
        console.receive()
        console.write(b"two\n")
        console.read_until(b"got two")


def test_pipes_become_those_of_restore(box: Box, place: Path) -> None:
    """In the foreground, with its exit status."""
    box.sh("i=0; while [ ! -e /stop ]; do i=$((i+1)); echo $i > /count; sleep 0.2; done; echo end; exit 7")
    box.write()
    read, write = os.pipe()
    null = os.open("/dev/null", os.O_RDWR)
    running = box.runtime.popen("run", "--bundle", box.path, box.id, stdout=write, stderr=null)
    os.close(write)
    until_it_counts(box)
    checkpoint(box, place)
    running.wait(30)
    os.close(read)
    read, write = os.pipe()
    restored = box.runtime.popen(
        *("restore", "--image-path", place / "images", "--work-path", place / "work", "--bundle", box.path, box.id),
        stdout=write,
        stderr=null,
    )
    os.close(write)
    os.close(null)
    goes_on(box, count(box))
    (box.rootfs / "stop").touch()
    with os.fdopen(read) as pipe:
        assert pipe.read() == "end\n"
    assert restored.wait(30) == 7


def test_file_locks_must_be_allowed(box: Box, place: Path, helpers: Helpers) -> None:
    shutil.copy(helpers("lock"), box.rootfs / "bin/lock")
    start(box, f"lock /file & {COUNT}")
    until_it_counts(box)
    failed = checkpoint(box, place, check=False)
    assert failed.rc == 1
    assert "lock" in failed.err
    assert box.status == "running", "a checkpoint that failed leaves the container as it was"
    goes_on(box, count(box))
    checkpoint(box, place, "--file-locks")
    was = count(box)
    restore(box, place, "--detach", "--file-locks")
    goes_on(box, was)
    assert box.exec("lock", "/file", check=False, timeout=60).rc == 1, "it is held again"


def test_connections_must_be_allowed(box: Box, place: Path) -> None:
    """A TCP connection within the container."""
    box.capabilities("CAP_NET_ADMIN")
    start(box, f"(nc -l -p 77 -e cat &); sleep 1; (sleep 1000 | nc 127.0.0.1 77 > /dev/null &); {COUNT}")
    until_it_counts(box)
    failed = checkpoint(box, place, check=False)
    assert failed.rc == 1
    assert "tcp" in failed.err.lower()
    checkpoint(box, place, "--tcp-established")
    was = count(box)
    restore(box, place, "--detach", "--tcp-established")
    goes_on(box, was)


@pytest.mark.parametrize(
    ("flags", "script", "wrong", "words"),
    [
        pytest.param(["--manage-cgroups-mode", "MODE"], "", None, "", id="manage-cgroups-mode"),
        pytest.param(["--empty-ns", "network"], "", None, "", id="empty-ns"),
        pytest.param(["--tcp-skip-in-flight"], "", None, "", id="tcp-skip-in-flight", marks=LATER_THAN_RUNC),
        # a file that is open, whose name is gone and which has another one
        pytest.param(
            ["--link-remap"], "exec 3> /file; ln /file /other; rm /file;", [], "Can't create link remap",
            id="link-remap", marks=LATER_THAN_RUNC,
        ),
        pytest.param(["--status-fd", "FD"], "", ["--status-fd", "99"], "status fd", id="status-fd"),
        pytest.param(["--auto-dedup", "--parent-path", "../first"], "", None, "", id="auto-dedup"),
    ],
)  # fmt: skip
def test_flags_of_checkpoint(
    box: Box, place: Path, flags: list[str], script: str, wrong: list[str] | None, words: str
) -> None:
    """CRIU takes each, and the container runs on; with the `wrong` ones in their place it says so."""
    start(box, script + COUNT)
    until_it_counts(box)
    pid = box.pid
    if wrong is not None:
        failed = checkpoint(box, place, "--leave-running", *wrong, check=False)
        assert failed.rc == 1
        assert words in failed.err
        assert box.status == "running"
    first = place / "first"
    if "--auto-dedup" in flags:
        paths = ("--image-path", first, "--work-path", place / "work")
        box.runtime("checkpoint", *paths, "--pre-dump", box.id, timeout=90)
    before = blocks(first)
    read, write = os.pipe()
    for mode in ("soft", "full", "strict", "ignore") if "MODE" in flags else ("",):
        given = [{"FD": str(write), "MODE": mode}.get(word, word) for word in flags]
        checkpoint(box, place, "--leave-running", *given, pass_fds=(write,))
    os.close(write)
    with os.fdopen(read, "rb") as status:
        assert status.read() == b"", "a dump to files serves no pages"
    assert (blocks(first) < before) == ("--auto-dedup" in flags), "what was saved anew is gone from the former images"
    names = os.listdir(place / "images")
    assert "inventory.img" in names
    assert bool([name for name in names if name.startswith("netdev-")]) == ("--empty-ns" not in flags), names
    assert box.pid == pid
    goes_on(box, count(box))


def blocks(images: Path) -> int:
    """What the pages in a directory take of the disk."""
    return sum(path.stat().st_blocks for path in images.glob("pages-*.img"))


def test_unix_sockets_must_be_allowed(box: Box, place: Path) -> None:
    """A socket of the container's whose other end is the host's; CRIU knows those of datagrams."""
    box.namespace("network", remove=True)
    box.sh(COUNT)
    box.write()
    ends = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    ends[0].bind(str(place / "outside"))
    ends[1].connect(str(place / "outside"))
    given = ends[1].fileno()
    command = box.runtime.argv(["create", "--bundle", box.path, "--preserve-fds", "1", box.id])
    words = ["/bin/bash", "-c", f'exec 3<&{given}; exec "$@"', "bash", *command]
    box.runtime(argv=words, pass_fds=(given,), out=NULL, err=NULL, timeout=60)
    ends[1].close()
    box.start(timeout=60)
    until_it_counts(box)
    pid = box.pid
    failed = checkpoint(box, place, "--leave-running", check=False)
    assert failed.rc == 1
    assert "ext-unix-sk" in failed.err
    checkpoint(box, place, "--leave-running", "--ext-unix-sk")
    assert box.pid == pid
    goes_on(box, count(box))
    ends[0].close()


def test_in_a_user_namespace(box: Box, place: Path) -> None:
    box.add_user_namespace()
    start(box)
    until_it_counts(box)
    checkpoint(box, place)
    was = count(box)
    restore(box, place, "--detach")
    goes_on(box, was)
    assert box.exec("sh", "-c", "id -u; head -c 3 /dev/zero | wc -c", timeout=60).out.split() == ["0", "3"]


def test_paused(box: Box, place: Path) -> None:
    start(box)
    until_it_counts(box)
    box.runtime("pause", box.id)
    checkpoint(box, place)
    was = count(box)
    restore(box, place, "--detach")
    goes_on(box, was)


def test_images_that_criu_can_not_read(box: Box, place: Path) -> None:
    start(box)
    until_it_counts(box)
    checkpoint(box, place)
    (place / "images/pstree.img").write_bytes(b"nonsense")
    failed = restore(box, place, "--detach", check=False)
    assert failed.rc == 1
    assert "criu failed" in (place / "restore.err").read_text() or box.runtime.name != "ocirt"
    assert box.runtime("state", box.id, check=False).rc == 1
