"""checkpoint and restore, with a stand-in for CRIU: what it is asked, what it is given, what becomes of its answers.

The stand-in speaks the same protocol (its own decoder; the numbers are those of criu's rpc.proto) and writes down what
it was sent. CRIU itself is in test_criu.py, for kernels on which it works.
"""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.box import Box, wait_dead
from tests.harness.peers import lacks
from tests.harness.terminal import ConsoleSocket

pytestmark = lacks("runc", "crun", what="a stand-in for CRIU that it would accept", always=False)

#: The stand-in. Its directory holds `answer.json`, {"fail": text or ""}, {"silent": 1} or {"exit": 0}; it gets
#: `asked.json`.
CRIU = r"""#!/usr/bin/python3 -IS
import array, json, os, signal, socket, sys

HERE = os.path.dirname(os.path.abspath(__file__))
if sys.argv[1:] == ["check"]:
    wrong = json.load(open(f"{HERE}/answer.json")).get("fail")
    print(f"Error (criu/x.c:1): {wrong}" if wrong else "Looks good.")
    sys.exit(bool(wrong))
assert sys.argv[1:] == ["swrk", "3"], sys.argv
open(f"{HERE}/started", "w")
peer = socket.socket(fileno=3)

def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128]); value >>= 7
    return out + bytes([value])

def number(field, value): return varint(field << 3) + varint(value)
def text(field, value): return varint(field << 3 | 2) + varint(len(value)) + value

def decode(data):
    fields, at = [], 0
    def take():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]; at += 1
            value |= (byte & 127) << shift; shift += 7
            if byte < 128: return value
    while at < len(data):
        key = take()
        if key & 7 == 0: fields.append([key >> 3, take()])
        else:
            size = take(); fields.append([key >> 3, data[at:at + size].decode("latin-1")]); at += size
    return fields

def ask(what, pid, fds=()):
    message = number(1, 6) + number(2, 1) + text(5, text(1, what.encode()) + number(2, pid))
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    peer.sendmsg([message], rights)
    answer = decode(peer.recv(1 << 20))
    assert answer[0] == [1, 6] and [3, 1] in answer, answer

request = dict(decode(peer.recv(1 << 20)))
if "silent" in json.load(open(f"{HERE}/answer.json")): sys.exit(1)
kind = request[1]
options = decode(request.get(2, "").encode("latin-1"))
one = dict((key, value) for key, value in options)
if kind == 10:
    peer.send(number(1, 10) + number(2, 1) + text(10, number(1, 4) + number(2, 2)))
    sys.exit()
client = os.getppid()
images = os.readlink(f"/proc/{client}/fd/{one[1]}")
work = os.readlink(f"/proc/{client}/fd/{one[17]}")
inherited = {}
for key, value in options:
    if key == 27:
        fields = dict(decode(value.encode("latin-1")))
        inherited[fields[1]] = os.readlink(f"/proc/self/fd/{fields[2]}")
cgroup = open("/proc/self/cgroup").read()
with open(f"{HERE}/asked.json", "w") as file:
    json.dump({"type": kind, "options": options, "images": images, "work": work, "inherited": inherited,
               "cgroup": cgroup}, file)
answer = json.load(open(f"{HERE}/answer.json"))
if "hang" in answer:
    import time; time.sleep(30)
with open(f"{work}/{one[10]}", "w") as file:
    file.write("(00.1) fine\n(00.2) Error (criu/x.c:1): it went wrong\n" if "fail" in answer else "(00.1) fine\n")
if "fail" in answer:
    reason = number(7, 17) + text(9, answer["fail"].encode()) if answer["fail"] else b""
    peer.send(number(1, kind) + number(2, 0) + reason)
    sys.exit(1)
if kind in (1, 4):
    if not one.get(3):
        os.kill(one[2], signal.SIGKILL)
    peer.send(number(1, kind) + number(2, 1))
else:
    # the process that is restored: a child of our parent, as rst_sibling wants it
    pid = os.fork()
    if pid == 0:
        child = os.fork()
        if child == 0:
            os.setsid(); peer.close()
            if one.get(50):
                import time; time.sleep(1000)
            os.execv("/bin/sleep", ["sleep", "1000"] if "exit" not in answer else ["sleep", "0.2"])
        open(f"{HERE}/child", "w").write(str(child))
        os._exit(0)
    os.waitpid(pid, 0)
    child = int(open(f"{HERE}/child").read())
    ask("setup-namespaces", child)
    if one.get(50):
        master, slave = os.openpty()
        ask("orphan-pts-master", 0, [master])
    ask("post-restore", child)
    peer.send(number(1, 2) + number(2, 1) + text(4, number(1, child)))
"""

