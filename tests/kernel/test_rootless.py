"""Containers of an ordinary user, who is made for these tests: nothing here runs as root but the test itself."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ocirt import rootless
from ocirt.errors import Error
from tests.harness.box import Box, wait_dead
from tests.harness.runtime import Runtime
from tests.harness.terminal import ConsoleSocket
from tests.harness.user import User, user

MakeBox = Callable[[], Box]


@pytest.fixture(scope="module")
def person() -> Iterator[User]:
    """Somebody with subordinate ids."""
    with user(f"oct{os.getpid()}", subordinate_ids=True) as made:
        assert made.subuids, "useradd gives no subordinate ids here (SUB_UID_COUNT in /etc/login.defs)"
        yield made


@pytest.fixture(scope="module")
def poor() -> Iterator[User]:
    """Somebody without."""
    with user(f"ocp{os.getpid()}", subordinate_ids=False) as made:
        yield made


@pytest.fixture
def runtime(apart: None, place: Path, person: User, request: pytest.FixtureRequest) -> Runtime:
    """The runtime as `person` runs it; everything in the test's directory is made readable for them."""
    return runtime_of(person, place, request)


def runtime_of(who: User, place: Path, request: pytest.FixtureRequest) -> Runtime:
    state = place / "state"
    state.mkdir()
    who.own(state)
    return Runtime(request.config.getoption("--runtime"), "ocirt", state, prefix=who.prefix())


@pytest.fixture
def box(make_box: MakeBox, person: User) -> Box:
    """A bundle made for root, that belongs to `person`: no user namespace, no mapping."""
    made = make_box()
    person.own(made.directory)
    return made


def mappings(who: User) -> list[list[str]]:
    assert who.subuids
    first, count = who.subuids
    return [["0", str(who.uid), "1"], ["1", str(first), str(count)]]


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


# --- the whole life


def test_the_whole_life_of_a_container(box: Box, person: User) -> None:
    box.create()
    pid = box.pid
    assert box.status == "created"
    assert os.stat(f"/proc/{pid}").st_uid in (0, person.uid)  # 0: it isn't dumpable before its program runs
    assert f"Uid:\t{person.uid}\t" in Path(f"/proc/{pid}/status").read_text()
    assert words(Path(f"/proc/{pid}/uid_map").read_text()) == mappings(person)
    box.start()
    box.exit_status(pid)
    assert box.status == "stopped"
    box.delete()
    assert box.runtime("list", "-q").out == ""


def test_run_gives_output_input_and_status(box: Box) -> None:
    result = box.run("id -u; id -g; cat; exit 7", stdin="from outside\n", check=False)
    assert (result.rc, result.out) == (7, "0\n0\nfrom outside\n")


def test_exec_kill_list_and_ps(box: Box, person: User) -> None:
    box.create_and_start("echo up; exec sleep 1000")
    box.wait_for_output("up")
    pid = box.pid
    inside = os.readlink(f"/proc/{pid}/ns/user")
    assert box.exec("sh", "-c", "readlink /proc/self/ns/user; readlink /proc/self/ns/pid").out.split() == [
        inside,
        os.readlink(f"/proc/{pid}/ns/pid"),
    ]
    result = box.exec("sh", "-c", "id -u; id -G; exit 3", flags=("--user", "1000:1000", "-g", "2000"), check=False)
    assert (result.rc, result.out.split()) == (3, ["1000", "1000", "2000"])
    listed = words(box.runtime("list").out)[1]
    assert (listed[0], listed[1], listed[2], listed[-1]) == (box.id, str(pid), "running", person.name)
    assert str(pid) in box.runtime("ps", box.id).out
    box.kill("KILL")
    assert box.exit_status(pid) == -9


def test_kill_all_without_a_cgroup_reaches_every_process(box: Box) -> None:
    box.create_and_start("trap : TERM; sleep 1000 & echo $!; wait; wait")
    box.wait_for_output("\n")
    pid = box.pid
    others = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(others) == 1
    box.kill("TERM", "--all")
    wait_dead(others[0])
    box.delete("--force")


