"""`start`: what it reads, what it prints for each containerd, where its socket is, and who shares a shim."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.containerd import ttrpc
from tests.engines.containerd.calling import STYLES, CallFailed
from tests.engines.containerd.engine import SOCKETS, Engine, ShimBundle, Task
from tests.harness.leftovers import alive

SANDBOX = "io.kubernetes.cri.sandbox-id"
GROUP = "io.containerd.runc.v2.group"


@pytest.mark.parametrize(
    "style",
    [*STYLES[:-1], pytest.param(STYLES[-1], marks=pytest.mark.shim_fails("runc", "2.3 brought BootstrapParams"))],
)
@pytest.mark.parametrize("given", [False, True], ids=["bare", "options"])
def test_answers(engine: Engine, style: str, given: bool) -> None:
    """Every containerd gets an answer that it understands, and a task works by it."""
    engine.caller.style = style
    bundle = engine.bundle("exit 3")
    task = engine.task(bundle=bundle, options=engine.options() if given else None)
    if engine.kind.name == "ocirt":
        expected = {"1.6": ("plain", 2), "1.7": ("json", 2), "2.0": ("json", 2), "2.4": ("protobuf", 3)}[style]
        assert (task.answer.form, task.answer.version) in (expected, ("json", expected[1]))
    task.create()
    task.start()
    assert task.wait() == 3
    task.delete()
    task.leave()


@pytest.mark.shim_fails("runc", "2.3 came later")
def test_bootstrap_parameters_are_told_from_options(engine: Engine) -> None:
    """Only what names this id and namespace is BootstrapParams; an Any that parses as one isn't."""
    bundle = engine.bundle()
    options = engine.options(root="/run/containerd/runc")
    answer = engine.start(bundle, options, style="2.0")
    assert answer.form == "json"
    other = engine.bundle()
    engine.caller.style = "2.4"
    answer = engine.start(other, options)
    assert (answer.form, answer.version) in (("protobuf", 3), ("json", 3))
    for each, style in ((bundle, "2.0"), (other, "2.4")):
        engine.adopt(each, engine.start(each, style=style)).leave()


@pytest.mark.shim_fails("runc", "2.3 came later")
@pytest.mark.parametrize("level", [0, -4, -8, 4, 8, 12])
def test_log_levels(engine: Engine, level: int) -> None:
    """Negative levels are varints of ten bytes."""
    bundle = engine.bundle()
    task = engine.adopt(bundle, engine.start(bundle, style="2.4", level=level))
    task.leave()


@pytest.mark.shim_fails("runc", "2.3 came later")
def test_socket_directory(engine: Engine) -> None:
    """BootstrapParams.socket_dir is where the socket is made."""
    directory = engine.place / "sockets"
    bundle = engine.bundle()
    answer = engine.start(bundle, style="2.4", socket_dir=str(directory))
    assert answer.address == engine.socket_of(bundle.id).replace(str(SOCKETS), str(directory))
    assert stat.S_ISSOCK(os.stat(answer.address.removeprefix("unix://")).st_mode)
    engine.adopt(bundle, answer).leave()


def test_socket(engine: Engine) -> None:
    """Its name, its mode, and the file `address`, by which containerd finds it after a restart."""
    task = engine.task()
    assert task.answer.address == engine.socket_of(task.id)
    path = Path(task.answer.address.removeprefix("unix://"))
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0 or engine.kind.name != "ocirt"
    assert (task.bundle.path / "address").read_text() == task.answer.address
    task.leave()
    assert not path.exists()


def test_twice(engine: Engine) -> None:
    """A second `start` finds the shim that is there."""
    task = engine.running()
    again = engine.start(task.bundle)
    assert again.address == task.answer.address
    assert engine.connect(again).call("Connect", id=task.id).shim_pid == task.shim_pid
    task.end()


def test_stale_socket(engine: Engine) -> None:
    """The file of a shim that has died is replaced."""
    bundle = engine.bundle()
    address = engine.socket_of(bundle.id)
    SOCKETS.mkdir(exist_ok=True, parents=True)
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(address.removeprefix("unix://"))
    dead.listen(1)
    dead.close()
    task = engine.task(bundle=bundle)
    assert task.answer.address == address
    task.leave()


