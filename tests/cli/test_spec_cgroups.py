"""What the specification says of cgroups and can be seen from outside on every kind of host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.box import Box
from tests.harness.peers import peer_fails

ROOT = Path("/sys/fs/cgroup")
PURE_V2 = (ROOT / "cgroup.controllers").exists()
V2 = ROOT if PURE_V2 else ROOT / "unified"


def has_v1() -> bool:
    return " cgroup cgroup " in Path("/proc/self/mountinfo").read_text()


@peer_fails("crun", "1.8.1 gives the cgroups of a hybrid host away", always=False)
@pytest.mark.parametrize("case", ["rw", "ro", "no cgroup namespace", "no mount"])
def test_the_owner_of_the_cgroup(box: Box, case: str) -> None:
    """config-linux.md, Cgroup ownership: the container's root owns it with a cgroup namespace and a writable mount."""
    box.add_user_namespace()
    if case != "no cgroup namespace":
        box.namespace("cgroup")
    if case != "no mount":
        option = "ro" if case == "ro" else "rw"
        box.mount("/sys/fs/cgroup", "cgroup", "cgroup", ["nosuid", "noexec", "nodev", "relatime", option])
    box.create()
    found = [path for path in ROOT.rglob(box.id) if path.is_dir()]
    assert found
    for path in found:
        changed = path.stat().st_uid == 100000
        delegated = case == "rw" and not has_v1()
        assert changed == delegated, path
        for file in path.iterdir():
            if not file.is_file():
                continue
            listed = file.name in Path("/sys/kernel/cgroup/delegate").read_text().split()
            assert (file.stat().st_uid == 100000) == (delegated and listed), file


@peer_fails("crun", "1.8.1 ignores it on v1", always=False)
def test_unified_of_a_controller_that_is_not_there(box: Box) -> None:
    """config-linux.md, Unified: an error, and nothing is left."""
    box.linux["resources"]["unified"] = {"moon.phase": "full"}
    result = box.create(check=False)
    assert result.rc == 1
    if box.runtime.name == "ocirt":
        assert "moon" in result.err or "unified" in result.err
    assert box.runtime("state", box.id, check=False).rc == 1


def test_without_intel_rdt_nothing_asks_for_it(box: Box) -> None:
    """config-linux.md, IntelRdt: without it no resctrl file system is touched, mounted or not."""
    box.create()
    assert not os.path.exists(f"/sys/fs/resctrl/{box.id}")
    assert "resctrl" not in Path(f"/proc/{box.pid}/mountinfo").read_text()
