"""What `features` lists is known to the runtime (features.md, features-linux.md)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_spec_state import fits
from tests.harness.box import Box
from tests.harness.peers import lacks, peer_fails
from tests.harness.runtime import Runtime

pytestmark = lacks("crun", what="features before 1.8.6")

#: Options that only a file system understands.
DATA = {"size", "mode", "uid", "gid", "nr_inodes", "newinstance", "ptmxmode", "hidepid", "context", "lowerdir"}


@pytest.fixture
def features(runtime: Runtime) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(runtime("features").out)
    return found


def test_features_fit_the_schema(features: dict[str, Any]) -> None:
    """Nothing but what is defined, each with its type, null nowhere."""
    fits("features.json", features)
    assert set(features) <= {
        "ociVersionMin", "ociVersionMax", "hooks", "mountOptions", "annotations", "linux",
        "potentiallyUnsafeConfigAnnotations",
    }  # fmt: skip
    assert set(features["linux"]) <= {
        "namespaces", "capabilities", "cgroup", "seccomp", "apparmor", "selinux", "memoryPolicy", "intelRdt",
        "mountExtensions", "netDevices",
    }  # fmt: skip
    assert "null" not in json.dumps(features)
    assert all(isinstance(value, str) for value in features.get("annotations", {}).values())


def test_both_versions_are_accepted(box: Box, features: dict[str, Any]) -> None:
    least, most = features["ociVersionMin"], features["ociVersionMax"]
    assert [int(n) for n in least.split("-")[0].split(".")] <= [int(n) for n in most.split("-")[0].split(".")]
    for version in (least, most):
        box.config["ociVersion"] = version
        assert box.run("echo ok").out == "ok\n"


def test_every_listed_hook_runs(box: Box, place: Path, features: dict[str, Any]) -> None:
    ran = place / "ran"
    shutil.copy(box.rootfs / "bin/busybox", box.rootfs / "bin/hook")
    box.mount("/seen", "none", str(place), ["bind"])
    box.config["hooks"] = {
        kind: [
            {
                "path": "/bin/sh",
                "args": ["sh", "-c", f"echo {kind} >>{'/seen/ran' if kind == 'startContainer' else ran}"],
            }
        ]
        for kind in features["hooks"]
    }
    box.run("true")
    assert sorted(ran.read_text().split()) == sorted(features["hooks"])


@peer_fails("runc", "1.1.5 lists options that it gives to the file system")
def test_every_listed_mount_option_is_known(box: Box, place: Path, features: dict[str, Any]) -> None:
    """An option that isn't known goes to the file system as data, and tmpfs refuses what it doesn't know."""
    special = {"bind", "rbind", "remount", "idmap", "ridmap", "copy-symlink", "src-nofollow", "dest-nofollow"}
    for option in sorted(set(features["mountOptions"]) - special):
        box.mount(f"/m/{option}", "tmpfs", "tmpfs", [option])
    box.bind(place, "/b", "bind")
    box.bind(place, "/rb", "rbind")
    assert box.run("echo ok").out == "ok\n"


def test_no_data_option_is_listed(features: dict[str, Any]) -> None:
    assert not DATA & set(features["mountOptions"])


def test_features_do_not_depend_on_the_machine(runtime: Runtime, features: dict[str, Any]) -> None:
    """The answer is the same where /proc and /sys have nothing to tell."""
    script = 'mount -t tmpfs none /sys && mount -t tmpfs none /proc && exec "$@"'
    hidden = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", runtime.path, "features"]
    assert json.loads(runtime(argv=hidden).out) == features


@pytest.mark.parametrize("joined", [False, True])
def test_every_listed_namespace_is_known(box: Box, features: dict[str, Any], joined: bool) -> None:
    for type in features["linux"]["namespaces"]:
        if type == "user":
            continue
        name = {"network": "net", "mount": "mnt"}.get(type, type)
        if joined and type not in ("mount", "pid", "time"):
            box.namespace(type, f"/proc/self/ns/{name}")
        else:
            box.namespace(type)
    if joined:
        del box.config["hostname"]
    assert box.run("echo ok").out == "ok\n"


@peer_fails("runc", "says nothing of what it can't grant", always=False)
def test_every_listed_capability_is_known(box: Box, features: dict[str, Any]) -> None:
    """What the kernel or the caller doesn't have is a warning; an unknown name would be another one."""
    names = features["linux"]["capabilities"]
    assert len(names) >= 41
    box.process["capabilities"] = {"bounding": names}
    result = box.run("echo ok")
    assert result.out == "ok\n"
    unknown = {name for name in names if name in result.err}
    granted = box.run("grep CapBnd /proc/self/status").out.split()[1]
    assert len(unknown) + int(granted, 16).bit_count() == len(names)


@peer_fails("runc", "1.1.5 lists no flags")
def test_everything_listed_of_seccomp_is_known(box: Box, features: dict[str, Any]) -> None:
    told = features["linux"]["seccomp"]
    assert told["enabled"] is True
    rules: list[dict[str, Any]] = []
    calls = [
        "acct",
        "swapon",
        "swapoff",
        "reboot",
        "sethostname",
        "quotactl",
        "pivot_root",
        "nfsservctl",
        "lookup_dcookie",
    ]
    for call, action in zip(calls, (a for a in told["actions"] if a != "SCMP_ACT_NOTIFY"), strict=False):
        rules.append({"names": [call], "action": action})
    for operator in told["operators"]:
        rules.append({
            "names": ["personality"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 0x77777777, "valueTwo": 0x77777777, "op": operator}],
        })  # fmt: skip
    flags = [f for f in told["knownFlags"] if f != "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": told["archs"], "flags": flags, "syscalls": rules,
    }  # fmt: skip
    assert box.run("echo ok").out == "ok\n"


@peer_fails("runc", "1.1.5 lists no flags")
def test_every_supported_seccomp_flag_works(box: Box, features: dict[str, Any]) -> None:
    for flag in features["linux"]["seccomp"]["supportedFlags"]:
        if flag == "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV":
            continue  # wants a listener: tests/unit/test_seccomp_compile.py
        box.linux["seccomp"] = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": [flag],
            "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_ERRNO"}],
        }
        assert box.run("grep Seccomp: /proc/self/status").out.split() == ["Seccomp:", "2"]


@peer_fails("runc", "1.1.5 knows no memory policies")
def test_everything_listed_of_memory_policies_is_known(box: Box, features: dict[str, Any]) -> None:
    """Known is what isn't refused as unknown: whether the kernel takes it depends on its nodes."""
    told = features["linux"]["memoryPolicy"]
    assert "MPOL_DEFAULT" in told["modes"]
    for mode in told["modes"]:
        nodes = {} if mode in ("MPOL_DEFAULT", "MPOL_LOCAL") else {"nodes": "0"}
        box.linux["memoryPolicy"] = {"mode": mode, **nodes}
        result = box.run("echo ok", check=False)
        assert result.out == "ok\n" or "set_mempolicy" in result.err, result
    for flag in told["flags"]:
        box.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0", "flags": [flag]}
        result = box.run("echo ok", check=False)
        assert result.out == "ok\n" or "set_mempolicy" in result.err, result