def grouped(engine: Engine, first: Task, **annotations: str) -> Task:
    """A task in the shim of another."""
    bundle = engine.bundle("sleep 1000", **annotations)
    answer = engine.start(bundle)
    assert answer.address == first.answer.address
    assert (bundle.path / "address").read_text() == answer.address
    return engine.adopt(bundle, answer)


@pytest.mark.parametrize("annotation", [SANDBOX, GROUP])
def test_group(engine: Engine, annotation: str) -> None:
    """Containers of a group share a process and a socket that is named for the group."""
    group = f"{engine.name}n-group"
    first = engine.running(bundle=engine.bundle("sleep 1000", **{annotation: group}))
    assert first.answer.address == engine.socket_of(group)
    second = grouped(engine, first, **{annotation: group})
    second.create()
    second.start()
    assert second.shim_pid == first.shim_pid
    assert {first.status, second.status} == {2}
    first.kill()
    first.wait()
    first.delete()
    first.shutdown()
    first._done = True
    assert second.status == 2, "Shutdown is ignored while a container remains"
    engine.caller.delete(first.id, first.bundle.path)
    assert second.status == 2
    second.end()


def test_own_group_goes_before_the_sandbox(engine: Engine) -> None:
    annotations = {GROUP: f"{engine.name}n-mine", SANDBOX: f"{engine.name}n-sandbox"}
    task = engine.task(bundle=engine.bundle("true", **annotations))
    assert task.answer.address == engine.socket_of(annotations[GROUP])
    task.leave()


def test_pod_of_ten(engine: Engine) -> None:
    """Ten containers in one process; Shutdown means nothing until the last has gone."""
    group = f"{engine.name}n-pod"
    first = engine.running(bundle=engine.bundle("sleep 1000", **{SANDBOX: group}))
    tasks = [first]
    for _ in range(9):
        task = grouped(engine, first, **{SANDBOX: group})
        task.create()
        task.start()
        tasks.append(task)
    pid = first.shim_pid
    assert {task.shim_pid for task in tasks} == {pid}
    assert len({task.pid for task in tasks}) == 10
    waits = [task.shim.begin("Wait", id=task.id) for task in tasks]
    for number, task in enumerate(tasks):
        assert not task.shim.answered(waits[number])
        task.kill()
        assert task.shim.result(waits[number]).exit_status == 137
        task.delete()
        if task is not tasks[-1]:
            task.shutdown()
            task._done = True
            engine.caller.delete(task.id, task.bundle.path)
            assert alive(pid)
            assert tasks[-1].status == 2
    tasks[-1].leave()
    for task in tasks:
        engine.events.wait("delete", task.id)
        assert engine.events.names(task.id) == ["create", "start", "exit", "delete"]


def test_noisy_environment(engine: Engine) -> None:
    """Nothing but the address is printed, whatever the environment asks of Python, Go or the loader."""
    bundle = engine.bundle("sleep 1000")
    env = {
        "PYTHONWARNINGS": "always",
        "PYTHONVERBOSE": "1",
        "PYTHONDEVMODE": "1",
        "PYTHONSTARTUP": "/nowhere",
        "PYTHONPATH": "/nowhere",
        "PYTHONHOME": "/nowhere",
        "PYTHONDUMPREFS": "1",
        "LANG": "no_SUCH.locale",
        "LC_ALL": "no_SUCH.locale",
    }
    answer = engine.start(bundle, env=env)
    assert answer.raw.strip() == answer.address.encode()
    task = engine.adopt(bundle, answer)
    task.create()
    task.start()
    task.kill()
    task.wait()
    task.delete()
    task.shutdown()
    response, text = engine.caller.delete(task.id, bundle.path, env=env)
    assert response.exit_status == 137
    assert text == b"" or engine.kind.name != "ocirt"
    task._done = True


def test_scheduling_cookie(engine: Engine) -> None:
    """SCHED_CORE=1 is honoured, or refused with a clear word where the kernel can't."""
    bundle = engine.bundle()
    try:
        answer = engine.start(bundle, env={"SCHED_CORE": "1"})
    except CallFailed as error:
        assert not core_scheduling(), error.text
        assert re.search("core", error.text, re.IGNORECASE) or engine.kind.name != "ocirt"
        return
    task = engine.adopt(bundle, answer)
    if core_scheduling():
        assert cookie_of(task.shim_pid)
    task.leave()