def test_terminal(box: Box, place: Path) -> None:
    box.process["terminal"] = True
    box.process["user"] = {"uid": 1000, "gid": 1000}
    with ConsoleSocket(place / "console") as console:
        console.path.chmod(0o777)
        box.sh("tty; stat -c %u $(tty); echo end; read x")
        box.create("--console-socket", console.path)
        console.receive()
        box.start()
        assert console.read_until(b"end").split() == [b"/dev/pts/0", b"1000", b"end"]
        box.delete("--force")


def test_files_of_the_container_belong_to_subordinate_ids(box: Box, person: User) -> None:
    box.run("touch /tmp/root; touch /tmp/user; chown 1000:1000 /tmp/user")
    assert person.subuids
    owners = [(box.rootfs / "tmp" / name).stat().st_uid for name in ("root", "user")]
    assert owners == [person.uid, person.subuids[0] + 999]


def test_root_of_the_container_is_nobody_special_outside(box: Box, place: Path) -> None:
    secret = place / "secret"
    secret.mkdir()
    (secret / "file").write_text("of root")
    secret.chmod(0o700)
    box.bind(place, "/mnt")
    box.capabilities("CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_MKNOD")
    out = box.run("cat /mnt/secret/file; echo $?; mknod /tmp/disk b 8 0; echo $?; chown 0 /mnt/secret; echo $?").out
    assert out.split() == ["1", "1", "1"]


def test_all_default_mounts_and_devices_are_there(box: Box) -> None:
    out = box.run("stat -f -c %T /proc /sys /dev /dev/pts /dev/shm /dev/mqueue; ls -1 /dev; echo x > /dev/null").out
    kinds, names = out.split()[:6], out.split()[6:]
    assert kinds == ["proc", "sysfs", "tmpfs", "devpts", "tmpfs", "UNKNOWN"]  # busybox doesn't know an mqueue
    assert {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "fd"} <= set(names)


def test_network_and_kernel_parameters_of_its_own(box: Box) -> None:
    box.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4242"}
    out = box.run("cat /sys/class/net/lo/flags /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax").out.split()
    assert int(out[0], 16) & 1
    assert out[1:] == ["1", "4242"]


def test_time_namespace(box: Box) -> None:
    box.namespace("time")
    box.linux["timeOffsets"] = {"boottime": {"secs": 7777}}
    assert ["boottime", "7777", "0"] in words(box.run("cat /proc/self/timens_offsets").out)


def test_seccomp_without_no_new_privileges(box: Box) -> None:
    box.process["noNewPrivileges"] = False
    box.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    assert "not supported" in box.run("mkdir /tmp/x 2>&1", check=False).out
    box.create_and_start("sleep 1000")
    assert "not supported" in box.exec("mkdir", "/tmp/x", check=False).err


# --- mappings


def test_a_user_namespace_without_mappings_gets_the_callers(box: Box, person: User) -> None:
    """As `crun spec --rootless` writes it."""
    box.namespace("user")
    assert words(box.run("cat /proc/self/uid_map").out) == mappings(person)


def test_half_of_the_mappings_is_an_error(box: Box, person: User) -> None:
    box.namespace("user")
    box.linux["uidMappings"] = [{"containerID": 0, "hostID": person.uid, "size": 1}]
    result = box.create(check=False)
    assert result.rc == 1
    assert "linux.gidMappings: user namespaces enabled, but no namespace path" in result.err


def test_mappings_of_the_configuration_stay(box: Box, person: User) -> None:
    assert person.subuids
    box.namespace("user")
    entries = [{"containerID": 0, "hostID": person.subuids[0] + 7, "size": 10}]
    box.linux["uidMappings"] = box.linux["gidMappings"] = entries
    box.process["args"] = ["/bin/cat", "/proc/self/uid_map"]
    for path in (box.directory, *box.directory.rglob("*")):
        path.chmod(0o755, follow_symlinks=False) if not path.is_symlink() else None
    assert words(box.run().out) == [["0", str(person.subuids[0] + 7), "10"]]


