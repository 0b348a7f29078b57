"""What only systemd does: units, what it writes again when it is reloaded, its user manager."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocirt import cgroups
from ocirt.errors import Error, InvalidConfig, Unsupported
from tests.harness.leftovers import Before
from tests.kernel.cgroup_lab import SYSTEMD, UNIFIED, Lab, read

MIB = 1 << 20
NAMED = "systemd is not pid 1 here"


@pytest.fixture
def lab(apart: None, test_id: str, place: Path) -> Iterator[Lab]:
    before = Before()
    made = Lab(test_id, "systemd")
    yield made
    made.close()
    left = before.left(place, test_id)
    left += [f"unit {line}" for line in systemctl("list-units", "--all", "--no-legend", f"*{test_id}*").splitlines()]
    assert not left, "left behind: " + ", ".join(left)


def systemctl(*arguments: str) -> str:
    return subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def shown(unit: str, name: str) -> str:
    return systemctl("show", "--value", "-p", name, unit)


@pytest.mark.skipif(SYSTEMD, reason="systemd is pid 1 here")
def test_without_systemd_the_error_says_what_to_do(test_id: str) -> None:
    cgroup = cgroups.choose({}, test_id, manager="systemd", rootless=False, annotations={})
    with pytest.raises(Unsupported, match="--cgroup-manager=cgroupfs does without systemd"):
        cgroup.prepare()


@pytest.mark.skipif(not SYSTEMD, reason=NAMED)
def test_a_scope_in_its_slice(lab: Lab) -> None:
    cgroup = lab.prepared(path=f"ocirt-{lab.name}.slice:pre:a+b")
    process = lab.process("time.sleep(600)")
    cgroup.join(process.pid)
    unit = "pre-a\\x2bb.scope"
    assert shown(unit, "Slice") == f"ocirt-{lab.name}.slice"
    assert shown(unit, "Delegate") == "yes"
    assert shown(unit, "ActiveState") == "active"
    assert cgroup.path("pids").endswith(f"/ocirt.slice/ocirt-{lab.name}.slice/{unit}")
    assert shown(unit, "ControlGroup") == cgroup.mounts()[0][2]
    assert cgroup.pids() == [process.pid]
    cgroup.kill()
    process.end()
    cgroup.remove()
    assert shown(unit, "LoadState") == "not-found"
    systemctl("stop", f"ocirt-{lab.name}.slice", "ocirt.slice")


@pytest.mark.skipif(not SYSTEMD, reason=NAMED)
def test_limits_survive_a_reload(lab: Lab) -> None:
    """systemd writes what it knows again, and puts its default where it knows of nothing."""
    resources = {
        "memory": {"limit": 64 * MIB, "swap": 80 * MIB, "reservation": 16 * MIB},
        "cpu": {"shares": 512, "quota": 25_000, "period": 50_000, "burst": 10_000, "cpus": "0"},
        "pids": {"limit": 33},
    }
    cgroup, _ = lab.idle(resources)
    names = (
        ["memory.max", "memory.swap.max", "memory.low", "cpu.weight", "cpu.max", "cpu.max.burst", "cpuset.cpus"]
        if UNIFIED
        else ["memory.limit_in_bytes", "cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpuset.cpus"]
    )
    where = {name: name.partition(".")[0] for name in [*names, "pids.max"]}
    before = {name: read(cgroup, controller, name) for name, controller in where.items()}
    systemctl("daemon-reload")
    systemctl("set-property", "--runtime", lab.name + "-c.scope", "Description=changed")
    after = {name: read(cgroup, controller, name) for name, controller in where.items()}
    assert after == before
    assert before["pids.max"] == "33"
    cgroup.update({"pids": {"limit": 44}, "cpu": {"quota": -1}}, resources)
    systemctl("daemon-reload")
    assert read(cgroup, "pids", "pids.max") == "44"


@pytest.mark.skipif(not SYSTEMD, reason=NAMED)
def test_device_rules_survive_a_reload(lab: Lab, place: Path) -> None:
    node = str(place / "node")
    os.mknod(node, 0o666 | 0o020000, os.makedev(1, 11))
    program = (
        "for line in sys.stdin:\n"
        f"    for path in ('/dev/null', {node!r}):\n"
        "        try:\n            os.close(os.open(path, os.O_RDONLY)); print('open', flush=True)\n"
        "        except OSError as error: print(error.strerror, flush=True)\n"
    )
    cgroup, process = lab.limited({"devices": [{"allow": False, "access": "rwm"}]}, program)
    for action in ([], ["daemon-reload"], ["set-property", "--runtime", lab.name + "-c.scope", "CPUWeight=50"]):
        if action:
            systemctl(*action)
        assert process.popen.stdin
        process.popen.stdin.write("again\n")
        process.popen.stdin.flush()
        assert [process.line(), process.line()] == ["open", "Operation not permitted"]
    assert cgroup.pids() == [process.pid]


@pytest.mark.skipif(not SYSTEMD, reason=NAMED)
def test_annotations_are_properties(lab: Lab) -> None:
    annotations = {
        "org.systemd.property.TimeoutStopSec": "7",
        "org.systemd.property.CollectMode": "'inactive-or-failed'",
        "org.systemd.property.Description": "'of the user'",
        "org.systemd.property.RequiresMountsFor": "@as ['/tmp']",
        "org.systemd.property.CPUWeight": "uint64 77",
    }
    cgroup = lab.prepared(annotations=annotations)
    process = lab.process("time.sleep(600)")
    cgroup.join(process.pid)
    unit = lab.name + "-c.scope"
    assert shown(unit, "TimeoutStopUSec") == "7s"
    assert shown(unit, "CollectMode") == "inactive-or-failed"
    assert shown(unit, "Description") == "of the user"
    assert shown(unit, "RequiresMountsFor") == "/tmp"
    assert shown(unit, "CPUWeight") == "77"


@pytest.mark.skipif(not SYSTEMD, reason=NAMED)
def test_a_property_that_there_is_not(lab: Lab) -> None:
    cgroup = lab.prepared(annotations={"org.systemd.property.Nonsense": "5"})
    process = lab.process("time.sleep(600)")
    with pytest.raises(Error, match=rf"start the unit {lab.name}-c\.scope: StartTransientUnit: .*Nonsense"):
        cgroup.join(process.pid)
    with pytest.raises(InvalidConfig, match="no GVariant text"):
        lab.choose(annotations={"org.systemd.property.CPUWeight": "uint64"})


@pytest.mark.skipif(not SYSTEMD, reason=NAMED)
def test_a_scope_that_stops_by_itself_is_gone(lab: Lab) -> None:
    cgroup, process = lab.idle()
    process.end()
    cgroup.remove()
    cgroup.remove()
    assert cgroup.pids() == []
    assert cgroup.oom_kills() == 0


@pytest.mark.skipif(not SYSTEMD, reason=NAMED)
def test_a_name_can_be_used_again(lab: Lab) -> None:
    for _ in range(3):
        cgroup, process = lab.idle()
        cgroup.kill()
        process.end()
        cgroup.remove()


ROOTLESS = """
import os, subprocess, sys, time
sys.path.insert(0, {root!r})
from ocirt import cgroups
resources = {{"memory": {{"limit": 64 << 20}}, "pids": {{"limit": 20}}}}
linux = {{"cgroupsPath": "user.slice:test:{name}", "resources": resources}}
cgroup = cgroups.choose(linux, "x", manager="systemd", rootless=True, annotations={{}})
cgroup.prepare()
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
cgroup.join(child.pid)
cgroup.apply(resources)
loaded = cgroups.load(cgroup.record())
print(loaded.path(), loaded.pids() == [child.pid], open(loaded.path() + "/memory.max").read().strip())
other = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
loaded.join_exec(other.pid, [], child.pid)
print(sorted(loaded.pids()) == sorted([child.pid, other.pid]))
loaded.freeze(); print(loaded.frozen()); loaded.thaw()
loaded.kill(); child.wait(); other.wait()
loaded.remove()
print(os.path.exists(loaded.path()))
"""


@pytest.mark.skipif(not SYSTEMD or not UNIFIED, reason=NAMED + ", with cgroup v2: nothing can be delegated on v1")
def test_the_user_manager_serves_without_privilege(lab: Lab, place: Path) -> None:
    user, root = f"u{lab.name}", str(Path(__file__).resolve().parents[2])
    subprocess.run(["useradd", "-m", user], check=True)
    try:
        uid = subprocess.run(["id", "-u", user], check=True, capture_output=True, text=True).stdout.strip()
        systemctl("start", f"user@{uid}.service")
        script = place / "rootless.py"
        script.write_text(ROOTLESS.format(root=root, name=lab.name))
        done = subprocess.run(
            # the user's runtime directory was mounted in pid 1's mount namespace, not in the tests'
            [
                "nsenter",
                "--mount=/proc/1/ns/mnt",
                "setpriv",
                f"--reuid={uid}",
                f"--regid={uid}",
                "--clear-groups",
                "/usr/bin/python3",
                "-I",
                str(script),
            ],
            env={"XDG_RUNTIME_DIR": f"/run/user/{uid}", "PATH": os.environ["PATH"]},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        lines = done.stdout.splitlines()
        assert done.returncode == 0, done.stderr
        assert lines[0].startswith(f"/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/")
        assert lines[0].endswith(f"True {64 * MIB}")
        assert lines[1:] == ["True", "True", "False"]
    finally:
        systemctl("stop", f"user@{uid}.service")
        subprocess.run(["userdel", "-r", user], check=True, capture_output=True)
