"""What is said about a configuration that isn't right, and what is repaired."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocirt import log
from ocirt.errors import InvalidConfig
from ocirt.validation import check, lists, problems, template
from ocirt.validation.duplicates import duplicates
from ocirt.validation.explain import validator
from ocirt.validation.near import nearest
from ocirt.validation.problem import join, join_all, show
from tests.unit.validation_samples import FULL, MINIMAL, REMOVED, clone, docker, paths, set_paths

ROOT = Path(__file__).resolve().parents[2]


def found(config: Any, raw: bytes | None = None) -> dict[str, str]:
    """{path: message} of the problems of a copy of `config`."""
    return {p.path: str(p) for p in problems(clone(config), raw)}


# --- good ones ---


@pytest.mark.parametrize("config", [MINIMAL, docker(), template.default(), template.default(rootless=True)])
def test_good_configurations_pass_without_a_word(config: Any, capfd: pytest.CaptureFixture[str]) -> None:
    before = clone(config)
    check(config)
    check(config, json.dumps(config).encode())
    assert config == before
    assert capfd.readouterr() == ("", "")


def test_other_platforms_are_ignored() -> None:
    for platform in ("freebsd", "solaris", "vm", "windows", "zos"):
        check({**MINIMAL, platform: {"anything": [None, {"a": 1.5}]}})  # type: ignore[arg-type]
        assert list(found({**MINIMAL, platform: []})) == [platform]


def test_templates_are_what_runs() -> None:
    config = template.default()
    assert config["ociVersion"] == "1.3.0"
    rootless = template.default(rootless=True)
    kinds = [n["type"] for n in rootless["linux"]["namespaces"]]  # type: ignore[typeddict-item]
    assert "user" in kinds
    assert "network" not in kinds
    assert not any(o.startswith("gid=") for m in rootless["mounts"] for o in m["options"])  # type: ignore[typeddict-item]
    template.default()["linux"]["maskedPaths"].clear()  # type: ignore[typeddict-item]
    assert template.default() == config


# --- what is said ---


@pytest.mark.parametrize(
    ("changes", "path", "said"),
    [
        ({"root": REMOVED}, "root", "root: is missing, must be the root filesystem: an object with path"),
        ({"ociVersion": REMOVED}, "ociVersion", 'is missing, must be a version of the runtime specification'),
        ({"root.readonly": 1}, "root.readonly", "root.readonly: 1: must be true or false"),
        ({"process.cwd": "tmp"}, "process.cwd", 'process.cwd: "tmp": must be the working directory, an absolute path'),
        ({"process.args": []}, "process.args", "process.args: []: must be the argument vector"),
        ({"process.user.uid": True}, "process.user.uid", "process.user.uid: true: must be a user or group ID"),
        ({"process.user.uid": 4294967295}, "process.user.uid", "4294967295: must be"),
        ({"process.user.umask": 512}, "process.user.umask", "must be a file mode creation mask"),
        ({"process.oomScoreAdj": 1001}, "process.oomScoreAdj", "must be an integer from -1000 to 1000"),
        ({"process.consoleSize.width": 80.0}, "process.consoleSize.width", "80.0: must be an integer from 0 to"),
        ({"linux.namespaces[0].type": "mnt"}, "linux.namespaces[0].type",
         '"mnt": invalid namespace type, must be one of pid'),
        ({"linux.namespaces[1].path": "x"}, "linux.namespaces[1].path", "must be an absolute path"),
        ({"linux.devices[0].major": REMOVED}, "linux.devices[0].major", "is missing, must be a major number"),
        ({"linux.devices[0].minor": 1048576}, "linux.devices[0].minor", "must be a minor number"),
        ({"linux.devices[0].path": "fuse"}, "linux.devices[0].path", "must be an absolute path"),
        ({"linux.maskedPaths[1]": "x"}, "linux.maskedPaths[1]", 'linux.maskedPaths[1]: "x": must be an absolute path'),
        ({"linux.resources.blockIO.weightDevice[0]": {"major": 1, "minor": 1}},
         "linux.resources.blockIO.weightDevice[0]",
         "at least one of weight and leafWeight"),
        ({"linux.resources.rdma.mlx5_1": {}}, "linux.resources.rdma.mlx5_1",
         "an object with hcaHandles, hcaObjects or both"),
        ({"linux.resources.hugepageLimits[0].pageSize": "64kB"}, "linux.resources.hugepageLimits[0].pageSize",
         'must be a size followed by KB, MB or GB, such as "2MB"'),
        ({"linux.resources.memory.swappiness": 101}, "linux.resources.memory.swappiness",
         "must be an integer from 0 to 100"),
        ({"linux.resources.memory.limit": -2}, "linux.resources.memory.limit", "a number of bytes, -1 for no limit"),
        ({"linux.memoryPolicy.mode": "INTERLEAVE"}, "linux.memoryPolicy.mode",
         "invalid memory policy mode, must be one of"),
        ({"linux.memoryPolicy.flags[1]": "x"}, "linux.memoryPolicy.flags[1]", "invalid memory policy flag"),
        ({"linux.memoryPolicy.mode": REMOVED}, "linux.memoryPolicy.mode", "is missing, must be a memory policy mode"),
        ({"linux.intelRdt.memBwSchema": "MB:0=1\nL3:0=f"}, "linux.intelRdt.memBwSchema",
         'of one line that starts with "MB:"'),
        ({"linux.personality.flags": ["X"]}, "linux.personality.flags", "must be an empty array"),
        ({"linux.timeOffsets.boottime.nanosecs": 10**9}, "linux.timeOffsets.boottime.nanosecs", "0 to 999999999"),
        ({"linux.seccomp.syscalls[0].names": []}, "linux.seccomp.syscalls[0].names", "at least one system call name"),
        ({"linux.seccomp.syscalls[2].args[0].index": 6}, "linux.seccomp.syscalls[2].args[0].index", "0 to 5"),
        ({"linux.seccomp.syscalls[0].action": "ALLOW"}, "linux.seccomp.syscalls[0].action", "invalid seccomp action"),
        ({"linux.rootfsPropagation": "privat"}, "linux.rootfsPropagation", "(did you mean private?)"),
        ({"process.rlimits[0].type": "RLIMIT_NOFILES"}, "process.rlimits[0].type", "(did you mean RLIMIT_NOFILE?)"),
        ({"hooks.poststop[0].path": "bin/x"}, "hooks.poststop[0].path", "must be an absolute path"),
        ({"hooks.poststop[0].timeout": 0}, "hooks.poststop[0].timeout", "greater than 0"),
        ({"annotations": {"": "x"}}, 'annotations[""]', "must be a key that isn't empty"),
        ({"annotations.count": 5}, "annotations.count", "annotations.count: 5: must be a string"),
        ({"linux.sysctl.x": 1}, "linux.sysctl.x", "must be a string"),
        ({"mounts[0].destination": ""}, "mounts[0].destination", "must be the path of the mount point"),
        ({"mounts[1].uidMappings[0].size": 0}, "mounts[1].uidMappings[0].size", "the number of IDs (an integer from 1"),
    ],
)  # fmt: skip
def test_says_where_what_and_what_would_be_right(changes: dict[str, object], path: str, said: str) -> None:
    config = set_paths(FULL, changes)
    with pytest.raises(InvalidConfig) as caught:
        check(clone(config))
    assert str(caught.value).startswith(f"invalid config.json: {path}: ")
    assert said in str(caught.value)
    (problem,) = [p for p in problems(config) if p.severity == "error"]
    assert problem.path == path
    assert problem.spec.partition(", ")[0] in ("config.md", "config-linux.md")


def test_every_error_at_once() -> None:
    config = set_paths(
        FULL,
        {
            "root.path": 5,
            "process.cwd": "tmp",
            "process.rlimits[1]": FULL["process"]["rlimits"][0],
            "linux.namespaces[8]": {"type": "pid"},
            "linux.seccomp.listenerPath": REMOVED,
            "linux.resources.cpu.burst": "lots",
            "linux.cgroupsPath": "/../x",
        },
    )
    with pytest.raises(InvalidConfig, match=r"^invalid config.json, 8 errors: ") as caught:
        check(config)
    text = str(caught.value)
    assert "\n" not in text
    for path in (
        "root.path", "process.cwd", "process.rlimits[1].type", "linux.namespaces[8].type", "linux.seccomp.listenerPath",
        "linux.seccomp.listenerMetadata", "linux.resources.cpu.burst", "linux.cgroupsPath",
    ):  # fmt: skip
        assert f") {path}: " in text


def test_a_flood_of_errors_is_cut() -> None:
    with pytest.raises(InvalidConfig, match=r"^invalid config.json, 100 errors: ") as caught:
        check(set_paths(MINIMAL, {"process": {"cwd": "/", "args": [5] * 100}}))
    assert str(caught.value).endswith(": must be a string; and 50 more")


def test_one_reason_a_value() -> None:
    """The rules add nothing where the shape is wrong already."""
    assert len(found({**MINIMAL, "ociVersion": 1})) == 1
    config = set_paths(FULL, {"linux.sysctl": {"": "1"}})
    assert [p.path for p in problems(config) if p.severity == "error"] == ['linux.sysctl[""]']


def test_long_values_are_shortened() -> None:
    text = str(problems({**MINIMAL, "hostname": ["x" * 5000]})[0])  # type: ignore[typeddict-item]
    assert len(text) < 200
    assert "…" in text


@pytest.mark.parametrize("junk", [None, "x", {"x": 1}, [[]], [{}]])
def test_no_junk_anywhere_breaks_the_explanation(junk: Any) -> None:
    """Whatever stands wherever: it is explained or accepted, never a crash."""
    for way in paths(FULL):
        config = set_paths(FULL, {join_all(way): junk})
        for problem in problems(config):
            assert problem.message


def test_a_value_that_is_no_object() -> None:
    for value in (None, [], "x", 5):
        (problem,) = problems(value)  # type: ignore[arg-type]
        assert problem.path == ""
        assert "must be the configuration of a container" in problem.message


def test_missing_library_is_said() -> None:
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['jsonschema'] = None\n"
        "from ocirt.validation import problems\n"
        "print(*problems({'ociVersion': 5, 'root': {'path': 'rootfs'}, 'hostname': 'x'}), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("doesn't match schemas/config.json (cannot say where: ")
    assert "install jsonschema" in first
    assert second.startswith("hostname: ")


def test_an_unusual_python_type_that_is_right_passes() -> None:
    """The generated check only takes exact types; jsonschema decides."""

    class Text(str):
        __slots__ = ()

    class Object(dict[str, Any]):
        pass

    check(Object({"ociVersion": Text("1.0.0"), "root": Object(path=Text("rootfs"))}))  # type: ignore[arg-type]


def test_oracle_takes_no_float_for_an_integer() -> None:
    assert not validator({"type": "integer"}).is_valid(1.0)
    assert not validator({"type": "integer"}).is_valid(True)
    assert not validator({"type": "string", "pattern": "^a$"}).is_valid("a\n")


# --- misspelt keys ---


@pytest.mark.parametrize(
    ("changes", "path", "meant"),
    [
        ({"root.readOnly": True, "root.readonly": REMOVED}, "root.readOnly", "readonly"),
        ({"process.noNewPrivilege": True, "process.noNewPrivileges": REMOVED}, "process.noNewPrivilege",
         "noNewPrivileges"),
        ({"process.no_new_privileges": 1, "process.noNewPrivileges": REMOVED}, "process.no_new_privileges",
         "noNewPrivileges"),
        ({"linux.secomp": {}, "linux.seccomp": REMOVED}, "linux.secomp", "seccomp"),
        ({"linux.maskedpaths": [], "linux.maskedPaths": REMOVED}, "linux.maskedpaths", "maskedPaths"),
        ({"mounts[0].option": ["ro"]}, "mounts[0].option", "options"),
        ({"linux.resources.memory.limt": 5, "linux.resources.memory.limit": REMOVED,
         "linux.resources.memory.swap": REMOVED},
         "linux.resources.memory.limt", "limit"),
        ({"linux.netDevices.eth1.nmae": "x"}, "linux.netDevices.eth1.nmae", "name"),
    ],
)  # fmt: skip
def test_misspelt_keys_are_a_warning(
    changes: dict[str, object], path: str, meant: str, capfd: pytest.CaptureFixture[str]
) -> None:
    config = set_paths(FULL, changes)
    (problem,) = [p for p in problems(config) if p.path == path]
    assert problem.severity == "warning"
    assert problem.hint == f"did you mean {meant}?"
    check(config)
    assert f"warning: config.json: {path}: " in capfd.readouterr().err


def test_extensions_are_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    config = set_paths(FULL, {"x-vendor": {"a": [1]}, "process.container": True, "linux.intelRdt.enableCMT": True})
    check(config)
    assert "x-vendor" not in capfd.readouterr().err


def test_a_missing_key_next_to_a_misspelt_one() -> None:
    said = found(set_paths(FULL, {"process.cwd": REMOVED, "process.cdw": "/"}))
    assert said["process.cwd"].endswith("('cdw' is there: is it misspelt?)")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("hostnam", "hostname"), ("hsotname", "hostname"), ("HOSTNAME", "hostname"), ("host_name", "hostname"),
        ("hostnames", "hostname"), ("x", ""), ("", ""), ("host", ""), ("rot", "root"), ("completely", ""), ("mount",
         "mounts"),
        ("linx", "linux"), ("lin", ""),
    ],
)  # fmt: skip
def test_nearest(word: str, meant: str) -> None:
    assert nearest(word, ["hostname", "root", "mounts", "linux"]) == meant


@settings(deadline=None)
@given(st.text(max_size=8), st.lists(st.text(max_size=8)))
def test_nearest_is_one_of_the_known(word: str, known: list[str]) -> None:
    assert nearest(word, known) in {"", *known}


# --- repairs ---


@pytest.mark.parametrize(
    ("changes", "path", "repaired"),
    [
        ({"linux.timeOffsets": None}, "linux.timeOffsets", {"linux.timeOffsets": REMOVED}),
        ({"hooks": None}, "hooks", {"hooks": REMOVED}),
        ({"mounts[0].options": None}, "mounts[0].options", {}),
        ({"linux.netDevices.eth1.name": None}, "linux.netDevices.eth1.name", {}),
        ({"linux.namespaces[0].path": ""}, "linux.namespaces[0].path", {}),
        ({"linux.rootfsPropagation": ""}, "linux.rootfsPropagation", {"linux.rootfsPropagation": REMOVED}),
        ({"linux.resources.devices[0].type": ""}, "linux.resources.devices[0].type", {}),
        ({"linux.memoryPolicy": {}}, "linux.memoryPolicy", {"linux.memoryPolicy": REMOVED}),
        ({"process.user.gid": REMOVED}, "process.user.gid", {"process.user.gid": 0}),
        ({"process.ioPriority.priority": REMOVED}, "process.ioPriority.priority", {"process.ioPriority.priority": 0}),
    ],
)
def test_what_other_runtimes_take_is_repaired_with_a_warning(
    changes: dict[str, object], path: str, repaired: dict[str, object], capfd: pytest.CaptureFixture[str]
) -> None:
    config = set_paths(FULL, changes)
    check(config, json.dumps(config).encode())
    assert config == set_paths(FULL, repaired)
    assert f"warning: config.json: {path}: " in capfd.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"process.cwd": None},
        {"process.args[0]": None},
        {"annotations.x": None},
        {"linux.sysctl.x": None},
        {"linux.memoryPolicy": {"nodes": "0"}},
        {"linux.seccomp.syscalls[0].names[0]": None},
        {"mounts[0]": None},
        {"linux.namespaces[0].type": ""},
    ],
)
def test_what_nobody_should_take_is_not_repaired(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidConfig):
        check(set_paths(FULL, changes))


# --- small things ---


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"{}", []),
        (b'{"a": 1, "b": {"a": 1}}', []),
        (b'{"a": 1, "a": 2}', ["a"]),
        (b'{"a": [{"b": 1, "b": 2, "b": 3}]}', ["a[0].b", "a[0].b"]),
        (b'{"a": {"x": 1}, "a": {"y": 1, "y": 2}}', ["a", "a.y"]),
    ],
)
def test_duplicate_keys(text: bytes, names: list[str]) -> None:
    assert [p.path for p in duplicates(text)] == names


def test_paths_and_values_in_messages() -> None:
    assert join("", "a") == "a"
    assert join("a", 0) == "a[0]"
    assert join("a", "b.c") == 'a["b.c"]'
    assert join_all(["linux", "sysctl", 'x"y', 3]) == 'linux.sysctl["x\\"y"][3]'
    assert show("é\n") == '"\\u00e9\\n"'
    assert show("é") == '"é"'
    assert show(None) == "null"
    assert show({"a": [True]}) == '{"a":[true]}'
    assert show("x" * 500) == '"' + "x" * 78 + "…"
    assert show(list(range(1000))) == "[0, 1, 2, …]"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted), max_size=5))
def test_lists_are_parsed(ranges: list[list[int]]) -> None:
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    assert lists.parse(text) == [(a, b) for a, b in ranges]


def test_a_json_log_gets_only_the_error(tmp_path: Path) -> None:
    """podman takes the whole log for one object: warnings go to stderr."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from ocirt import log; from ocirt.validation import check\n"
        f"log.configure({str(tmp_path / 'log')!r}, json=True, level=log.WARNING)\n"
        "check({'ociVersion': '1.0.0', 'root': {'path': 'rootfs'}, 'hostnam': 'x'})"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert "hostnam" in done.stderr
    assert (tmp_path / "log").read_text() == ""
    assert log.WARNING == 30