DUMP, RESTORE, PRE_DUMP = 1, 2, 4


class StandIn:
    """The stand-in in a directory of its own, first in PATH."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        (directory / "criu").write_text(CRIU)
        (directory / "criu").chmod(0o755)
        self.environment = {"PATH": f"{directory}:/usr/bin:/bin"}
        self.answer({})

    def answer(self, value: dict[str, Any]) -> None:
        (self.directory / "answer.json").write_text(json.dumps(value))

    @property
    def asked(self) -> dict[str, Any]:
        asked: dict[str, Any] = json.loads((self.directory / "asked.json").read_text())
        return asked

    def options(self, field: int) -> list[Any]:
        return [value for key, value in self.asked["options"] if key == field]


@pytest.fixture
def criu(place: Path) -> StandIn:
    return StandIn(place / "criu")


def checkpoint(box: Box, criu: StandIn, place: Path, *flags: str, **options: Any) -> Any:
    images = ("--image-path", str(place / "images"))
    return box.runtime("checkpoint", *images, *flags, box.id, env=criu.environment, **options)


def restore(box: Box, criu: StandIn, place: Path, *flags: str, **options: Any) -> Any:
    images = ("--image-path", str(place / "images"), "--bundle", str(box.path))
    return box.runtime("restore", *images, *flags, box.id, env=criu.environment, **options)


def test_dump(box: Box, criu: StandIn, place: Path) -> None:
    (place / "outside").mkdir()
    box.bind(place / "outside", "/data")
    box.create_and_start("sleep 1000")
    pid = box.pid
    checkpoint(box, criu, place, "--work-path", str(place / "work"))
    asked = criu.asked
    assert asked["type"] == DUMP
    assert (asked["images"], asked["work"]) == (str(place / "images"), str(place / "work"))
    assert criu.options(2) == [pid]
    assert criu.options(13) == [str(box.rootfs)]
    assert criu.options(10) == ["dump.log"]
    assert "mnt[/data]:/data" in criu.options(37)
    assert [path for path in criu.options(44) if path.endswith(box.id)], "the cgroup to freeze"
    names = json.loads((place / "images/descriptors.json").read_text())
    assert len(names) == 3
    assert box.runtime("state", box.id, check=False).rc == 1, "the container is gone"


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--leave-running"], 3, 1),
        (["--ext-unix-sk"], 4, 1),
        (["--tcp-established"], 5, 1),
        (["--shell-job"], 7, 1),
        (["--file-locks"], 8, 1),
        (["--auto-dedup"], 16, 1),
        (["--link-remap"], 18, 1),
        (["--manage-cgroups-mode", "ignore"], 34, 0),
        (["--manage-cgroups-mode", "soft"], 34, 3),
        (["--manage-cgroups-mode", "full"], 34, 4),
        (["--manage-cgroups-mode", "strict"], 34, 5),
        (["--empty-ns", "network"], 38, 0x40000000),
        (["--tcp-skip-in-flight"], 46, 1),
        (["--lazy-pages"], 48, 1),
        (["--status-fd", "0"], 49, 0),
        (["--tcp-close"], 52, 1),
        (["--network-lock", "nftables"], 64, 2),
        (["--page-server", "10.0.0.1:27"], 11, "\n\x0810.0.0.1\x10\x1b"),
    ],
)
def test_flags_of_checkpoint(box: Box, criu: StandIn, place: Path, flags: list[str], field: int, value: Any) -> None:
    box.create_and_start("sleep 1000")
    checkpoint(box, criu, place, *(flags if "--leave-running" in flags else ["--leave-running", *flags]))
    assert criu.options(field) == [value]
    assert box.status == "running"


def test_pre_dump_and_parent(box: Box, criu: StandIn, place: Path) -> None:
    box.create_and_start("sleep 1000")
    (place / "images").mkdir()
    (place / "before").mkdir()
    box.runtime("checkpoint", "--image-path", place / "before", "--pre-dump", box.id, env=criu.environment)
    assert criu.asked["type"] == PRE_DUMP
    assert criu.options(15) == [1]
    assert box.status == "running"
    checkpoint(box, criu, place, "--leave-running", "--parent-path", "../before")
    assert criu.options(14) == ["../before"]
    assert criu.options(15) == [1]
    for wrong in ("/absolute", "../missing"):
        assert "--parent-path" in checkpoint(box, criu, place, "--parent-path", wrong, check=False).err


@pytest.mark.parametrize(
    "flags",
    [
        ["--page-server", "host"],
        ["--page-server", "10.0.0.1:99999"],
        ["--network-lock", "bogus"],
        ["--empty-ns", "pid"],
        ["--parent-path", "/absolute"],
        ["--status-fd", "x"],
    ],
)
def test_wrong_values(box: Box, criu: StandIn, place: Path, flags: list[str]) -> None:
    """They are told before CRIU is started, with nothing of what it wrote another time."""
    box.create_and_start("sleep 1000")
    (place / "images").mkdir()
    (place / "images/dump.log").write_text("(00.1) Error (criu/x.c:1): of another time\n")
    result = checkpoint(box, criu, place, *flags, check=False)
    assert result.rc == 1
    assert flags[0] in result.err
    assert flags[1] in result.err
    assert "criu/x.c" not in result.err
    assert "Traceback" not in result.err
    assert not (criu.directory / "started").exists()
    assert box.status == "running"


def test_criu_that_ends_without_a_word(box: Box, criu: StandIn, place: Path) -> None:
    """The log of a checkpoint before this one isn't taken for its own."""
    box.create_and_start("sleep 1000")
    (place / "images").mkdir()
    (place / "images/dump.log").write_text("(00.1) Error (criu/x.c:1): of another time\n")
    criu.answer({"silent": True})
    result = checkpoint(box, criu, place, check=False)
    assert result.rc == 1
    assert "of another time" not in result.err
    assert "ocirt check" in result.err


