"""check: what this host offers, for people and for programs; what is taken away must be missed."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.harness.peers import lacks
from tests.harness.runtime import Result, Runtime

pytestmark = lacks("runc", "crun", what="check")

STATUS = {"ok", "partly", "missing"}


def check(runtime: Runtime, *flags: str, **options: Any) -> Result:
    return runtime(argv=[*runtime.prefix, runtime.path, "check", *flags], check=False, **options)


def findings(runtime: Runtime, **options: Any) -> dict[str, dict[str, Any]]:
    """By name."""
    report = json.loads(check(runtime, "--format", "json", **options).out)
    return {finding["name"]: finding for finding in report["findings"]}


def test_report_for_people(runtime: Runtime) -> None:
    """Groups, one line a finding, and a remedy below each that is not well."""
    result = check(runtime)
    assert result.rc == 0
    lines = result.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "kernel",
        "cgroups",
        "privilege",
        "tools",
        "network",
    ]
    told = [match for line in lines if (match := re.fullmatch(r"  (ok|partly|missing) +(\S.*?)  +\S.*", line))]
    assert len(told) > 12
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith(("  partly", "  missing")):
            assert re.match("           +-> .", below), f"no remedy for: {line}"


def test_report_for_programs(runtime: Runtime) -> None:
    result = check(runtime, "--format", "json")
    report = json.loads(result.out)
    assert report["usable"] is (result.rc == 0)
    for finding in report["findings"]:
        assert set(finding) == {"group", "name", "status", "detail", "remedy", "required"}
        assert finding["status"] in STATUS
        assert finding["detail"]
        assert bool(finding["remedy"]) is (finding["status"] != "ok"), finding
    people = check(runtime).out
    assert all(finding["name"] in people for finding in report["findings"])


@pytest.mark.parametrize("call", ["openat2", "clone3", "pidfd_open", "mount_setattr"])
def test_system_call_that_is_not_there(runtime: Runtime, call: str) -> None:
    runtime.prefix = [sys.executable, str(ROOT / "tests/kernel/enosys.py"), call]
    found = findings(runtime)["system calls"]
    assert found["status"] == "partly"
    assert re.search(rf"not {call} \(Linux \d\.\d+\)", found["detail"])


def test_capability_that_is_not_there(runtime: Runtime) -> None:
    runtime.prefix = ["setpriv", "--bounding-set=-sys_ptrace"]
    found = findings(runtime)["capabilities"]
    assert found["status"] == "partly"
    assert "CAP_SYS_PTRACE" in found["detail"]


#: Hides programs below what can not be executed, in a mount namespace of its own.
HIDE = """
for name in newuidmap newgidmap criu; do
    for path in /usr/bin/$name /usr/sbin/$name; do
        [ ! -e $path ] || mount --bind /dev/null $path
    done
done
exec "$@"
"""


def test_programs_that_are_not_there(runtime: Runtime) -> None:
    runtime.prefix = ["unshare", "--mount", "sh", "-c", HIDE, "sh"]
    found = findings(runtime)
    assert found["criu"]["status"] == "missing"
    assert "not installed" in found["criu"]["detail"]
    assert found["newuidmap"]["status"] == "missing"
    assert "uidmap" in found["newuidmap"]["remedy"]


def test_no_cgroups(runtime: Runtime) -> None:
    script = 'umount --recursive --lazy /sys/fs/cgroup; exec "$@"'
    runtime.prefix = ["unshare", "--mount", "sh", "-c", script, "sh"]
    found = findings(runtime)["kind"]
    assert found["status"] == "missing"
    assert found["remedy"]


def test_of_an_ordinary_user(runtime: Runtime) -> None:
    """It says how far a user without privilege gets, and doesn't fail."""
    runtime.prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--inh-caps=-all"]
    found = findings(runtime)
    assert found["release"]["status"] == "ok"
    assert found["delegation"]["status"] in STATUS
    assert "root needs none" not in found["delegation"]["detail"]
