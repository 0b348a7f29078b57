"""Files of a user namespace, and network devices of a container, stay whose they are."""

from __future__ import annotations

import os
import subprocess

from tests.harness.box import Box
from tests.harness.peers import peer_fails


def owners(box: Box) -> dict[str, tuple[int, int]]:
    found = {}
    for top, directories, files in os.walk(box.rootfs):
        for name in (*directories, *files):
            path = os.path.join(top, name)
            status = os.lstat(path)
            found[path] = (status.st_uid, status.st_gid)
    return found


def test_a_user_namespace_leaves_the_owners_of_files(box: Box) -> None:
    """config-linux.md, User namespace mappings: ownership is not modified to realize the mapping."""
    box.add_user_namespace()
    (box.rootfs / "of-root").write_text("x")
    before = owners(box)
    box.run("true")
    after = owners(box)
    assert {path: after[path] for path in before} == before


@peer_fails("runc", "1.1.5 knows no netDevices")
@peer_fails("crun", "1.8.1 knows no netDevices")
def test_a_moved_network_device_is_left_alone(box: Box, test_id: str) -> None:
    """config-linux.md, Network Devices: what the container does to it stays, and delete doesn't take it back.

    The container's namespace is one that outlives it; the device is still there afterwards, as the container left it.
    """
    name = f"v{abs(hash(test_id)) % 100000}"
    with subprocess.Popen(["unshare", "--net", "sleep", "60"]) as holder:
        try:
            while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
                pass
            subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", f"{name}p"], check=True)
            box.namespace("network", f"/proc/{holder.pid}/ns/net")
            box.linux["netDevices"] = {name: {"name": "inside"}}
            box.capabilities("CAP_NET_ADMIN")
            box.run("ip link set inside mtu 1400; ip link set inside down")
            shown = subprocess.run(
                ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "ip", "-o", "link", "show", "inside"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            assert "mtu 1400" in shown
            assert "UP" not in shown.partition(">")[0]
            assert not os.path.exists(f"/sys/class/net/{name}")
        finally:
            subprocess.run(["ip", "link", "delete", f"{name}p"], check=False, capture_output=True)
            holder.kill()