def test_failure_of_criu(box: Box, criu: StandIn, place: Path) -> None:
    box.create_and_start("sleep 1000")
    criu.answer({"fail": "no way"})
    result = checkpoint(box, criu, place, check=False)
    assert result.rc == 1
    for part in ("criu failed: no way", "it went wrong", str(place / "images/dump.log")):
        assert part in result.err
    assert box.status == "running"


def test_failure_without_a_reason(box: Box, criu: StandIn, place: Path) -> None:
    """The error ends with who may know."""
    box.create_and_start("sleep 1000")
    criu.answer({"fail": ""})
    told = [checkpoint(box, criu, place, check=False).err]
    box.delete("--force")
    dumped(box, criu, place)
    told.append(restore(box, criu, place, check=False).err)
    for text in told:
        assert "criu failed: no reason given; (00.2) Error (criu/x.c:1): it went wrong" in text
        assert text.endswith("; `ocirt check` and `criu check` say what this host lacks\n")


def test_without_criu(box: Box, place: Path) -> None:
    box.create_and_start("sleep 1000")
    result = box.runtime("checkpoint", "--image-path", place / "images", box.id, env={"PATH": "/nothing"}, check=False)
    assert result.rc == 1
    assert "criu is not installed" in result.err
    assert box.status == "running"


def test_wrong_states(box: Box, criu: StandIn, place: Path) -> None:
    assert "does not exist" in checkpoint(box, criu, place, check=False).err
    box.sh("sleep 1000")
    box.create()
    assert "it is created" in checkpoint(box, criu, place, check=False).err


def dumped(box: Box, criu: StandIn, place: Path) -> None:
    """A checkpoint, as another host might have made it."""
    box.write()
    (place / "images").mkdir(exist_ok=True)
    (place / "images/descriptors.json").write_text(json.dumps(["/dev/null", "pipe:[1234]", "pipe:[99]"]))


def test_restore(box: Box, criu: StandIn, place: Path) -> None:
    (place / "outside").mkdir()
    box.bind(place / "outside", "/new/data")
    note = place / "hooks"
    box.config["hooks"] = {
        kind: [{"path": "/bin/sh", "args": ["sh", "-c", f"echo {kind} >> {note}; cat > {note}.{kind}"]}]
        for kind in ("createRuntime", "poststart", "poststop")
    }
    dumped(box, criu, place)
    file = place / "restored.pid"
    restore(box, criu, place, "--detach", "--pid-file", str(file), "--work-path", str(place / "work"))
    asked = criu.asked
    assert asked["type"] == RESTORE
    assert criu.options(26) == [1], "a sibling of criu: our child"
    assert f"mnt[/new/data]:{place / 'outside'}" in criu.options(37)
    assert (box.rootfs / "new/data").is_dir(), "CRIU mounts only onto what is there"
    assert set(asked["inherited"]) == {"pipe:[1234]", "pipe:[99]"}
    assert [line for line in asked["cgroup"].splitlines() if line.endswith(f"/{box.id}")]
    roots = [re.fullmatch(r"(\n.([\w=]+))?\x12.(/.*)", root, re.DOTALL) for root in criu.options(25)]
    wanted = [line.split(":", 2)[1:] for line in asked["cgroup"].splitlines()]
    found = [[root[2] or "", root[3]] for root in roots if root]
    assert found == [[controllers.partition(",")[0], path] for controllers, path in wanted], (
        "its cgroup, not the former"
    )
    state = box.state()
    assert state["status"] == "running"
    assert state["pid"] == int(file.read_text())
    assert note.read_text().split() == ["createRuntime", "poststart"]
    assert json.loads(Path(f"{note}.poststart").read_text())["pid"] == state["pid"]
    box.kill("KILL")
    wait_dead(state["pid"])
    box.delete()
    assert note.read_text().split()[-1] == "poststop"


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--tcp-close"], 52, 1),
        (["--lsm-profile", "selinux:x"], 53, "selinux:x"),
        (["--lsm-mount-context", "c"], 63, "c"),
        (["-no-subreaper"], 26, 1),
        (["--no-pivot"], 26, 1),
    ],
)
def test_flags_of_restore(box: Box, criu: StandIn, place: Path, flags: list[str], field: int, value: Any) -> None:
    dumped(box, criu, place)
    restore(box, criu, place, "--detach", *flags)
    assert criu.options(field) == [value]


