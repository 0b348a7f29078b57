"""The CPUs of an executed process (config.md, Linux Process, execCPUAffinity)."""

from __future__ import annotations

import os

import pytest

from tests.harness.box import Box
from tests.harness.peers import peer_fails

CPUS = sorted(os.sched_getaffinity(0))
ALLOWED = "grep Cpus_allowed_list /proc/self/status"


def cpus(text: str) -> str:
    return text.rsplit(maxsplit=1)[-1]


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU leaves no choice of affinity")
@peer_fails("runc", "1.1.5 knows no execCPUAffinity")
@peer_fails("crun", "1.8.1 knows no execCPUAffinity")
def test_final_is_where_it_runs(box: Box) -> None:
    box.process["execCPUAffinity"] = {"initial": str(CPUS[1]), "final": str(CPUS[0])}
    box.create_and_start("sleep 1000")
    assert cpus(box.exec("sh", "-c", ALLOWED).out) == str(CPUS[0])


@pytest.mark.skipif(len(CPUS) < 2, reason="one CPU leaves no choice of affinity")
def test_affinity_without_final_is_left_to_the_kernel(box: Box) -> None:
    """What init may run on is what the cgroup gives; an executed process without `final` has no less."""
    box.process["execCPUAffinity"] = {}
    box.create_and_start(f"{ALLOWED}; sleep 1000")
    box.wait_for_output("Cpus_allowed_list")
    assert cpus(box.exec("sh", "-c", ALLOWED).out) == cpus(box.out)
