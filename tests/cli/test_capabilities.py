"""The five capability sets (config.md, Linux Process)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.test_process import proc_status, status_of
from tests.harness.box import Box
from tests.harness.helpers import Helpers
from tests.harness.peers import peer_fails

CHOWN, NET_BIND, KILL = 1 << 0, 1 << 10, 1 << 5
SETS = {
    "effective": "CapEff", "permitted": "CapPrm", "inheritable": "CapInh", "bounding": "CapBnd", "ambient": "CapAmb",
}  # fmt: skip


def sets(box: Box) -> dict[str, int]:
    status = proc_status(box)
    return {kind: int(status[field], 16) for kind, field in SETS.items()}


def test_each_set_is_what_the_config_says(box: Box) -> None:
    three = ["CAP_CHOWN", "CAP_NET_BIND_SERVICE", "CAP_KILL"]
    box.process["capabilities"] = {
        "bounding": three,
        "permitted": three,
        "effective": three,
        "inheritable": three[:2],
        "ambient": three[:1],
    }
    assert sets(box) == {
        "bounding": CHOWN | NET_BIND | KILL,
        "permitted": CHOWN | NET_BIND | KILL,
        "effective": CHOWN | NET_BIND | KILL,
        "inheritable": CHOWN | NET_BIND,
        "ambient": CHOWN,
    }


@pytest.mark.parametrize("config", ["absent", "empty", "empty sets"])
def test_none(box: Box, config: str) -> None:
    if config == "absent":
        del box.process["capabilities"]
    else:
        box.process["capabilities"] = {} if config == "empty" else {kind: [] for kind in SETS}
    assert not any(sets(box).values())


def test_an_unset_bounding_set_is_empty(box: Box) -> None:
    box.process["capabilities"] = {"permitted": ["CAP_CHOWN"], "effective": ["CAP_CHOWN"]}
    assert sets(box)["bounding"] == 0


def test_ambient_gives_an_unprivileged_user_its_capability(box: Box) -> None:
    """A low port is bound by a process of another user only because the capability is ambient."""
    names = ["CAP_NET_BIND_SERVICE"]
    box.process["capabilities"] = dict.fromkeys(SETS, names)
    box.process["user"] = {"uid": 1000, "gid": 1000}
    found = sets(box)
    assert found["effective"] == NET_BIND
    assert found["ambient"] == NET_BIND


def test_another_user_without_ambient_has_no_effective_capability(box: Box) -> None:
    names = ["CAP_NET_BIND_SERVICE"]
    box.process["capabilities"] = dict.fromkeys(("bounding", "permitted", "effective", "inheritable"), names)
    box.process["user"] = {"uid": 1000, "gid": 1000}
    found = sets(box)
    assert found["effective"] == 0
    assert found["permitted"] == 0
    assert found["bounding"] == NET_BIND


@peer_fails("crun", "an unknown name is dropped without a word by 1.8.1")
def test_an_unknown_capability_is_a_warning(box: Box) -> None:
    """config.md: values that can't be mapped to the kernel's MUST be logged as a warning."""
    box.capabilities("CAP_BOGUS")
    box.args("/bin/cat", "/proc/self/status")
    result = box.run()
    assert int(status_of(result.out)["CapEff"], 16) & CHOWN
    assert "CAP_BOGUS" in result.err


@peer_fails("runc", "1.1.5 says nothing")
@peer_fails("crun", "says nothing")
def test_ambient_that_is_not_inheritable_is_a_warning(box: Box) -> None:
    box.process["capabilities"]["ambient"] = ["CAP_CHOWN"]
    box.args("/bin/cat", "/proc/self/status")
    result = box.run()
    assert int(status_of(result.out)["CapAmb"], 16) == 0
    assert "CAP_CHOWN" in result.err


def test_lower_case_and_missing_prefix_are_not_capabilities(box: Box) -> None:
    """capabilities(7) has the names in capitals; a near miss must not become a right."""
    box.process["capabilities"] = {kind: ["cap_chown", "CHOWN"] for kind in ("bounding", "permitted", "effective")}
    result = box.run("cat /proc/self/status", check=False)
    if result.rc == 0:
        assert int(status_of(result.out)["CapPrm"], 16) & ~CHOWN == 0


def setuid_show(box: Box, helpers: Helpers) -> dict[str, str]:
    """The status of a setuid-root program that user 1000 started."""
    program = box.rootfs / "bin/show"
    program.write_bytes(helpers("show").read_bytes())
    program.chmod(0o4755)
    box.process["user"] = {"uid": 1000, "gid": 1000}
    box.args("/bin/show", "/proc/self/status")
    return status_of(box.run().out)


def test_setuid_programs_gain_nothing_beyond_the_bounding_set(box: Box, helpers: Helpers) -> None:
    box.process["noNewPrivileges"] = False
    box.process["capabilities"] = {"bounding": ["CAP_CHOWN"]}
    status = setuid_show(box, helpers)
    assert status["Uid"].split()[1] == "0"
    assert int(status["CapEff"], 16) == CHOWN


def test_no_new_privileges_stops_setuid_programs(box: Box, helpers: Helpers) -> None:
    box.process["noNewPrivileges"] = True
    assert setuid_show(box, helpers)["Uid"].split()[1] == "1000"


def test_all_capabilities_of_the_runtime(box: Box) -> None:
    """Everything the caller has can be given on."""
    own = int(status_of(Path("/proc/self/status").read_text())["CapBnd"], 16)
    names = [f"CAP_{name}" for bit, name in enumerate(NAMES) if own >> bit & 1]
    box.process["capabilities"] = dict.fromkeys(SETS, names)
    found = sets(box)
    assert all(value == own for value in found.values()), found


NAMES = """CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE""".split()  # noqa: SIM905
