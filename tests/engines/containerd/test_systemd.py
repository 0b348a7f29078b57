"""The cgroup from systemd: by option, and by a cgroupsPath of its form where nobody could give options."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.engines.containerd.engine import Engine

pytestmark = pytest.mark.skipif(
    not Path("/run/systemd/system").is_dir(), reason="this host isn't run by systemd: hack/vm --systemd has it"
)


def scope(name: str) -> dict[str, str]:
    """What systemd knows of a unit."""
    done = subprocess.run(
        ["systemctl", "show", "--property=ActiveState,Slice,Delegate,TasksMax", name],
        capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("said", ["by option", "by path"])
def test_scope(engine: Engine, said: str) -> None:
    bundle = engine.bundle("sleep 1000")
    bundle.linux["cgroupsPath"] = f"system.slice:cri-containerd:{bundle.id}"
    bundle.linux["resources"] = {"pids": {"limit": 77}}
    unit = f"cri-containerd-{bundle.id}.scope"
    task = engine.task(bundle=bundle)
    if said == "by option":
        task.create(options=engine.options(systemd_cgroup=True))
    else:
        task.create()
    task.start()
    found = scope(unit)
    assert (found["ActiveState"], found["Slice"], found["TasksMax"]) == ("active", "system.slice", "77")
    assert unit in Path(f"/proc/{task.pid}/cgroup").read_text()
    assert task.pids() == [task.pid]
    task.kill()
    task.wait()
    task.delete()
    task.leave()
    assert scope(unit)["ActiveState"] == "inactive"
