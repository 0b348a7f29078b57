"""podman of an ordinary user, with ocirt and crun (Debian's runc 1.1.5 likewise, in the cases named)."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.conftest import CONTRIB, PODMAN_CONF, SYSTEMD, make_space, need
from tests.engines.images import NAME
from tests.engines.space import Space
from tests.harness.runtime import Result

UID = 7345
USER = "octplain"


#: What logging in would do where there is no systemd; and device nodes that the user may open.
MAKE_RUN_DIRECTORY = f"""
    mkdir -p -m 700 /run/user/{UID} && chown {UID}:{UID} /run/user/{UID}
    mkdir /run/nodes && mount -t tmpfs -o mode=755 nodes /run/nodes
    mknod -m 666 /run/nodes/tun c 10 200 && mknod -m 666 /run/nodes/fuse c 10 229
    mount --bind /run/nodes/tun /dev/net/tun && mount --bind /run/nodes/fuse /dev/fuse
"""

#: The user's manager, which stays without a session.
LOG_IN = f"""
    chmod 666 /dev/fuse /dev/net/tun
    loginctl enable-linger {USER}
    for i in $(seq 300); do systemctl is-active -q user@{UID}.service && exit; sleep 0.1; done
    exit 1
"""


@pytest.fixture(scope="module")
def user_space(program: str, image: tuple[Path, Path]) -> Iterator[Space]:
    """A space with a user of its own, ranges of subordinate ids, and device nodes that the user may open."""
    need("podman", "conmon", "newuidmap", "slirp4netns")
    assert not any(entry.pw_uid == UID for entry in pwd.getpwall())
    space = make_space("rootless", program)
    try:
        for file, line in (
            ("/etc/passwd", f"{USER}:*:{UID}:{UID}::/var/lib/{USER}:/bin/sh\n"),
            ("/etc/group", f"{USER}:x:{UID}:\n"),
            ("/etc/subuid", f"{USER}:300000:65536\n"),
            ("/etc/subgid", f"{USER}:300000:65536\n"),
        ):
            space("sh", "-c", f"printf '%s' '{line}' >> {file}")
        home = space.directory / "home"
        home.mkdir()
        os.chown(home, UID, UID)
        space("sh", "-ec", f"mkdir -p /var/lib/{USER} && mount --bind {home} /var/lib/{USER}")
        space("sh", "-ec", LOG_IN if SYSTEMD else MAKE_RUN_DIRECTORY)
        space.write("/etc/containers/containers.conf", PODMAN_CONF)
        space.write("/etc/containers/containers.conf.d/50-ocirt.conf", (CONTRIB / "podman/50-ocirt.conf").read_text())
        tar = space.directory / "rootfs.tar"
        tar.write_bytes(image[0].read_bytes())
        tar.chmod(0o644)
        as_user(space, "podman", "import", str(tar), NAME)
        yield space
    finally:
        space.close()


def as_user(space: Space, *command: str, rc: int | None = 0, **options: Any) -> Result:
    """Run a command as the user, as a login would."""
    __tracebackhide__ = True
    env = {"HOME": f"/var/lib/{USER}", "XDG_RUNTIME_DIR": f"/run/user/{UID}", "USER": USER}
    given = ("setpriv", "--reuid", str(UID), "--regid", str(UID), "--clear-groups", "--inh-caps=-all", "--")
    return space(*given, "env", "-C", f"/var/lib/{USER}", *command, rc=rc, env=env, **options)


@pytest.fixture
def podman(user_space: Space, runtime_name: str) -> Any:
    def call(*arguments: str, rc: int | None = 0, **options: Any) -> Result:
        __tracebackhide__ = True
        return as_user(user_space, "podman", "--runtime", runtime_name, *arguments, rc=rc, **options)

    return call


def test_run(podman: Any) -> None:
    given = ("run", "--rm", "--network", "none", NAME)
    result = podman(*given, "sh", "-c", "echo out; id -u; cat /proc/self/uid_map; exit 7", rc=7)
    words = result.out.split()
    assert words[:2] == ["out", "0"]
    assert words[2:5] == ["0", str(UID), "1"]
    podman(*given, "/nope", rc=127)
    podman(*given, "/etc", rc=126)
    assert podman(*given[:1], "--interactive", *given[1:], "cat", stdin=b"data").out == "data"


def test_keep_id(podman: Any) -> None:
    assert podman("run", "--rm", "--network", "none", "--userns", "keep-id", NAME, "id", "-u").out == f"{UID}\n"


def test_network(podman: Any) -> None:
    """slirp4netns, by the device node of this space."""
    assert "10.0.2." in podman("run", "--rm", NAME, "ip", "-4", "addr", "show", "tap0").out


def test_life(podman: Any, name: str) -> None:
    podman("run", "--detach", "--network", "none", "--name", name, NAME, "sleep", "1000")
    try:
        assert podman("exec", name, "sh", "-c", "echo in; exit 9", rc=9).out == "in\n"
        podman("exec", "--user", "1000", name, "id", "-u")
        podman("stop", "--time", "1", name)
        assert json.loads(podman("inspect", name).out)[0]["State"]["ExitCode"] == 137
        podman("start", name)
        podman("kill", name)
    finally:
        podman("rm", "--force", "--time", "0", name)


def test_read_only_with_volume(podman: Any) -> None:
    script = "touch /x 2>/dev/null && echo root; touch /data/x && echo data"
    given = ("--read-only", "--volume", "vol:/data", "--network", "none")
    assert podman("run", "--rm", *given, NAME, "sh", "-c", script).out == "data\n"


def test_runtime_alone(user_space: Space, program: str) -> None:
    """`ocirt spec --rootless` gives a bundle that runs as it is."""
    script = f"""
        mkdir -p bundle/rootfs && cd bundle && tar -xf {user_space.directory}/rootfs.tar -C rootfs &&
        ocirt spec --rootless && sed -i 's/"terminal": true/"terminal": false/; s|"sh"|"id"|' config.json &&
        exec ocirt run alone
    """
    assert "uid=0" in as_user(user_space, "sh", "-ec", script).out
    assert subprocess.run(["ls", f"/run/user/{UID}"], capture_output=True, check=False).returncode == 2