CORE = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
value = ctypes.c_ulong()
code = libc.prctl(62, int(sys.argv[1]), int(sys.argv[2]), 0, ctypes.byref(value) if sys.argv[1] == "0" else None)
print(value.value)
sys.exit(1 if code else 0)
"""


def core_scheduling() -> bool:
    """Whether the kernel can make a cookie (PR_SCHED_CORE, CREATE)."""
    return subprocess.run([sys.executable, "-c", CORE, "1", "0"], capture_output=True, check=False).returncode == 0


def cookie_of(pid: int) -> int:
    """The core scheduling cookie of a process."""
    done = subprocess.run([sys.executable, "-c", CORE, "0", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_bundle_that_is_not_there(engine: Engine) -> None:
    """A clear error and no shim."""
    bundle = engine.bundle()
    with pytest.raises(CallFailed) as found:
        engine.caller.start(bundle.id, bundle.path)  # no config.json yet
    assert "config.json" in found.value.text
    assert "Traceback" not in found.value.text
    assert not ttrpc.exists(engine.socket_of(bundle.id))


@pytest.mark.parametrize("flags", [["-v"], ["-version"]])
def test_version(engine: Engine, flags: list[str]) -> None:
    if flags == ["-version"] and engine.kind.name != "ocirt":
        return
    done = engine.caller.run(
        [str(engine.kind.binary), *flags], Path("/"), b"", env=engine.caller.environment("1.6"), timeout=20
    )
    text = done.stdout.decode()
    assert "containerd-shim" in text
    assert re.search(r"Version: +\S+", text, re.IGNORECASE)


@pytest.mark.shim_fails("runc", "2.0 brought -info")
@pytest.mark.parametrize("given", [False, True], ids=["bare", "options"])
def test_info(engine: Engine, given: bool) -> None:
    """RuntimeInfo with the features: CRI and containerd decide by them."""
    import json

    info = engine.caller.info(engine.options() if given else None)
    assert info.name == "io.containerd.ocirt.v1"
    assert info.version.version
    assert info.features.type_url == "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    features = json.loads(info.features.value)
    assert features["ociVersionMin"]
    assert "user" in features["linux"]["namespaces"]
    assert "rro" in features["mountOptions"]
    assert isinstance(features["linux"]["mountExtensions"]["idmap"]["enabled"], bool)


@pytest.mark.parametrize(
    "argv", [["-no-such-flag", "start"], ["no-such-action"], ["-id", "", "start"], ["-namespace", "x", "start"]]
)
def test_wrong_command_lines(engine: Engine, argv: list[str]) -> None:
    with pytest.raises(CallFailed) as found:
        engine.caller.run(
            [str(engine.kind.binary), *argv], engine.place, b"", env=engine.caller.environment("1.6"), timeout=20
        )
    assert "Traceback" not in found.value.text
    if engine.kind.name == "ocirt":
        assert found.value.text


def test_unreadable_stdin(engine: Engine) -> None:
    """What is neither an Any nor BootstrapParams is an error of start or is not looked at: never a crash."""
    bundle = engine.bundle()
    bundle.write()
    env = engine.caller.environment("2.0")
    argv = [str(engine.kind.binary), *engine.caller.flags(bundle.id, "2.0"), "start"]
    try:
        done = engine.caller.run(argv, bundle.path, b"\xff\xff\xff", env=env, timeout=30)
    except CallFailed as error:
        assert "Traceback" not in error.text
        assert not ttrpc.exists(engine.socket_of(bundle.id))
        return
    answer = engine.start(bundle)
    assert answer.address.encode() in done.stdout
    engine.adopt(bundle, answer).leave()


def test_options_in_another_order(engine: Engine) -> None:
    """Flags may be written with = and in any order; the action comes last."""
    bundle: ShimBundle = engine.bundle()
    bundle.write()
    argv = [
        str(engine.kind.binary),
        f"-id={bundle.id}",
        "-debug",
        f"-address={engine.caller.grpc}",
        "-publish-binary=/usr/bin/containerd",
        f"-namespace={engine.namespace}",
        "start",
    ]
    done = engine.caller.run(argv, bundle.path, b"", env=engine.caller.environment("1.6"), timeout=30)
    assert done.stdout.decode().strip() == engine.socket_of(bundle.id)
    engine.adopt(bundle, engine.start(bundle)).leave()


def test_debug_flag_is_optional(engine: Engine) -> None:
    engine.caller.debug = False
    task = engine.task()
    task.create()
    task.delete()
    task.leave()