def test_ids_that_are_not_the_users_are_refused(box: Box, person: User) -> None:
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [{"containerID": 0, "hostID": 0, "size": 1000}]
    result = box.create(check=False)
    assert result.rc == 1
    assert "map the ids of the user namespace: newuidmap " in result.err
    assert "(see /etc/subuid and /etc/subgid)" in result.err


def test_one_id_without_subordinate_ids(
    make_box: MakeBox, runtime: Runtime, poor: User, place: Path, request: pytest.FixtureRequest
) -> None:
    box = make_box()
    poor.own(box.directory, runtime.root)
    runtime.prefix = poor.prefix()
    result = box.run("cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; touch /tmp/x")
    assert words(result.out) == [["0", str(poor.uid), "1"], ["0", str(poor.gid), "1"], ["deny"]]
    assert "warning: only one id is mapped: /etc/subuid has no line for the user" in result.err
    assert (box.rootfs / "tmp/x").stat().st_uid == poor.uid
    box.process["user"] = {"uid": 1000, "gid": 0}
    failed = box.run(check=False)
    assert failed.rc != 0
    assert "is the id mapped in the container's user namespace?" in failed.err
    box.process["user"] = {"uid": 0, "gid": 0, "additionalGids": [5]}
    failed = box.run(check=False)
    assert "additionalGids need a user namespace whose gids newgidmap mapped" in failed.err


def test_root_must_say_which_ids(box: Box) -> None:
    box.runtime.prefix = []
    box.namespace("user")
    result = box.create(check=False)
    assert result.rc == 1
    assert "user namespaces enabled, but no namespace path to join nor mappings to apply specified" in result.err


# --- cgroups that aren't delegated


def test_limits_need_a_cgroup(box: Box, person: User) -> None:
    box.linux["resources"]["pids"] = {"limit": 10}
    result = box.create(check=False)
    assert result.rc == 1
    assert "linux.resources.pids" in result.err
    assert not list(Path(box.runtime.root).iterdir())


def test_pause_needs_a_cgroup(box: Box) -> None:
    box.create()
    result = box.runtime("pause", box.id, check=False)
    assert result.rc == 1
    assert "the container has no cgroup" in result.err or "cgroups are disabled" in result.err
    assert box.status == "created"


# --- HOME and XDG_RUNTIME_DIR


def test_state_is_where_xdg_runtime_dir_points_to(box: Box, place: Path, person: User) -> None:
    directory = place / "run"
    directory.mkdir(mode=0o700)
    person.own(directory)
    box.write()
    path, bundle = box.runtime.path, str(box.path)
    ours = person.prefix(XDG_RUNTIME_DIR=directory)
    box.runtime(argv=[*ours, path, "create", "--bundle", bundle, box.id])
    assert os.listdir(directory / "ocirt") == [box.id]
    assert (directory / "ocirt").stat().st_mode & 0o777 == 0o700
    # podman starts `kill` with this one variable
    box.runtime(argv=[*ours, path, "kill", box.id, "KILL"])
    box.runtime(argv=[*ours, path, "delete", "--force", box.id])
    without = box.runtime(argv=[*person.prefix(), path, "list"], check=False)
    if not os.path.isdir(f"/run/user/{person.uid}"):
        assert without.rc == 1
        assert "XDG_RUNTIME_DIR is not set (set it, or give --root DIR)" in without.err


# --- a host that forbids it


