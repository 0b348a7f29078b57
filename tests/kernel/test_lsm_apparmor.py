"""AppArmor: the program of a container and those of exec are confined by the profile, from their first instruction."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocirt.identity import labels
from tests.harness.box import Box

pytestmark = pytest.mark.skipif(
    not labels.apparmor_enabled(), reason="this kernel runs without AppArmor: use hack/vm --systemd"
)

#: what the profile says of programs: {name: rules}
PROFILES = {
    # as engines' default profiles are: everything but this
    "ocirt-test-deny": "file, capability, network, signal, deny /denied r, deny /tmp/** w,",
    "ocirt-test-strict": "file, signal,",
    # the program's own start is no business of the profile
    "ocirt-test-no-x": "/** r, /bin/** m, /dev/** rw, signal,",
    "ocirt-test-ux": "/** r, /bin/** mrux, /dev/** rw, signal,",
    "ocirt-test-px": "/** r, /bin/** mrpx -> ocirt-test-strict, /dev/** rw, signal,",
}


@pytest.fixture(scope="module", autouse=True)
def profiles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    file = tmp_path_factory.mktemp("apparmor") / "profiles"
    file.write_text(
        "\n".join(
            f"profile {name} flags=(attach_disconnected,mediate_deleted) {{ {rules} }}"
            for name, rules in PROFILES.items()
        )
    )
    subprocess.run(["apparmor_parser", "--replace", "--skip-cache", str(file)], check=True, timeout=120)
    yield
    subprocess.run(["apparmor_parser", "--remove", str(file)], check=True, timeout=120)


CURRENT = "/proc/self/attr/apparmor/current"


@pytest.mark.parametrize("no_new_privileges", [True, False], ids=["no_new_privs", "privs"])
@pytest.mark.parametrize("uid", [0, 1000])
@pytest.mark.parametrize("profile", PROFILES)
def test_the_program_is_confined(box: Box, profile: str, uid: int, no_new_privileges: bool) -> None:
    box.process["apparmorProfile"] = profile
    box.process["noNewPrivileges"] = no_new_privileges
    box.process["user"] = {"uid": uid, "gid": uid}
    box.args("/bin/cat", CURRENT)
    assert box.run().out == f"{profile} (enforce)\n"


def test_what_the_profile_denies(box: Box) -> None:
    (box.rootfs / "denied").write_text("secret")
    box.process["apparmorProfile"] = "ocirt-test-deny"
    result = box.run("cat /denied; touch /tmp/file; touch /root/file && echo made", check=False)
    assert result.out == "made\n"
    assert result.err.count("Permission denied") == 2


def test_exec_is_confined_as_the_container(box: Box) -> None:
    (box.rootfs / "denied").write_text("secret")
    box.process["apparmorProfile"] = "ocirt-test-deny"
    box.create_and_start("sleep 1000")
    assert box.exec("cat", CURRENT).out == "ocirt-test-deny (enforce)\n"
    refused = box.exec("cat", "/denied", check=False)
    assert (refused.rc, refused.out) == (1, "")
    assert "Permission denied" in refused.err


def test_exec_by_a_file_is_confined_as_the_container(box: Box, place: Path) -> None:
    """A process that names no profile doesn't get away from the container's."""
    box.process["apparmorProfile"] = "ocirt-test-deny"
    box.create_and_start("sleep 1000")
    file = place / "process.json"
    command = {"args": ["/bin/cat", CURRENT], "cwd": "/"}
    for given, expected in (
        (command, "ocirt-test-deny"),
        ({**command, "apparmorProfile": ""}, "ocirt-test-deny"),
        ({**command, "apparmorProfile": "ocirt-test-strict"}, "ocirt-test-strict"),
    ):
        file.write_text(json.dumps(given))
        assert box.runtime("exec", "--process", file, box.id).out == f"{expected} (enforce)\n"


def test_exec_with_a_profile_of_its_own(box: Box) -> None:
    box.create_and_start("sleep 1000")
    assert box.exec("cat", CURRENT).out == "unconfined\n"
    for profile in PROFILES:
        assert box.exec("cat", CURRENT, flags=("--apparmor", profile)).out == f"{profile} (enforce)\n"


def test_in_a_user_namespace(box: Box) -> None:
    box.add_user_namespace()
    for profile in ("ocirt-test-deny", "ocirt-test-ux", "ocirt-test-no-x"):
        box.process["apparmorProfile"] = profile
        box.args("/bin/cat", CURRENT)
        assert box.run().out == f"{profile} (enforce)\n"


def test_a_profile_that_is_not_loaded_is_an_error(box: Box) -> None:
    box.process["apparmorProfile"] = "ocirt-test-absent"
    result = box.create(check=False)
    assert result.rc == 1
    assert "'exec ocirt-test-absent'" in result.err
    assert "no such file or directory (is the profile loaded?)" in result.err


def test_a_proc_that_the_image_brings_is_not_written_to(box: Box) -> None:
    """CVE-2019-16884: what the image mounts on /proc must not take the profile's name."""
    box.config["mounts"] = [m for m in box.mounts if m["destination"] != "/proc"]
    del box.linux["maskedPaths"], box.linux["readonlyPaths"]
    fake = box.rootfs / "proc/self/attr/apparmor"
    fake.mkdir(parents=True)
    (fake / "exec").write_text("")
    (fake.parent / "exec").write_text("")
    box.process["apparmorProfile"] = "ocirt-test-deny"
    box.create_and_start("sleep 1000")
    assert Path(f"/proc/{box.pid}/attr/apparmor/current").read_text() == "ocirt-test-deny (enforce)\n"
    assert (fake / "exec").read_text() == (fake.parent / "exec").read_text() == ""


def test_the_interpreter_is_sealed_then(box: Box) -> None:
    """CVE-2019-5736: without the trampoline #!/proc/self/exe would be the host's interpreter."""
    evil = box.rootfs / "bin/evil"
    evil.write_text("#!/proc/self/exe -ISc open('/proc/self/exe','r+b')\n")
    evil.chmod(0o755)
    box.process["apparmorProfile"] = "ocirt-test-deny"
    box.args("/bin/evil")
    box.create()
    fd = os.open(f"/proc/{box.pid}/exe", os.O_PATH)
    try:
        assert os.readlink(f"/proc/{box.pid}/exe").startswith("/memfd:") or os.fstatvfs(fd).f_flag & os.ST_RDONLY
    finally:
        os.close(fd)
    interpreter = Path(os.path.realpath("/usr/bin/python3"))
    before = interpreter.read_bytes()
    box.start(check=False)
    box.wait_for("stopped")
    assert interpreter.read_bytes() == before
