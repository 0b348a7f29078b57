"""Nothing of an image, a bundle or a current directory is ever run by the shim's interpreter."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.engines.containerd.engine import Engine, ShimBundle, Task, mount
from tests.harness.bundle import make_rootfs
from tests.security.test_imports import MODULES, PLACES

#: What a shim might import beside what the runtime does.
MORE = [
    "_socket",
    "_json",
    "resource",
    "warnings",
    "tomllib",
    "select",
    "_signal",
    "ttrpc",
    "shim",
    "urllib",
    "uuid",
    "inspect",
    "ast",
    "asyncio",
]


class Poison:
    """Modules that tell on themselves, by a directory that the host and the container see under one name."""

    def __init__(self, engine: Engine) -> None:
        self.told = engine.place / "told"
        self.told.mkdir(mode=0o777)
        self.text = f"""import posix
fd = posix.open({str(self.told)!r} + "/" + __name__.replace(".", "_"), posix.O_WRONLY | posix.O_CREAT, 0o666)
posix.write(fd, b"imported from " + __file__.encode())
posix.close(fd)
"""

    def put(self, place: Path) -> None:
        """Into a directory."""
        place.mkdir(parents=True, exist_ok=True)
        for name in (*MODULES, *MORE):
            target = place / f"{name}.py"
            if not target.exists():
                target.write_text(self.text)

    def found(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in self.told.iterdir()}


@pytest.fixture
def poison(engine: Engine) -> Poison:
    return Poison(engine)


@pytest.fixture
def poisoned(engine: Engine, poison: Poison) -> ShimBundle:
    """A bundle with an image of its own, both full of poison."""
    bundle = engine.bundle("sleep 1000")
    image = engine.place / "image"
    make_rootfs(image)
    for name in PLACES:
        poison.put(image / name)
    poison.put(bundle.path)
    poison.put(engine.place)
    shutil.copy(image / "json.py", bundle.path / "json.py")
    bundle.bind(poison.told, str(poison.told), "bind", "rw")
    return bundle


def rootfs(engine: Engine) -> list[object]:
    return [mount("bind", engine.place / "image", "rbind", "rw")]


def live(task: Task, engine: Engine) -> None:
    """Every call, with execs, one that fails among them."""
    task.create(rootfs=rootfs(engine))
    task.start()
    assert task.run("/bin/echo", "word") == (0, b"word\n")
    task.run("/bin/true", spec={"user": {"uid": 1000, "gid": 1000, "umask": 0o27}, "cwd": "/tmp"})
    id = task.exec("/nonexistent")
    task.fails("Start", exec_id=id)
    task.delete(id)
    task("Pause")
    task("Resume")
    task("Stats")
    task("Pids")
    task.fails("State", exec_id="nobody")
    task.fails("Checkpoint", path=str(engine.place / "checkpoint"))
    task.kill()
    task.wait()
    task.delete()


def test_whole_life(engine: Engine, poisoned: ShimBundle, poison: Poison) -> None:
    task = engine.task(bundle=poisoned)
    live(task, engine)
    task.leave()
    assert poison.found() == {}


def test_in_a_group(engine: Engine, poisoned: ShimBundle, poison: Poison) -> None:
    """A warm shim that has served others, and one that dies."""
    annotation = {"io.kubernetes.cri.sandbox-id": f"{engine.name}n-pod"}
    first = engine.running(bundle=engine.bundle("sleep 1000", **annotation))
    poisoned.config["annotations"] = annotation
    task = engine.task(bundle=poisoned)
    live(task, engine)
    task.shutdown()
    task._done = True
    engine.caller.delete(task.id, poisoned.path)
    first.end()
    assert poison.found() == {}


def test_program_that_is_not_there(engine: Engine, poisoned: ShimBundle, poison: Poison) -> None:
    """Errors are explained without the image's help."""
    poisoned.args("/nonexistent")
    task = engine.task(bundle=poisoned)
    task.shim.fails("Create", **task.request(rootfs=rootfs(engine)))
    task.leave()
    assert poison.found() == {}


def test_invalid_configuration(engine: Engine, poisoned: ShimBundle, poison: Poison) -> None:
    """The validator that explains is a large library; it is found at home."""
    poisoned.config["process"]["cwd"] = 3
    task = engine.task(bundle=poisoned)
    task.shim.fails("Create", **task.request(rootfs=rootfs(engine)))
    task.leave()
    assert poison.found() == {}


def test_shim_that_was_killed(engine: Engine, poisoned: ShimBundle, poison: Poison) -> None:
    """`delete` runs in the bundle's directory."""
    import os
    import signal

    task = engine.task(bundle=poisoned)
    task.create(rootfs=rootfs(engine))
    task.start()
    os.kill(task.shim_pid, signal.SIGKILL)
    assert task.shim.closed()
    engine.caller.delete(task.id, poisoned.path)
    task._done = True
    Path(task.answer.address.removeprefix("unix://")).unlink(missing_ok=True)
    assert poison.found() == {}


def test_the_poison_works(engine: Engine, poisoned: ShimBundle, poison: Poison) -> None:
    """An interpreter that looks into the current directory or the image does tell."""
    import subprocess
    import sys

    subprocess.run([sys.executable, "-c", "import tomllib"], cwd=poisoned.path, check=False, capture_output=True)
    assert "tomllib" in poison.found() or "encodings" in poison.found()
    engine.task(bundle=poisoned).leave()
