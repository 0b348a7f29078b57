"""podman where systemd makes the cgroups: each container is a scope of the system's or the user's manager.

Such a machine is `hack/vm --systemd`, where the other tests of podman run, too.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engines.conftest import SYSTEMD, assert_nothing_left
from tests.engines.images import NAME
from tests.engines.podman import AS_USER, SLEEP, Podman
from tests.engines.space import Space
from tests.harness.helpers import Helpers
from tests.harness.waiting import eventually

pytestmark = pytest.mark.skipif(not SYSTEMD, reason="systemd is not pid 1 here: use hack/vm")


def systemctl(podman: Podman, *arguments: str, rc: int | None = 0) -> str:
    """Ask the manager that podman asks."""
    user = [*AS_USER, "systemctl", "--user"] if podman.rootless else ["systemctl"]
    return podman.space(*user, *arguments, rc=rc).out


def shown(podman: Podman, id: str, name: str) -> str:
    """A property of the container's scope."""
    return systemctl(podman, "show", "--value", "--property", name, f"libpod-{id}.scope").strip()


def test_scope_with_limits(podman: Podman, name: str) -> None:
    id = podman.background(name, "--memory", "64m", "--pids-limit", "33", "--cpus", "0.5", *SLEEP)
    assert shown(podman, id, "ActiveState") == "active"
    assert shown(podman, id, "Slice") == ("user.slice" if podman.rootless else "machine.slice")
    assert shown(podman, id, "MemoryMax") == str(64 << 20)
    assert shown(podman, id, "TasksMax") == "33"
    assert shown(podman, id, "CPUQuotaPerSecUSec") == "500ms"
    limits = podman("exec", name, "cat", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max").out.split()
    assert limits == [str(64 << 20), "50000", "100000"]


def test_update_lasts(podman: Podman, name: str) -> None:
    """systemd writes its own values again when it is reloaded: the update must be one of them."""
    id = podman.background(name, "--memory", "64m", *SLEEP)
    podman("update", "--memory", "80m", name)
    systemctl(podman, "daemon-reload")
    assert shown(podman, id, "MemoryMax") == str(80 << 20)
    assert podman("exec", name, "cat", "/sys/fs/cgroup/memory.max").out == f"{80 << 20}\n"


def test_device_rules_outlive_a_reload(podman_space: Space, name: str) -> None:
    """The VM's scratch disk, for reading."""
    podman = Podman(podman_space, "ocirt")
    podman.background(name, "--device", "/dev/ubdb:/dev/disk:r", *SLEEP)
    try:
        for _ in range(2):
            assert podman("exec", name, "head", "-c", "3", "/dev/disk").out == "\0\0\0"
            assert "not permitted" in podman("exec", name, "sh", "-c", "echo > /dev/disk", rc=1).err
            systemctl(podman, "daemon-reload")
    finally:
        podman("rm", "--force", "--time", "0", name)


def test_stopping_the_scope(podman: Podman, name: str) -> None:
    script = "trap 'exit 5' TERM; while :; do sleep 0.1; done"
    id = podman.background(name, NAME, "sh", "-c", script)
    systemctl(podman, "stop", f"libpod-{id}.scope")
    assert podman("wait", name).out.strip() == "5"
    assert podman.status(name) == "exited"


def test_frozen_scope_is_stopped(podman: Podman, name: str) -> None:
    """A paused container can be removed, and takes its scope with it."""
    id = podman.background(name, *SLEEP)
    podman("pause", name)
    podman("rm", "--force", "--time", "0", name)
    assert shown(podman, id, "LoadState") == "not-found"


def test_health_checks_by_a_timer(podman: Podman, name: str) -> None:
    podman.background(name, "--health-cmd", "touch /checked", "--health-interval", "1s", *SLEEP)
    end = time.monotonic() + 30
    while podman.inspect(name)["State"]["Health"]["Status"] != "healthy":
        assert time.monotonic() < end
        time.sleep(0.3)
    podman("exec", name, "test", "-e", "/checked")


def test_readiness_by_the_container(podman: Podman, name: str, helpers: Helpers) -> None:
    """A unit of Type=notify whose container says READY=1 to NOTIFY_SOCKET."""
    program = podman.space.directory / "notify"
    program.write_bytes(helpers("notify").read_bytes())
    program.chmod(0o755)
    user = [*AS_USER, "systemd-run", "--user"] if podman.rootless else ["systemd-run"]
    unit = f"{name}.service"
    properties = ("Type=notify", "NotifyAccess=all", "KillMode=mixed", "TimeoutStartSec=50", "TimeoutStopSec=20")
    given = ["--collect", "--unit", unit, *(f"--property={value}" for value in properties)]
    script = "trap 'exit 0' TERM; /notify READY=1; while :; do sleep 0.1; done"
    volume = ("--sdnotify", "container", "--volume", f"{program}:/notify:ro")
    run = ("run", "--rm", "--name", name, "--network", "none", *volume, NAME, "sh", "-c", script)
    podman.space(*user, *given, "podman", "--runtime", podman.runtime, *run)  # returns when the unit is active
    assert systemctl(podman, "is-active", unit) == "active\n"
    systemctl(podman, "stop", unit)
    podman("container", "exists", name, rc=1)


def test_many(podman: Podman, name: str) -> None:
    """Ten, four at a time, started and stopped: none lost, nothing left behind."""

    def one(number: int) -> str:
        id = podman("run", "--detach", "--network", "none", "--name", f"{name}n{number}", *SLEEP).out.strip()
        assert podman("exec", id, "echo", str(number)).out == f"{number}\n"
        podman("rm", "--force", "--time", "0", id)
        return id

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(one, range(10)))
    assert len(set(ids)) == 10

    def units() -> list[str]:
        known = systemctl(podman, "list-units", "--all", "--plain", "--no-legend", "libpod-*").splitlines()
        return [line for line in known if any(id in line for id in ids)]

    eventually(lambda: not units())  # conmon, a scope of its own, ends by itself after the container
    assert units() == []
    for id in ids:
        assert_nothing_left(podman.space, id)
