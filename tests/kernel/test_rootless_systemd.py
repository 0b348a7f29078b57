"""An ordinary user's containers where systemd delegates cgroups: the user's own manager, cgroup v2.

Such a machine is `hack/vm --systemd`.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.runtime import Runtime
from tests.harness.user import User, user

MakeBox = Callable[[], Box]

pytestmark = [
    pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="systemd is not pid 1 here: use hack/vm"),
    pytest.mark.skipif(
        not os.path.exists("/sys/fs/cgroup/cgroup.controllers"), reason="cgroup v1 is not delegated: use hack/vm"
    ),
]


@pytest.fixture(scope="module")
def person() -> Iterator[User]:
    """A user whose manager runs."""
    with user(f"oct{os.getpid()}", subordinate_ids=True) as made:
        subprocess.run(["loginctl", "enable-linger", made.name], check=True, timeout=60)
        unit = f"user@{made.uid}.service"
        for _ in range(300):
            if subprocess.run(["systemctl", "is-active", "-q", unit], check=False).returncode == 0:
                break
            time.sleep(0.1)
        yield made
        subprocess.run(["loginctl", "disable-linger", made.name], check=True, timeout=60)
        subprocess.run(["systemctl", "stop", unit], check=True, timeout=120)


WAYS = {
    "from outside by the user's manager": ["--systemd-cgroup"],
    "in the user's manager by itself": [],
    "in the user's manager by systemd": ["--systemd-cgroup"],
}


@pytest.fixture(params=WAYS)
def runtime(apart: None, place: Path, person: User, request: pytest.FixtureRequest) -> Runtime:
    """The runtime as the user runs it."""
    state = place / "state"
    state.mkdir()
    person.own(state)
    # /run/user/UID has been mounted since the tests got a mount namespace of their own
    prefix = ["nsenter", "--target=1", "--mount", *person.prefix(XDG_RUNTIME_DIR=f"/run/user/{person.uid}")]
    if request.param.startswith("in "):
        prefix = ["systemd-run", "--quiet", f"--machine={person.name}@", "--user", "--pipe", "--wait", "--collect"]
    path = request.config.getoption("--runtime")
    return Runtime(path, "ocirt", state, prefix=prefix, extra=WAYS[request.param])


@pytest.fixture
def box(make_box: MakeBox, person: User) -> Box:
    made = make_box()
    made.linux["resources"] = {"memory": {"limit": 100 << 20}, "pids": {"limit": 50}}
    made.linux.pop("cgroupsPath")
    made.namespace("cgroup")
    made.mount("/sys/fs/cgroup", "cgroup", options=["nosuid", "noexec", "nodev"])
    person.own(made.directory)
    return made


def cgroup_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


def test_limits_freezing_and_exec_in_a_delegated_cgroup(box: Box, person: User) -> None:
    box.sh("cat /proc/self/cgroup; mkdir /sys/fs/cgroup/own && echo delegated; rmdir /sys/fs/cgroup/own; sleep 1000")
    box.create(timeout=120)
    pid = box.pid
    path = cgroup_of(pid)
    assert re.match(rf"/user\.slice/user-{person.uid}\.slice/user@{person.uid}\.service/.*{box.id}", path)
    directory = Path("/sys/fs/cgroup" + path)
    assert (directory / "memory.max").read_text() == f"{100 << 20}\n"
    assert (directory / "pids.max").read_text() == "50\n"
    box.start(timeout=120)
    box.wait_for_output("delegated", 60)
    assert box.out.split()[0] == "0::/"

    box.runtime("pause", box.id, timeout=120)
    assert box.status == "paused"
    assert (directory / "cgroup.freeze").read_text() == "1\n"
    box.runtime("resume", box.id, timeout=120)
    assert box.exec("cat", "/proc/self/cgroup", timeout=120).out == "0::/\n"
    box.runtime("update", "--pids-limit", "40", box.id, timeout=120)
    assert (directory / "pids.max").read_text() == "40\n"
    box.kill("KILL", "--all", timeout=120)
    box.wait_for("stopped", 60)
    box.delete(timeout=120)
    assert not directory.exists()


def test_subgroup_and_delegated_cgroup(box: Box, person: User) -> None:
    """exec finds the way there as well, also where only systemd may move its process."""
    box.config["annotations"] = {"run.oci.systemd.subgroup": "sub", "run.oci.delegate-cgroup": "payload"}
    below = "/sub/payload" if box.runtime.extra else "/payload"
    box.sh("sleep 1000")
    box.create(timeout=120)
    path = cgroup_of(box.pid)
    assert path.endswith(below)
    directory = Path("/sys/fs/cgroup" + path.removesuffix(below))
    assert (directory / "pids.max").read_text() == "50\n"
    assert (directory / below[1:] / "pids.max").read_text() == "max\n"
    assert (directory / below[1:]).stat().st_uid == person.uid
    box.start(timeout=120)
    assert box.exec("cat", "/proc/self/cgroup", timeout=120).out == "0::/\n"
    box.delete("--force", timeout=120)
    assert not directory.exists()