def test_restore_in_the_foreground(box: Box, criu: StandIn, place: Path) -> None:
    dumped(box, criu, place)
    criu.answer({"exit": 0})
    assert restore(box, criu, place).rc == 0
    assert box.runtime("state", box.id, check=False).rc == 1


def test_restore_with_a_terminal(box: Box, criu: StandIn, place: Path) -> None:
    box.process["terminal"] = True
    dumped(box, criu, place)
    with ConsoleSocket(place / "console") as console:
        restore(box, criu, place, "--detach", "--console-socket", str(console.path))
        assert os.isatty(console.receive())


def test_failed_restore_leaves_nothing(box: Box, criu: StandIn, place: Path) -> None:
    dumped(box, criu, place)
    criu.answer({"fail": "not today"})
    result = restore(box, criu, place, "--detach", check=False)
    assert result.rc == 1
    assert "not today" in result.err
    assert box.runtime("state", box.id, check=False).rc == 1


def test_restore_that_is_killed_leaves_nothing(box: Box, criu: StandIn, place: Path) -> None:
    """delete --force takes back what CRIU was given, and not what is in it: the root file system is mounted there."""
    box.add_user_namespace()
    dumped(box, criu, place)
    criu.answer({"hang": True})
    (criu.directory / "asked.json").unlink(missing_ok=True)
    (box.rootfs / "precious").write_text("kept")
    images = ("--image-path", place / "images", "--bundle", box.path)
    process = box.runtime.popen("restore", *images, "--detach", box.id, env=criu.environment)
    end = time.monotonic() + 20
    while not (criu.directory / "asked.json").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    box.delete("--force")
    assert (box.rootfs / "precious").read_text() == "kept"
    assert (box.rootfs / "bin/busybox").exists()
    assert not [entry for entry in os.listdir("/run") if box.id in entry]


def test_images_that_are_not_there(box: Box, criu: StandIn, place: Path) -> None:
    box.write()
    assert "there is no such directory" in restore(box, criu, place, check=False).err
    (place / "images").mkdir()
    assert "not a checkpoint's directory" in restore(box, criu, place, check=False).err


def test_config_file_annotation(box: Box, criu: StandIn, place: Path) -> None:
    box.config["annotations"] = {"org.criu.config": "/some/file"}
    box.create_and_start("sleep 1000")
    checkpoint(box, criu, place, "--leave-running")
    assert criu.options(51) == ["/some/file"]


def test_engines_probes(box: Box) -> None:
    """podman asks by these whether checkpoints are possible."""
    assert box.runtime(argv=[box.runtime.path, "checkpoint", "--help"]).rc == 0
    result = box.runtime(argv=[box.runtime.path, "restore", "--lsm-mount-context"], check=False)
    assert "flag needs an argument" in result.text


def test_check_tells_the_version(box: Box, criu: StandIn) -> None:
    found = checked(box, criu)
    assert found["status"] == "ok"
    assert "4.2" in found["detail"]


def test_check_tells_what_criu_has_against_this_kernel(box: Box, criu: StandIn) -> None:
    """Debian's tells its version also where it can do nothing else."""
    criu.answer({"fail": "vdso: Unexpected rt vDSO area bounds"})
    found = checked(box, criu)
    assert found["status"] == "partly"
    assert found["detail"].endswith("here: vdso: Unexpected rt vDSO area bounds")
    assert found["remedy"]


def checked(box: Box, criu: StandIn) -> dict[str, str]:
    """The finding of `check` on CRIU."""
    result = box.runtime(argv=[box.runtime.path, "check", "--format", "json"], env=criu.environment, check=False)
    found: dict[str, str]
    (found,) = [finding for finding in json.loads(result.out)["findings"] if finding["name"] == "criu"]
    return found