def in_nested_namespace(box: Box, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the runtime's command in a user namespace of its own, in which root runs `script` first."""
    argv = box.runtime.argv(arguments)
    process = subprocess.Popen(
        # the second shell is root's: the first began before there were any ids, and lost its capabilities
        ["unshare", "--user", "sh", "-c", 'echo; read go; exec "$@"', "sh", "sh", "-ec", f'{script}; exec "$@"', "sh",
         *argv],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    process.stdout.readline()
    for file in ("uid_map", "gid_map"):
        Path(f"/proc/{process.pid}/{file}").write_text("0 0 4294967295\n")
    out, err = process.communicate("\n", timeout=30)
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def test_user_namespaces_used_up(box: Box) -> None:
    """The sysctl is set in a user namespace of the test: it is each namespace's own."""
    box.write()
    command = ("create", "--bundle", str(box.path), box.id)
    before = Path("/proc/sys/user/max_user_namespaces").read_text()
    result = in_nested_namespace(box, "echo 0 > /proc/sys/user/max_user_namespaces", *command)
    assert result.returncode == 1
    assert "set the sysctl user.max_user_namespaces above 0" in result.stderr
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == before


def test_unprivileged_user_namespaces_switched_off(box: Box) -> None:
    sysctl = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if not sysctl.exists():
        pytest.skip("this kernel has no sysctl kernel.unprivileged_userns_clone (Debian's and AppArmor's have)")
    before = sysctl.read_text()
    sysctl.write_text("0")
    try:
        result = box.create(check=False)
    finally:
        sysctl.write_text(before)
    assert result.rc == 1
    assert "set the sysctl kernel.unprivileged_userns_clone to 1" in result.err


@pytest.fixture
def no_helpers(box: Box) -> None:
    """Let the runtime's commands not see newuidmap and newgidmap."""
    script = 'for h in newuidmap newgidmap; do mount --bind /dev/null "$(command -v $h)"; done; exec "$@"'
    box.runtime.prefix = ["unshare", "--mount", "sh", "-c", script, "sh", *box.runtime.prefix]


def test_without_newuidmap_one_id_is_mapped(box: Box, person: User, no_helpers: None) -> None:
    result = box.run("cat /proc/self/uid_map")
    assert words(result.out) == [["0", str(person.uid), "1"]]
    assert "only one id is mapped: newuidmap is missing (package uidmap or shadow-utils)" in result.err


def test_without_newuidmap_more_mappings_are_an_error(box: Box, person: User, no_helpers: None) -> None:
    assert person.subuids
    box.namespace("user")
    box.linux["uidMappings"] = box.linux["gidMappings"] = [
        {"containerID": 0, "hostID": person.uid, "size": 1},
        {"containerID": 1, "hostID": person.subuids[0], "size": 10},
    ]
    result = box.create(check=False)
    assert result.rc == 1
    assert "newuidmap: executable file not found in $PATH (install the package uidmap or shadow-utils)" in result.err


def test_user_namespaces_used_up_for_root(box: Box) -> None:
    box.runtime.prefix = []
    box.add_user_namespace()
    box.write()
    command = ("--cgroup-manager=disabled", "create", "--bundle", str(box.path), box.id)
    result = in_nested_namespace(box, "echo 0 > /proc/sys/user/max_user_namespaces", *command)
    assert result.returncode == 1
    assert "set the sysctl user.max_user_namespaces above 0" in result.stderr


def test_apparmor_restriction_is_named(tmp_path: Path, person: User) -> None:
    """Only Ubuntu's kernels have the sysctl: a file stands for it."""
    sysctl = tmp_path / "sysctl"
    sysctl.write_text("1\n")
    table = [(str(sysctl) if "apparmor" in o[0] else o[0], o[1], o[2], o[3]) for o in rootless.OBSTACLES]
    error = Error("mount: permission denied", 13)
    rootless.explain(error, uid=person.uid, obstacles=table)
    assert "kernel.apparmor_restrict_unprivileged_userns to 0" in str(error)
    assert "load a profile" in str(error)
    error = Error("mount: permission denied", 13)
    rootless.explain(error, uid=0, obstacles=table)
    assert str(error) == "mount: permission denied"
