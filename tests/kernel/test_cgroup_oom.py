"""Telling a start that memory didn't suffice for from one that succeeded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocirt.cgroups import oom
from tests.harness.leftovers import Before
from tests.kernel.cgroup_lab import Lab, eventually

EATER = "area = mmap.mmap(-1, 64 << 20)\nfor at in range(0, 64 << 20, 4096): area[at] = 1\n"


@pytest.fixture
def lab(apart: None, test_id: str, place: Path) -> Iterator[Lab]:
    before = Before()
    made = Lab(test_id, "cgroupfs")
    yield made
    made.close()
    left = before.left(place, test_id)
    assert not left, "left behind: " + ", ".join(left)


def test_a_process_that_lives_was_not_killed(lab: Lab) -> None:
    cgroup, process = lab.idle()
    assert not oom.killed_in_execve(process.pid, cgroup)


def test_a_process_that_ended_by_itself_was_not_killed(lab: Lab) -> None:
    cgroup, process = lab.limited({}, "")
    process.result()
    assert not oom.killed_in_execve(process.pid, cgroup)


def test_a_process_that_the_killer_took(lab: Lab) -> None:
    cgroup, process = lab.limited({"memory": {"limit": 16 << 20, "swap": 16 << 20}}, EATER)
    assert eventually(lambda: cgroup.oom_kills() == 1)
    assert eventually(lambda: oom.killed_in_execve(process.pid, cgroup))
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert oom.killed_in_execve(process.pid, cgroup)  # a zombie now
