"""config.json: what is refused before anything is made, what is ignored, what has no effect later."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness.box import Box
from tests.harness.leftovers import cgroups
from tests.harness.peers import fails, lacks, peer_fails

Config = dict[str, Any]
Edit = Callable[[Config], object]


def nothing_made(box: Box) -> None:
    """A refused config left no state and no cgroup."""
    root = box.runtime.root
    assert not root.exists() or not [e for e in root.iterdir() if not e.name.startswith(".")]
    assert not cgroups(box.id)


def rlimits(*types: str) -> list[dict[str, object]]:
    return [{"type": t, "soft": 64, "hard": 64} for t in types]


def bad(name: str, edit: Edit, word: str, accepted_by: str = "") -> Any:
    """A line of the table: what is wrong, a word of the JSON path that the error names, peers that accept it."""
    return pytest.param(edit, word, id=name, marks=fails(accepted_by, "does not refuse it"))


BAD: list[Any] = [
    bad("no ociVersion", lambda c: c.pop("ociVersion"), "ociVersion", "runc"),
    bad("another major version", lambda c: c.update(ociVersion="2.0.0"), "ociVersion", "runc"),
    bad("no version", lambda c: c.update(ociVersion="new"), "ociVersion", "runc"),
    bad("version of a wrong type", lambda c: c.update(ociVersion=1), "ociVersion"),
    bad("no root", lambda c: c.pop("root"), "root"),
    bad("missing root path", lambda c: c["root"].update(path="nowhere"), "nowhere"),
    bad("empty root path", lambda c: c["root"].update(path=""), "root"),
    bad("no args", lambda c: c["process"].pop("args"), "args", "crun"),
    bad("empty args", lambda c: c["process"].update(args=[]), "args"),
    bad("args that is a string", lambda c: c["process"].update(args="true"), "args", "crun"),
    bad("number in args", lambda c: c["process"].update(args=["true", 1]), "args", "crun"),
    bad("no cwd", lambda c: c["process"].pop("cwd"), "cwd"),
    bad("relative cwd", lambda c: c["process"].update(cwd="tmp"), "cwd", "crun"),
    bad("terminal that is no bool", lambda c: c["process"].update(terminal="yes"), "terminal", "crun"),
    bad("bool for a number", lambda c: c["process"]["user"].update(uid=True), "uid", "crun"),
    bad("negative uid", lambda c: c["process"]["user"].update(uid=-1), "uid"),
    bad("uid of 33 bits", lambda c: c["process"]["user"].update(uid=1 << 32), "uid"),
    bad("fractional uid", lambda c: c["process"]["user"].update(uid=0.5), "uid"),
    bad("unknown rlimit", lambda c: c["process"].update(rlimits=rlimits("RLIMIT_BOGUS")), "rlimits"),
    bad(
        "rlimit twice",
        lambda c: c["process"].update(rlimits=rlimits("RLIMIT_CORE", "RLIMIT_CORE")),
        "rlimits",
        "runc crun",
    ),
    bad(
        "soft above hard",
        lambda c: c["process"].update(rlimits=[{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]),
        "rlimits",
    ),
    bad("NUL in args", lambda c: c["process"].update(args=["true\0x"]), "args", "crun"),
    bad("NUL in env", lambda c: c["process"].update(env=["A=b\0c"]), "env", "crun"),
    bad("env without =", lambda c: c["process"].update(env=["A"]), "env", "crun"),
    bad("namespace twice", lambda c: c["linux"]["namespaces"].append({"type": "pid"}), "namespaces", "crun"),
    bad("unknown namespace", lambda c: c["linux"]["namespaces"].append({"type": "moon"}), "namespaces"),
    bad(
        "relative namespace path",
        lambda c: c["linux"]["namespaces"].append({"type": "user", "path": "x"}),
        "namespaces",
    ),
    bad("hostname without uts", lambda c: drop_namespace(c, "uts"), "hostname"),
    bad(
        "domainname without uts",
        lambda c: (drop_namespace(c, "uts"), c.pop("hostname"), c.update(domainname="x")),
        "domainname",
        "runc",
    ),
    bad("mount without destination", lambda c: c["mounts"].append({"type": "tmpfs"}), "mounts"),
    bad("mounts that is an object", lambda c: c.update(mounts={}), "mounts"),
    bad(
        "sysctl of the host's network",
        lambda c: (drop_namespace(c, "network"), c["linux"].update(sysctl={"net.ipv4.ip_forward": "1"})),
        "sysctl",
    ),
    bad("sysctl of no namespace", lambda c: c["linux"].update(sysctl={"vm.swappiness": "1"}), "sysctl"),
    bad(
        "sysctl that leads elsewhere",
        lambda c: c["linux"].update(sysctl={"net/../../sys/kernel/core_pattern": "x"}),
        "sysctl",
    ),
    bad(
        "mappings without a user namespace",
        lambda c: c["linux"].update(uidMappings=[{"containerID": 0, "hostID": 1, "size": 1}]),
        "uidMappings",
        "runc crun",
    ),
    bad(
        "device of an unknown type",
        lambda c: c["linux"].update(devices=[{"path": "/dev/x", "type": "z"}]),
        "devices",
        "crun",
    ),
    bad(
        "block device without numbers",
        lambda c: c["linux"].update(devices=[{"path": "/dev/x", "type": "b"}]),
        "devices",
        "runc crun",
    ),
    bad(
        "relative device path",
        lambda c: c["linux"].update(devices=[{"path": "x", "type": "c", "major": 1, "minor": 3}]),
        "devices",
        "runc crun",
    ),
    bad(
        "unknown propagation",
        lambda c: c["linux"].update(rootfsPropagation="sideways"),
        "rootfsPropagation",
        "crun",
    ),
    bad(
        "unknown seccomp action",
        lambda c: c["linux"].update(seccomp={"defaultAction": "SCMP_ACT_BOGUS"}),
        "seccomp",
    ),
    bad(
        "errnoRet on an action that takes none",
        lambda c: c["linux"].update(
            seccomp={
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["acct"], "action": "SCMP_ACT_KILL", "errnoRet": 1}],
            }
        ),
        "errnoRet",
        "runc",
    ),
    bad("relative hook path", lambda c: c.update(hooks={"createRuntime": [{"path": "bin/true"}]}), "hooks", "crun"),
    bad(
        "hook timeout of zero",
        lambda c: c.update(hooks={"createRuntime": [{"path": "/bin/true", "timeout": 0}]}),
        "timeout",
        "crun",
    ),
    bad(
        "unknown scheduler policy",
        lambda c: c["process"].update(scheduler={"policy": "SCHED_BOGUS"}),
        "scheduler",
        "runc crun",
    ),
    bad(
        "io priority out of range",
        lambda c: c["process"].update(ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 8}),
        "ioPriority",
        "runc crun",
    ),
    bad(
        "time offset without a time namespace",
        lambda c: c["linux"].update(timeOffsets={"boottime": {"secs": 1}}),
        "timeOffsets",
        "runc crun",
    ),
]


def drop_namespace(config: Config, type: str) -> None:
    linux = config["linux"]
    linux["namespaces"] = [n for n in linux["namespaces"] if n["type"] != type]


@pytest.mark.parametrize(("edit", "word"), BAD)
def test_refused_before_anything_is_made(box: Box, edit: Edit, word: str) -> None:
    edit(box.config)
    result = box.create(check=False)
    assert result.rc == 1
    nothing_made(box)
    if box.runtime.name == "ocirt":
        assert word in result.err, result.err
        assert "Traceback" not in result.err


BAD_JSON: list[Any] = [
    pytest.param(b"", id="empty"),
    pytest.param(b'{"ociVersion": "1.0.2", ', id="cut off"),
    pytest.param(b"[]", id="array"),
    pytest.param(b"null", id="null", marks=peer_fails("runc", "panics")),
    pytest.param(b'{"ociVersion": "1.0.2"} x', id="trailing text"),
    pytest.param(b'{"ociVersion": "1.0.2", "process": {"user": {"uid": NaN}}}', id="NaN"),
    pytest.param(b'{"ociVersion": "1.0.2", "hostname": "\xff"}', id="not UTF-8"),
    pytest.param('{"ociVersion": "1.0.2"}'.encode("utf-16"), id="UTF-16"),
    pytest.param(
        b'{"ociVersion": "1.0.2", "annotations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="absurd nesting"
    ),
    pytest.param(b'{"ociVersion": "1.0.2", "process": {"oomScoreAdj": 1' + b"0" * 5000 + b"}}", id="a huge number"),
    pytest.param(b'{"ociVersion": "1.0.2", "hostname": "\\ud800"}', id="a lone surrogate"),
]


@pytest.mark.parametrize("text", BAD_JSON)
def test_bad_json(box: Box, text: bytes) -> None:
    (box.path / "config.json").write_bytes(text)
    result = box.runtime("create", "--bundle", box.path, box.id, check=False)
    assert result.rc == 1
    nothing_made(box)
    if box.runtime.name == "ocirt":
        assert "Traceback" not in result.err
        assert "config.json" in result.err


def test_missing_config_and_bundle(box: Box) -> None:
    result = box.runtime("create", "--bundle", box.path, box.id, check=False)
    assert result.rc == 1
    assert "config.json" in result.err
    assert box.runtime("create", "--bundle", box.path / "nowhere", box.id, check=False).rc == 1
    nothing_made(box)


@pytest.mark.parametrize(
    "version",
    [
        "1.0.0",
        "1.0.2-dev",
        "1.1.0",
        pytest.param("1.3.0", marks=peer_fails("crun", "1.8.1 knows 1.0 and 1.1 only")),
        pytest.param("1.99.7+meta.1", marks=peer_fails("crun", "1.8.1 knows 1.0 and 1.1 only")),
    ],
)
def test_every_version_of_the_first_major_is_accepted(box: Box, version: str) -> None:
    box.config["ociVersion"] = version
    assert box.run("echo ok").out == "ok\n"


def test_unknown_keys_are_ignored(box: Box) -> None:
    box.config["newThing"] = {"a": [1]}
    box.process["org.example"] = True
    box.linux["futureNamespaces"] = "x"
    assert box.run("echo ok").out == "ok\n"


def test_edits_after_create_have_no_effect(box: Box) -> None:
    box.sh("echo first; sleep 1000")
    box.create()
    box.sh("echo second")
    box.config["annotations"] = {"late": "1"}
    box.write()
    box.start()
    box.wait_for_output("first")
    assert "late" not in box.state().get("annotations", {})


@pytest.mark.parametrize("how", ["edited", "removed", "broken"])
def test_the_bundle_may_go_after_create(box: Box, how: str) -> None:
    """config.md: changes to config.json after create have no effect; nor has its loss."""
    box.sh("echo up; sleep 1000")
    box.create()
    config = box.path / "config.json"
    if how == "removed":
        config.unlink()
    else:
        config.write_text("{}" if how == "edited" else "{{{")
    box.start()
    box.wait_for_output("up")
    assert box.status == "running"
    box.kill("KILL")
    box.wait_for("stopped")
    box.delete()


@peer_fails("runc", "runtime.md: without process, create works and start MUST fail; 1.1.5 refuses at create")
@peer_fails("crun", "1.8.1 refuses at create")
def test_without_a_process_create_works_and_start_fails(box: Box) -> None:
    del box.config["process"]
    box.create()
    assert box.status == "created"
    assert box.start(check=False).rc == 1


def test_strings_of_a_mebibyte(box: Box) -> None:
    """CVE-2021-43784: lengths of the runtime's own messages must not wrap at 16 bits."""
    box.config["annotations"] = {"long": "x" * (1 << 20)}
    box.process["env"] += [f"V{n}={'y' * 60_000}" for n in range(4)]
    assert box.run("echo ${#V0} ${#V3}").out == "60000 60000\n"


@lacks("runc", "crun", what="validate")
def test_validate_reports_every_error_at_once(box: Box) -> None:
    box.write()
    assert box.runtime("validate", box.path).rc == 0
    box.process["cwd"] = "tmp"
    box.process["user"]["uid"] = True
    drop_namespace(box.config, "uts")
    box.write()
    result = box.runtime("validate", box.path, check=False)
    assert result.rc == 1
    for word in ("process.cwd", "process.user.uid", "hostname"):
        assert word in result.text
    problems = json.loads(box.runtime("validate", "--format", "json", box.path, check=False).out)
    assert len(json.dumps(problems)) > 10
    nothing_made(box)


@lacks("runc", "crun", what="validate")
def test_a_misspelt_key_is_a_warning(box: Box) -> None:
    """Unknown keys must be ignored, but whoever asks is told."""
    box.process["noNewPriviledges"] = box.process.pop("noNewPrivileges")
    box.write()
    result = box.runtime("validate", box.path)
    assert "noNewPriviledges" in result.text
    assert "did you mean noNewPrivileges?" in result.text
    assert box.run("echo ok").out == "ok\n"
