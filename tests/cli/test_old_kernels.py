"""The life of a container on kernels that lack newer system calls: they answer ENOSYS, the fallbacks do the rest."""

from __future__ import annotations

import sys

import pytest

from tests.harness.box import Box
from tests.kernel import enosys

#: Each on its own, and all at once: a kernel of 2018.
LACKING = [
    "openat2",
    "open_tree",
    "mount_setattr",
    "move_mount",
    "fsopen",
    "clone3",
    "close_range",
    "pidfd_open",
    "pidfd_send_signal",
    ",".join(enosys.NUMBERS),
]


@pytest.fixture
def old(box: Box, request: pytest.FixtureRequest) -> Box:
    if box.runtime.name != "ocirt":
        pytest.skip("about ocirt's own fallbacks: what the peers need of the kernel is their business")
    box.runtime.prefix = [sys.executable, enosys.__file__, request.param]
    return box


@pytest.mark.parametrize("old", LACKING, indirect=True, ids=lambda names: names if "," not in names else "all")
def test_life_of_a_container(old: Box) -> None:
    box = old
    box.create_and_start("trap 'exit 5' TERM; sleep 60 & wait")
    assert box.status == "running"
    assert box.exec("sh", "-c", "test -r /proc/self/status && test -c /dev/null && echo inside").out == "inside\n"
    assert box.runtime("list", "--quiet").out.split() == [box.id]
    box.kill("TERM")
    box.wait_for("stopped")
    box.delete()


@pytest.mark.parametrize("old", LACKING, indirect=True, ids=lambda names: names if "," not in names else "all")
def test_run_and_errors(old: Box) -> None:
    box = old
    assert box.run("hostname; exit 7", check=False).rc == 7
    box.args("/nonexistent")
    result = box.run(check=False)
    assert result.rc == 1
    assert "no such file or directory" in result.err


@pytest.mark.parametrize("old", LACKING, indirect=True, ids=lambda names: names if "," not in names else "all")
def test_delete_force_of_a_running_container(old: Box) -> None:
    old.create_and_start("sleep 60")
    old.delete("--force")
    assert old.runtime("list", "--quiet").out == ""
