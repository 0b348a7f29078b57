"""The cgroup from systemd: by option, and by a cgroupsPath of its form where nobody could give options."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.engines.containerd.engine import Engine
from tests.engines.containerd.test_rootfs import runtime_options

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


@pytest.mark.parametrize("said", ["by option", "by TOML", "by path"])
def test_scope(engine: Engine, said: str) -> None:
    bundle = engine.bundle("sleep 1000")
    bundle.linux["cgroupsPath"] = f"system.slice:cri-containerd:{bundle.id}"
    bundle.linux["resources"] = {"pids": {"limit": 77}}
    unit = f"cri-containerd-{bundle.id}.scope"
    task = engine.task(bundle=bundle)
    options = {
        "by option": engine.options(systemd_cgroup=True),
        "by TOML": runtime_options(config_body=b"SystemdCgroup = true\n"),
        "by path": None,
    }
    task.create(options=options[said])
    task.start()
    found = scope(unit)
    assert (found["ActiveState"], found["Slice"], found["TasksMax"]) == ("active", "system.slice", "77")
    assert unit in Path(f"/proc/{task.pid}/cgroup").read_text()
    assert task.pids() == [task.pid]
    task("Pause")
    task("Resume")
    assert task.run("/bin/echo", "in it") == (0, b"in it\n")
    task.kill()
    task.wait()
    task.delete()
    task.leave()
    assert scope(unit)["ActiveState"] == "inactive"
